//! Figures for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use core::time::Duration;

use super::course::Figures;
use super::plan::{Outage, OutageKind, Plan};
use crate::emulator::Limiter;

/// The figures of a plan as one JSON object.
pub fn object(plan: &Plan, figures: &Figures) -> Value {
    json!({
        "policy": plan.policy.name(),
        "refresh_early": plan.policy.refresh_early(),
        "store": if plan.shares() { "shared" } else { "none" },
        "processes": plan.processes,
        "ttl_s": plan.lifetime.as_secs(),
        "hours": figures.measured as f64 / 3_600_000.0,
        "warmup_hours": plan.warmup.as_secs_f64() / 3_600.0,
        "seeds": figures.seeds,
        "limiter": limiter(&plan.limiter),
        "outage": plan.outage.map(|outage| json!({
            "every_s": outage.every.as_secs(),
            "length_s": outage.length.as_secs(),
            "kind": kind(outage.kind),
        })),
        "store_outage": spans(plan.store.filter(|_| plan.shares()).and_then(|store| store.outage)),
        "pause": spans(plan.pause),
        "restart_every_s": plan.restart_every.map(|every| every.as_secs()),
        "without_token_percent": figures.without_token_percent(),
        "longest_without_s": figures.longest_without as f64 / 1_000.0,
        "rejects_per_hour": figures.rejects_per_hour(),
        "token_requests": figures.token_requests,
        "rejects": figures.rejects,
        "issued": figures.issued,
        "expired_handed_out": figures.expired_handed_out,
        "last_served_after_s": figures.last_served_after_s(),
        "longest_start_s": figures.longest_start as f64 / 1_000.0,
    })
}

fn spans(spans: Option<(Duration, Duration)>) -> Option<Value> {
    spans.map(|(every, length)| json!({ "every_s": every.as_secs(), "length_s": length.as_secs() }))
}

/// What a command line calls it.
fn limiter(limiter: &Limiter) -> &'static str {
    let same = |other: Limiter| format!("{other:?}") == format!("{limiter:?}");
    Limiter::NAMES.into_iter().find(|name| Limiter::named(name).is_some_and(same)).unwrap_or("other")
}

fn kind(kind: OutageKind) -> &'static str {
    OutageKind::NAMES.iter().find(|(_, other)| *other == kind).map_or("other", |(name, _)| name)
}

/// What was simulated, in a line.
fn told(plan: &Plan, seeds: u64) -> String {
    let hours = |span: Duration| (span.as_secs_f64() / 36.0).round() / 100.0;
    let times = |(every, length): (Duration, Duration)| format!("{} s in each {} s", length.as_secs(), every.as_secs());
    let none = || "none".to_owned();
    let outage = |Outage { every, length, kind: how }| format!("{} ({})", times((every, length)), kind(how));
    let store = match plan.store.map(|store| store.outage) {
        None => none(),
        Some(None) => "shared".to_owned(),
        Some(Some(lost)) => format!("shared, lost for {}", times(lost)),
    };
    let restarts = plan.restart_every.map_or_else(none, |every| format!("once in each {} s", every.as_secs()));
    let pauses = plan.pause.map_or_else(String::new, |pause| format!("; pauses: {}", times(pause)));
    format!(
        "{} processes, tokens of {} s, {} h after {} h of warm-up, seeds: {seeds}; limiter: {}; store: {store}; outage: {}; \
         restarts: {restarts}{pauses}\n",
        plan.processes,
        plan.lifetime.as_secs(),
        hours(plan.hours),
        hours(plan.warmup),
        limiter(&plan.limiter),
        plan.outage.map_or_else(none, outage),
    )
}

/// The figures of several plans, which differ in their policy, as a table, under a line that tells the plan.
pub fn table(rows: &[(&Plan, &Figures)]) -> String {
    let mut text = rows.first().map_or(String::new(), |(plan, figures)| told(plan, figures.seeds));
    if let Some(share) = rows.iter().find_map(|(plan, _)| plan.policy.refresh_early()) {
        text.push_str(&format!("storm refreshes at {share} of the life where no throttle was felt\n"));
    }
    text.push_str(&format!(
        "{:<11} {:>9} {:>8} {:>12} {:>10} {:>8} {:>12} {:>12}\n",
        "policy", "without", "longest", "rejects", "requests", "expired", "last served", "longest"
    ));
    text.push_str(&format!(
        "{:<11} {:>9} {:>8} {:>12} {:>10} {:>8} {:>12} {:>12}\n",
        "", "a token", "so", "an hour", "an hour", "given", "after", "start"
    ));
    for (plan, figures) in rows {
        let hours = figures.measured as f64 / 3_600_000.0;
        let last = figures.last_served_after_s().map_or("never".to_owned(), |after| format!("{after:.0} s"));
        let _ = writeln!(
            text,
            "{:<11} {:>7.3} % {:>6.0} s {:>12.1} {:>10.1} {:>8} {:>12} {:>10.0} s",
            plan.policy.name(),
            figures.without_token_percent(),
            figures.longest_without as f64 / 1_000.0,
            figures.rejects_per_hour(),
            figures.token_requests as f64 / hours.max(f64::MIN_POSITIVE),
            figures.expired_handed_out,
            last,
            figures.longest_start as f64 / 1_000.0,
        );
    }
    text.push_str(
        "last served after: when the last of all, which start at once, had its first token, the warm-up included; longest start: to a \
         first token that came while it was measured\n",
    );
    let (shared, alone): (Vec<&Plan>, Vec<&Plan>) = rows.iter().map(|(plan, _)| *plan).partition(|plan| plan.shares());
    if alone.iter().any(|plan| plan.store.is_some()) {
        let names = |plans: &[&Plan]| plans.iter().map(|plan| plan.policy.name()).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "the store is that of {}: {} have none", names(&shared), names(&alone));
    }
    text
}
