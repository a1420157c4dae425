//! Fleets behind one address, in small: R20, R28, R30, R35. The whole of it is `fleet --promises`.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::process::{Command, Output};
use std::time::Duration;

use storm_auth_tests::emulator::Limiter;
use storm_auth_tests::fleet::{self, Figures, Fits, Outage, OutageKind, PEERS, Plan, Policy, Shared};

const HOUR: Duration = Duration::from_secs(3_600);

/// Six hours after two of warm-up.
fn plan(processes: usize, seconds: u64) -> Plan {
    Plan { hours: 6 * HOUR, ..Plan::new(processes, Duration::from_secs(seconds)) }
}

fn figures(plan: &Plan) -> Figures {
    fleet::run_all(plan, 1, 3, || ()).figures
}

#[track_caller]
fn assert_nobody_is_without(figures: &Figures) {
    let text = format!("{figures:?}");
    assert!(figures.without_token_percent() < 0.000_5 && figures.expired_handed_out == 0, "{text}");
}

#[test]
fn r30_93_percent_of_what_the_address_carries_is_served_with_few_rejects() {
    for plan in [plan(28, 600), plan(165, 3_600)] {
        let figures = figures(&plan);
        assert_nobody_is_without(&figures);
        assert!(figures.rejects_per_hour() <= 5.0, "{figures:?}");
    }
}

#[test]
fn r30_peers_do_worse_where_the_address_is_crowded() {
    let ours = figures(&plan(28, 600)).without_token_percent();
    for peer in &PEERS {
        let plan = Plan { policy: Policy::Peer(peer), ..plan(28, 600) };
        let figures = figures(&plan);
        assert!(figures.without_token_percent() > ours + 0.05, "{}: {figures:?}", peer.name);
    }
}

#[test]
fn r20_a_lifetime_that_is_counted_from_the_answer_hands_out_expired_tokens() {
    let outage = Outage { every: HOUR, length: Duration::from_secs(600), kind: OutageKind::Refused };
    let ours = Plan { outage: Some(outage), ..plan(15, 600) };
    let background = Plan { policy: Policy::named("background").unwrap(), ..ours.clone() };
    assert!(figures(&background).expired_handed_out > 0);
    let ours = figures(&ours);
    assert!(ours.without > 0 && ours.expired_handed_out == 0, "{ours:?}");
}

#[test]
fn r47_a_limiter_that_holds_requests_starves_nobody() {
    for (processes, seconds) in [(15, 600), (100, 3_600)] {
        let plan = Plan { limiter: Limiter::nginx_delay(), warmup: HOUR, ..plan(processes, seconds) };
        let figures = figures(&plan);
        assert_nobody_is_without(&figures);
        assert_eq!(figures.starting, 0, "{figures:?}");
    }
}

#[test]
fn r28_r35_an_outage_of_two_minutes_an_hour_is_outlasted() {
    for kind in [OutageKind::Status, OutageKind::Refused] {
        let outage = Outage { every: HOUR, length: Duration::from_secs(120), kind };
        assert_nobody_is_without(&figures(&Plan { outage: Some(outage), ..plan(10, 600) }));
    }
}

#[test]
fn r35_a_crowd_that_starts_at_once_is_served_as_fast_as_the_limiter_lets_it() {
    for (processes, seconds) in [(50, 638.0), (100, 1_738.0)] {
        let cold = Plan { warmup: Duration::ZERO, hours: HOUR, ..plan(processes, 3_600) };
        let after = figures(&cold).last_served_after_s().unwrap();
        assert!(after <= seconds, "{processes} processes: {after} s");
    }
}

#[test]
fn r35_a_fleet_that_has_lost_its_store_does_not_storm_the_endpoint() {
    let lost = Shared { outage: Some((2 * HOUR, HOUR)) };
    let figures = figures(&Plan { store: Some(lost), ..plan(200, 600) });
    // Half of the time without a store, 20 for each process in such an hour.
    assert!(figures.rejects_per_hour() <= 200.0 * 20.0 / 2.0, "{figures:?}");
}

#[test]
fn r63_a_seed_tells_the_same_story_again() {
    let plan = Plan { restart_every: Some(2 * HOUR), ..plan(25, 600) };
    let (one, other) = (fleet::run(&plan, 7), fleet::run(&plan, 7));
    assert!(one.figures == other.figures && one.course == other.course);
    assert_ne!(one.figures, fleet::run(&plan, 8).figures);
}

#[test]
fn without_a_limiter_nobody_is_refused_and_a_plan_has_no_bound() {
    let free = Plan { limiter: Limiter::none(), ..plan(60, 600) };
    let figures = figures(&free);
    assert_eq!((figures.rejects, figures.without), (0, 0));
    assert_eq!(fleet::how_many(&free, 1, 1, |_, _| ()), Fits::Any);
}

fn fleet(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fleet")).args(arguments).output().unwrap()
}

#[test]
fn it_prints_one_json_object_and_draws() {
    let file = std::env::temp_dir().join(format!("storm-fleet-{}.svg", std::process::id()));
    let arguments = ["--processes", "8", "--hours", "1", "--warmup-hours", "0.5", "--seeds", "2", "--json"];
    let output = fleet(&[&arguments[..], &["--policy", "storm,jitter", "--svg", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in
        ["without_token_percent", "rejects_per_hour", "token_requests", "expired_handed_out", "last_served_after_s"]
    {
        assert!(object[key].is_number() && object["beside"][0][key].is_number(), "{key}: {object}");
    }
    assert_eq!(
        (&object["limiter"], &object["outage"], &object["restart_every_s"]),
        (&"nginx".into(), &serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!((&object["policy"], &object["beside"][0]["policy"]), (&"storm".into(), &"jitter".into()));
    let drawn = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.matches("<polyline").count() >= 8);
}

#[test]
fn the_planner_finds_how_many_fit() {
    let output =
        fleet(&["--how-many", "--ttl", "600", "--hours", "4", "--seeds", "1", "--policy", "storm,expiry", "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let fits = |name: &str| object["how_many"][name].as_u64().unwrap();
    assert!((26..=30).contains(&fits("storm")) && fits("expiry") < 20, "{object}");
}

#[test]
fn the_planner_does_not_take_its_own_bound_for_an_answer() {
    // 30 requests pass in 600 s, but these need one for all; peers have no store.
    let shared = Plan { store: Some(Shared::default()), warmup: Duration::ZERO, hours: HOUR / 4, ..plan(1, 600) };
    assert_eq!(fleet::how_many(&shared, 1, 1, |_, _| ()), Fits::MoreThan(3_000));
    let peers = Plan { policy: Policy::named("expiry").unwrap(), ..shared.clone() };
    assert!(matches!(fleet::how_many(&peers, 1, 1, |_, _| ()), Fits::Most(..30)));
    // One that is lost in each hour does not feed thousands.
    let lost = Plan { store: Some(Shared { outage: Some((HOUR, HOUR / 2)) }), hours: 2 * HOUR, ..shared.clone() };
    assert!(matches!(fleet::how_many(&lost, 1, 1, |_, _| ()), Fits::Most(15..200)));
    // In a minute no token ends, however many there are.
    let short = Plan { store: None, hours: HOUR / 60, ..shared };
    assert_eq!(fleet::how_many(&short, 1, 1, |_, _| ()), Fits::MoreThan(32));
}

#[test]
fn a_mistake_on_the_command_line_says_what_to_change() {
    for (arguments, says) in [
        (&["--processes", "0"][..], "a whole number from 1"),
        (&["--ttl", "ten"], "like 600, 90s, 10m or 1h"),
        (&["--policy", "strom"], "storm,steady,jitter"),
        (&["--limiter", "bucket"], "nginx-delay"),
        (&["--outage", "1h"], "like 1h:120s"),
        (&["--outage", "1h:2h"], "a span from 1 s to 3600 s"),
        (&["--outage", "1h:2m:slow"], "status, refused, silent"),
        (&["--hours", "-1"], "a number of hours"),
        (&["--refresh-early", "75"], "more than 0 and at most 1"),
        (&["--refresh-early", "0"], "more than 0 and at most 1"),
        (&["--refresh-early", "NaN"], "more than 0 and at most 1"),
        (&["--refresh-early", "0.8", "--policy", "jitter"], "add storm to --policy"),
        (&["--refresh-early", "0.8", "--promises"], "not --refresh-early"),
        (&["--store", "half"], "none or shared"),
        (&["--how-many", "--svg", "x.svg"], "leave out --svg"),
        (&["--processes", "9", "--how-many"], "leave out --processes"),
        (&["--how-many", "--promises"], "give one of them"),
        (&["--how-many", "--ttl", "86400"], "--hours 46.00 or more"),
        (&["--promises", "--ttl", "60"], "not --ttl"),
        (&["--promises", "--json"], "not --json"),
        (&["--promises", "--policy", "all"], "name one"),
        (&["--store-outage", "2h:1h"], "add --store shared"),
        (&["--store-outage", "2h:1h", "--store", "none"], "add --store shared"),
        (&["--store", "shared", "--policy", "jitter"], "add storm to --policy"),
        (&["--cold", "--warmup-hours", "1"], "leave out --cold"),
        (&["--json", "--svg", "/nope/x.svg", "--hours", "10000"], "/nope/x.svg"),
    ] {
        let output = fleet(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text.contains(says) && output.stdout.is_empty(), "{arguments:?}: {text}");
    }
}

#[test]
fn the_table_says_that_peers_have_no_store() {
    let short = ["--processes", "5", "--hours", "0.1", "--warmup-hours", "0", "--seeds", "1", "--store", "shared"];
    let output = fleet(&[&short[..], &["--policy", "storm,jitter,margin"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the store is that of storm: jitter, margin have none"), "{text}");
}

#[test]
fn the_table_and_the_object_tell_the_plan() {
    let short = ["--processes", "5", "--hours", "0.1", "--warmup-hours", "0.5", "--seeds", "1", "--limiter", "apim"];
    let troubles = ["--outage", "1h:60s:silent", "--restart-every", "2h", "--pause", "1h:5s"];
    let store = ["--store", "shared", "--store-outage", "1h:30s"];
    let arguments = [&short[..], &troubles, &store].concat();
    let text = String::from_utf8(fleet(&arguments).stdout).unwrap();
    let plan = "5 processes, tokens of 600 s, 0.1 h after 0.5 h of warm-up, seeds: 1; limiter: apim; store: shared, lost for 30 s in \
                each 3600 s; outage: 60 s in each 3600 s (silent); restarts: once in each 7200 s; pauses: 5 s in each 3600 s\n";
    assert!(text.starts_with(plan) && text.contains("longest start: to"), "{text}");
    let object: serde_json::Value =
        serde_json::from_slice(&fleet(&[&arguments[..], &["--json"]].concat()).stdout).unwrap();
    assert_eq!((&object["limiter"], &object["restart_every_s"]), (&"apim".into(), &7_200.into()));
    assert_eq!(object["outage"], serde_json::json!({ "every_s": 3_600, "length_s": 60, "kind": "silent" }));
    assert_eq!(object["store_outage"], serde_json::json!({ "every_s": 3_600, "length_s": 30 }));
}

#[test]
fn r30_the_planner_shows_what_another_early_time_costs() {
    let plan = ["--processes", "5", "--hours", "4", "--seeds", "1"];
    let requests = |early: &[&str], told| {
        let arguments = [&plan[..], early].concat();
        let text = String::from_utf8(fleet(&arguments).stdout).unwrap();
        assert!(text.contains(told), "{text}");
        let output = fleet(&[&arguments[..], &["--policy", "storm,margin", "--json"]].concat());
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(object["beside"][0]["refresh_early"].is_null(), "{object}");
        (object["refresh_early"].as_f64().unwrap(), object["token_requests"].as_u64().unwrap())
    };
    // 5 processes for 14,400 s: one request in 450 s, and in 540 s.
    let (usual, late) = (requests(&[], "at 0.75 of"), requests(&["--refresh-early", "0.9"], "at 0.9 of"));
    assert_eq!((usual.0, late.0), (0.75, 0.9));
    assert!((155..=163).contains(&usual.1) && (129..=136).contains(&late.1), "{usual:?}, {late:?}");
}

#[test]
fn who_reads_no_further_is_told_of_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fleet"))
        .args(["--processes", "5", "--hours", "0.1", "--seeds", "1"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty() && output.status.code() == Some(141), "{output:?}");
}

#[test]
fn a_promise_that_is_known_to_be_missed_is_missed_by_no_more_than_is_known() {
    let promises = fleet::promises();
    let [promise] = &promises.iter().filter(|promise| promise.known.is_some()).collect::<Vec<_>>()[..] else {
        panic!("one is known: {promises:?}");
    };
    let without = |without| {
        let mut figures = Figures::default();
        (figures.holding, figures.without) = (1_000_000, without);
        (promise.broken_by(&figures).is_empty(), promise.known_by(&figures).is_some())
    };
    assert_eq!([0, 100, 300].map(without), [(true, false), (false, true), (false, false)]);
}

#[test]
fn r72_a_thousand_processes_that_share_a_store_send_one_request_per_lifetime() {
    let shared =
        |hours: Duration| Plan { store: Some(Shared::default()), warmup: Duration::ZERO, hours, ..plan(1_000, 600) };
    let cold = figures(&shared(HOUR / 12));
    assert_eq!((cold.token_requests, cold.rejects), (3, 0), "one for each seed");
    // They start within the first second.
    assert!(cold.last_served_after_s().unwrap() < 3.0, "{cold:?}");
    let troubled = Plan { pause: Some((HOUR, HOUR / 120)), restart_every: Some(HOUR), ..shared(HOUR) };
    let troubled = fleet::run(&troubled, 1).figures;
    assert_nobody_is_without(&troubled);
    // A refresh is due at 75 % of a life of 600 s.
    assert!((8..=9).contains(&troubled.token_requests), "{troubled:?}");
}

#[test]
fn r75_twenty_processes_that_lose_their_store_get_tokens_of_their_own_in_time() {
    let lost = Shared { outage: Some((2 * HOUR, HOUR)) };
    let figures = figures(&Plan { store: Some(lost), ..plan(20, 600) });
    assert_nobody_is_without(&figures);
    assert_eq!(figures.rejects, 0, "{figures:?}");
}
