//! `storm-token` as a process, against the emulator: `cargo test -p storm-auth-blocking --features cli --test cli`.

#![allow(clippy::unwrap_used, reason = "helpers of the tests stand outside of their functions")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

#[path = "../../../storm-auth-tests/tests/nginx/server.rs"]
mod nginx;
mod shell;

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use storm_auth_blocking::Unix;
use storm_auth_tests::emulator::{Clock, Emulator, Endpoint, Fault, Limiter};

use crate::nginx::Nginx;
use crate::shell::{CLIENT, Run, Shell};

fn emulator() -> Emulator {
    emulator_with(Clock::system())
}

fn emulator_with(clock: Clock) -> Emulator {
    let (id, secret) = CLIENT;
    Emulator::builder().client(id, secret, &["playground"]).clock(clock).start()
}

fn throttle() -> Fault {
    Fault::answer(429, &[("retry-after", "120")], "")
}

#[test]
fn get_prints_the_token_a_header_or_json() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    let token = shell.run(&["get"]).ok();
    assert!(token.starts_with("eyJ") && token.ends_with('\n') && token.lines().count() == 1, "{token}");
    assert_eq!(shell.run(&["get", "--header"]).ok(), format!("Authorization: Bearer {token}"));
    let run = shell.run(&["get", "--json"]);
    let value = run.json();
    assert_eq!(value["access_token"], token.trim_end());
    assert_eq!(value["token_type"], "Bearer");
    assert!((500..=600).contains(&value["expires_in"].as_u64().unwrap()), "{value}");
    assert!(value["expires_at"].as_str().unwrap().ends_with('Z'), "{value}");
    assert_eq!(value.get("scope"), None, "it is the one that was asked for");
    run.ok();
    assert_eq!(emulator.token_requests(), 1);
}

#[test]
fn r19_get_tells_a_scope_that_differs_and_takes_any_token_that_a_header_takes() {
    let emulator = emulator();
    let answer = r#"{"access_token":"a\"b\\c","expires_in":600,"token_type":"Bearer","scope":"other one"}"#;
    emulator.fail(Endpoint::Token, Fault::json(200, answer));
    let value = Shell::of(&emulator).run(&["get", "--json"]).json();
    assert_eq!((value["access_token"].as_str(), value["scope"].as_str()), (Some(r#"a"b\c"#), Some("other one")));
}

#[test]
fn r72_twenty_calls_cost_one_token_request() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    for _ in 0..20 {
        let answer: Value = serde_json::from_str(&shell.run(&["call", "GET", "/products?top=3"]).ok()).unwrap();
        assert_eq!(answer["applicationId"], 1042);
    }
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (1, 20));
}

#[test]
fn r72_twenty_processes_at_once_cost_one_token_request() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    let start = |_| shell.command(&["get"]).stdout(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = (0..20).map(start).collect();
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap());
    let tokens: std::collections::BTreeSet<_> = outputs.map(|output| output.stdout).collect();
    assert_eq!((emulator.token_requests(), tokens.len()), (1, 1));
}

#[test]
fn without_the_cache_each_process_asks_and_nothing_is_left_behind() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    for _ in 0..2 {
        shell.run(&["get", "--no-cache"]).ok();
    }
    assert_eq!(emulator.token_requests(), 2);
    assert!(shell.files().is_empty(), "{:?}", shell.files());
}

#[test]
fn call_sends_what_it_is_told_and_prints_what_it_gets() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    let body = shell.file("order.json", r#"{"id":1}"#);
    let body = body.to_str().unwrap();
    let answer = shell
        .run(&[
            "call",
            "post",
            "orders",
            "--body-file",
            body,
            "-H",
            "Content-Type: application/json",
            "--header",
            "X-One:  1 ",
        ])
        .ok();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((answer["method"].as_str(), answer["path"].as_str()), (Some("POST"), Some("/orders")));
    assert_eq!(answer["bodyLength"], 8);
    let sent = emulator.recorded(Endpoint::Api).pop().unwrap();
    assert_eq!(
        (&sent.headers["content-type"], &sent.headers["x-one"]),
        (&"application/json".parse().unwrap(), &"1".parse().unwrap())
    );

    let run = shell.feed(&["call", "PUT", "/a", "--body-file", "-", "--application-id", "7"], "from a pipe");
    assert_eq!((run.json()["bodyLength"].as_u64(), run.json()["applicationId"].as_u64()), (Some(11), Some(7)));

    let whole = format!("{}/a?b=c", emulator.api_url());
    let text = shell.run(&["call", "DELETE", &whole, "--include"]).ok();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("\r\ncontent-type: application/json"), "{text}");
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["query"], "b=c");

    let value = shell.run(&["call", "GET", "/a", "--json"]).json();
    assert_eq!((value["status"].as_u64(), value["body"]["path"].as_str()), (Some(200), Some("/a")));
    assert_eq!(value["headers"]["content-type"], "application/json; charset=utf-8");
    assert_eq!(emulator.token_requests(), 1);
}

#[test]
fn a_body_that_is_no_text_comes_as_it_is_or_in_base64() {
    let emulator = emulator();
    let bytes = [0, 159, 146, 150, b'\n', 0xFF];
    emulator.fail(Endpoint::Api, Fault::answer(200, &[("set-cookie", "a=1"), ("set-cookie", "b=2")], bytes.to_vec()));
    let shell = Shell::of(&emulator);
    assert_eq!(shell.command(&["call", "GET", "/a"]).output().unwrap().stdout, bytes);
    let value = shell.run(&["call", "GET", "/a", "--json"]).json();
    assert_eq!(value["body"]["base64"], "AJ+Slgr/");
    assert_eq!(value["headers"]["set-cookie"], serde_json::json!(["a=1", "b=2"]));
}

#[test]
fn r38_a_revoked_token_is_replaced_and_the_call_is_sent_again() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    let first = shell.run(&["get"]).ok();
    emulator.revoke_all();
    let body = "again and again";
    let run = shell.feed(&["call", "POST", "/a", "--body-file", "-"], body);
    assert_eq!(run.json()["bodyLength"], 15);
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (2, 2));
    assert_ne!(shell.run(&["get"]).ok(), first, "nobody is served the rejected one");
    assert_eq!(emulator.token_requests(), 2);
}

#[test]
fn r41_an_answer_that_is_no_2xx_is_printed_and_ends_with_5() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    emulator.fail(Endpoint::Api, Fault::json(404, r#"{"fault":"none"}"#));
    let run = shell.run(&["call", "GET", "/a"]);
    assert_eq!((run.code, run.out.as_str()), (5, r#"{"fault":"none"}"#));
    assert!(run.err.contains("the API answered 404 Not Found"), "{}", run.err);
    let run = shell.run(&["call", "GET", "/a", "--json"]);
    assert_eq!((run.code, run.json()["status"].as_u64(), run.err.as_str()), (5, Some(404), ""));
    emulator.fail(Endpoint::Api, Fault::Outage);
    shell.run(&["call", "GET", "/a"]).failed(5, &["the API call failed", "STORM_API_URL"]);
    shell.run(&["call", "GET", "/a", "--json"]).failed_as_json(5, "api");
}

#[test]
fn r37_refused_credentials_end_with_3_and_cost_one_request() {
    let emulator = emulator();
    let shell = Shell::of(&emulator).with("STORM_CLIENT_SECRET", "wrong");
    shell.run(&["get"]).failed(3, &["invalid_client", "the client id and the client secret"]);
    // The next ones find in the folder that it was.
    for _ in 0..3 {
        shell.run(&["get"]).failed(3, &["refused another process", "check the client id, the client secret"]);
    }
    assert_eq!(emulator.token_requests(), 1);
    shell.run(&["get", "--no-cache", "--json"]).failed_as_json(3, "refused");
    emulator.fail(Endpoint::Token, Fault::redirect(301, "https://new.example/connect/token"));
    let moved = shell.run(&["get", "--no-cache"]);
    moved.failed(3, &["moved (HTTP 301) to https://new.example/connect/token"]);
}

#[test]
fn r36_a_throttle_ends_with_4_and_says_when_to_come_back_to_all_who_share() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    emulator.fail(Endpoint::Token, throttle());
    let value = shell.run(&["get", "--json"]).failed_as_json(4, "rate_limited");
    let retry_at = value["error"]["retry_at"].as_str().unwrap().to_owned();
    let now = Unix::from(SystemTime::now());
    let span = |seconds| (now + Duration::from_secs(seconds)).to_string();
    assert!((span(90)..=span(150)).contains(&retry_at), "{retry_at}");
    emulator.heal(Endpoint::Token);
    shell.run(&["get"]).failed(4, &["the next token can be had at 20", " (in "]);
    shell.run(&["call", "GET", "/a"]).failed(4, &["rate limited"]);
    assert_eq!(emulator.token_requests(), 1);
}

#[test]
fn an_endpoint_that_cannot_be_reached_ends_with_6() {
    let emulator = emulator();
    emulator.fail(Endpoint::Token, Fault::Outage);
    let shell = Shell::of(&emulator);
    shell.run(&["get"]).failed(6, &["token endpoint", "check the token URL and the way there"]);
    let value = shell.run(&["get", "--no-cache", "--json"]).failed_as_json(6, "unavailable");
    assert!(value["error"]["retry_at"].is_string(), "{value}");
}

#[test]
fn inspect_shows_what_a_token_says_and_that_nobody_verified_it() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    let token = shell.run(&["get"]).ok();
    let shown = shell.run(&["inspect"]).ok();
    for word in
        ["Not verified", r#""client_id": "shop""#, r#""alg": "RS256""#, "expires 20", " (in ", "handed out until"]
    {
        assert!(shown.contains(word), "{word:?} is not in {shown}");
    }
    let run = shell.feed(&["inspect", "-", "--json"], &format!("Authorization: Bearer {token}"));
    assert_eq!(
        (run.json()["verified"].as_bool(), run.json()["claims"]["client_id"].as_str()),
        (Some(false), Some("shop"))
    );
    for line in token.trim_end().split('.') {
        run.shows_nothing_of(line);
    }
    assert_eq!(emulator.token_requests(), 1);

    // It needs no settings then, and takes a token of any kind.
    let bare = Shell::bare();
    assert!(bare.feed(&["inspect", "-"], "opaque-token\n").ok().contains("no JWT"));
    let run = bare.feed(&["inspect", "-"], "eyJ9.e30.");
    assert!(run.ok().contains("no JWT"), "the header is cut");
    let claims = "eyJhbGciOiJub25lIn0.eyJleHAiOjEwMDAsIm5vdGUiOiLCm1xuXHUwMDFiWzMxbSJ9.";
    let shown = bare.feed(&["inspect", "-"], claims).ok();
    assert!(shown.contains("expired 1970-01-01T00:16:40Z") && !shown.contains(['\u{1b}', '\u{9b}']), "{shown:?}");
    bare.feed(&["inspect", "-"], "").failed(2, &["standard input", "no token in it"]);
    bare.feed(&["inspect", "-"], "two words").failed(2, &["standard input", "give one token"]);
    let run = bare.run(&["inspect", token.trim_end()]);
    run.failed(2, &["give the token on standard input"]);
    run.shows_nothing_of(token.trim_end());
}

#[test]
fn status_asks_nobody_and_tells_token_gate_and_budget() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    let text = shell.run(&["status"]).ok();
    assert!(text.contains("token   none") && text.contains("gate    open"), "{text}");
    assert!(
        text.contains("budget  3 requests a minute, and 20 more at once") && text.contains("lease   free"),
        "{text}"
    );
    assert_eq!(emulator.token_requests(), 0);

    let token = shell.run(&["get"]).ok();
    let run = shell.run(&["status"]);
    run.shows_nothing_of(token.trim_end());
    run.shows_no_secret();
    assert!(
        run.out.contains("token   shared until 20") && run.out.contains("refreshed by the first call from 20"),
        "{}",
        run.out
    );
    let value = shell.run(&["status", "--json"]).json();
    assert!(value["token_until"].is_string() && value["gate_closed_until"].is_null(), "{value}");

    let shell = Shell::of(&emulator);
    emulator.fail(Endpoint::Token, throttle());
    assert_eq!(shell.run(&["get"]).code, 4);
    assert_eq!(shell.run(&["status", "--json"]).json()["lease"], "free");
    let requests = emulator.token_requests();
    assert!(shell.run(&["status"]).ok().contains("gate    closed by a throttle until 20"));
    assert!(shell.run(&["status", "--json"]).json()["gate_closed_until"].is_string());
    assert_eq!(emulator.token_requests(), requests);
    shell.run(&["status", "--no-cache"]).failed(2, &["--no-cache"]);

    let shell = Shell::of(&emulator).with("STORM_CLIENT_ID", "nobody");
    emulator.heal(Endpoint::Token);
    assert_eq!(shell.run(&["get"]).code, 3);
    assert!(shell.run(&["status"]).ok().contains("lease   refused: nobody requests before 20"));
    let value = shell.run(&["status", "--json"]).json();
    assert_eq!((value["lease"].as_str(), value["refused"].as_bool()), (Some("resting"), Some(true)));
    let shell = Shell::of(&emulator);
    emulator.fail(Endpoint::Token, Fault::Outage);
    assert_eq!(shell.run(&["get"]).code, 6);
    assert!(shell.run(&["status"]).ok().contains("lease   after a failure nobody requests before 20"));
    assert!(value["lease_rests_until"].is_string(), "{value}");
}

/// The check of this name and what was found.
fn check(report: &Value, name: &str) -> (String, String) {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no {name} in {report}"));
    (check["result"].as_str().unwrap().to_owned(), check["detail"].as_str().unwrap().to_owned())
}

#[test]
fn doctor_finds_a_healthy_setup_healthy_with_one_request() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    let text = shell.run(&["doctor"]).ok();
    assert!(text.is_ascii() && !text.contains("FAIL") && !text.contains("warn"), "{text}");
    for line in
        ["ok   token URL: from STORM_TOKEN_URL", "ok   token request: granted after", "ok   clock: ", "ok   API: http"]
    {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert_eq!(emulator.token_requests(), 1);
    let run = shell.run(&["doctor", "--json"]);
    assert_eq!((run.code, run.json()["ok"].as_bool()), (0, Some(true)));
    assert!(check(&run.json(), "token request").1.contains("not made: a valid token is shared"), "{}", run.out);
    assert_eq!(emulator.token_requests(), 1);
    assert!(emulator.recorded(Endpoint::Api).iter().all(|sent| !sent.headers.contains_key("authorization")));
}

#[test]
fn doctor_tells_every_wrong_setting_at_once_and_asks_nobody_then() {
    let emulator = emulator();
    let secret = format!("{}\n\n", CLIENT.1);
    let shell = Shell::of(&emulator)
        .without("STORM_CLIENT_SECRET")
        .with("STORM_SCOPE", "a  b")
        .with("STORM_APPLICATION_ID", "x");
    let path = shell.file("secret", secret);
    let shell = shell.with("STORM_CLIENT_SECRET_FILE", path.to_str().unwrap());
    let run = shell.run(&["doctor"]);
    assert_eq!((run.code, run.err.as_str()), (2, ""));
    for line in [
        "FAIL scope: scope (STORM_SCOPE): an empty scope token",
        "FAIL client secret: client secret file (STORM_CLIENT_SECRET_FILE): white space at its start or end; remove it",
        "FAIL application id: application id (STORM_APPLICATION_ID): not a decimal number",
        "ok   token URL",
        "skip token request: not made",
    ] {
        assert!(run.out.contains(line), "{line:?} is not in {}", run.out);
    }
    run.shows_no_secret();
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (0, 0));
    let broken = Shell::bare().with("STORM_CONFIG", "nowhere.toml").run(&["doctor"]);
    assert!(
        broken.code == 2 && broken.out.contains("FAIL configuration file: STORM_CONFIG: nowhere.toml: it cannot"),
        "{}",
        broken.out
    );
}

/// What is seen on a terminal of 60 columns, which `script` gives, by somebody who types the answer to a prompt, if there is one. The
/// terminal shows nothing of that, so it does not matter how soon it comes. `None`, and a test is skipped, where there is no `script`
/// with these options.
#[cfg(target_os = "linux")]
fn on_a_terminal(shell: &Shell, arguments: &str, prompt: &str, answer: &str) -> Option<String> {
    let line = format!("stty rows 20 cols 60 -echo; {} {arguments}", env!("CARGO_BIN_EXE_storm-token"));
    let settings = shell.command(&[]);
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).current_dir(&shell.home).env_clear();
    script.envs(settings.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let mut seen = Vec::new();
    if let Ok(mut child) = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() {
        let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        while !seen.ends_with(prompt.as_bytes()) && screen.by_ref().take(1).read_to_end(&mut seen).unwrap() > 0 {}
        // Without the prompt it is over, and what was seen tells.
        let _ = keyboard.write_all(answer.as_bytes());
        screen.read_to_end(&mut seen).unwrap();
        child.wait().unwrap();
    }
    if seen.is_empty() {
        assert!(std::env::var_os("STORM_TESTS_SKIP_NOTHING").is_none(), "there is no script with these options");
        eprintln!("skipped: there is no script with these options");
        return None;
    }
    Some(String::from_utf8(seen).unwrap().replace('\r', ""))
}

#[cfg(target_os = "linux")]
#[test]
fn a_secret_that_is_set_nowhere_is_asked_for_on_a_terminal() {
    let emulator = emulator();
    let shell = Shell::of(&emulator).without("STORM_CLIENT_SECRET");
    let answer = format!("{}\n", CLIENT.1);
    let Some(seen) = on_a_terminal(&shell, "get --header", "Client secret: ", &answer) else { return };
    assert!(seen.starts_with("Client secret: \nAuthorization: Bearer ey"), "{seen}");
    Run { code: 0, out: seen, err: String::new() }.shows_no_secret();
    emulator.assert_token_requests(1);
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_terminal_doctor_breaks_lines_between_words_and_paints_unless_nobody_wants_that() {
    let seen = |shell: &Shell| on_a_terminal(shell, "doctor", "", "");
    // One that is set nowhere would be asked for.
    let plain = Shell::bare().with("NO_COLOR", "1").with("STORM_CLIENT_SECRET", " wrong");
    let Some(text) = seen(&plain) else { return };
    assert!(text.contains("✗ token URL: ") && !text.contains('\u{1b}'), "{text}");
    // A path that is longer than a line stays whole.
    assert!(text.lines().all(|line| line.chars().count() <= 60 || !line.trim().contains(' ')), "{text}");
    let cure = "not set; set the variable, or norce, environment or token_url in the configuration file";
    assert!(text.split_whitespace().collect::<Vec<_>>().join(" ").contains(cure), "{text}");
    let painted = seen(&plain.with("NO_COLOR", "")).unwrap();
    assert!(painted.contains("\u{1b}[31m✗\u{1b}[0m token URL: "), "{painted}");
    assert_eq!(
        painted.replace("\u{1b}[31m", "").replace("\u{1b}[32m", "").replace("\u{1b}[2m", "").replace("\u{1b}[0m", ""),
        text
    );
}

#[cfg(unix)]
#[test]
fn doctor_warns_of_files_that_others_may_use() {
    use std::os::unix::fs::PermissionsExt;

    let emulator = emulator();
    let shell = Shell::of(&emulator).without("STORM_CLIENT_SECRET").with("STORM_CONFIG", "storm.toml");
    let secret = shell.file("secret", CLIENT.1);
    let config = shell.file("storm.toml", "client_secret_file = 'secret'");
    let set = |path: &std::path::Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let warnings = |shell: &Shell| {
        let text = shell.run(&["doctor"]).ok();
        let warnings = text.lines().filter(|line| line.starts_with("warn")).map(str::to_owned);
        warnings.collect::<Vec<_>>()
    };
    set(&secret, 0o600);
    set(&config, 0o644);
    assert!(warnings(&shell).is_empty());
    set(&secret, 0o640);
    set(&config, 0o664);
    let [one, other] = &warnings(&shell)[..] else { panic!("there are two") };
    assert!(one.contains("configuration file: others may write to storm.toml"), "{one}");
    assert!(other.contains("client secret: others may read secret; chmod go-rwx"), "{other}");
    let shell = shell.with("STORM_CLIENT_SECRET_FILE", "secret");
    assert_eq!(warnings(&shell).len(), 2);
    let shell = shell.with("STORM_CLIENT_SECRET", CLIENT.1).with("STORM_CLIENT_SECRET_FILE", "");
    assert_eq!(warnings(&shell).len(), 1);

    // The second secret's file, by its key and by its variable.
    let next = shell.file("next", "Successor");
    shell.file("storm.toml", "client_secret_next_file = 'next'");
    set(&config, 0o600);
    set(&next, 0o600);
    assert!(warnings(&shell).is_empty());
    set(&next, 0o604);
    let told =
        "warn next client secret: others may read next; chmod go-rwx, unless it is mounted for this process alone";
    assert_eq!(warnings(&shell), [told]);
    shell.file("storm.toml", "");
    assert_eq!(warnings(&shell.with("STORM_CLIENT_SECRET_NEXT_FILE", "next")), [told]);
}

#[test]
fn r43_doctor_and_get_do_with_two_secrets_as_a_program_does() {
    let emulator = emulator();
    let shell =
        || Shell::of(&emulator).with("STORM_CLIENT_SECRET", "Predecessor").with("STORM_CLIENT_SECRET_NEXT", CLIENT.1);
    let run = shell().run(&["doctor", "--json"]);
    assert_eq!((run.code, run.json()["ok"].as_bool()), (0, Some(true)), "{}", run.out);
    assert!(check(&run.json(), "token request").1.starts_with("granted after"), "{}", run.out);
    let (result, detail) = check(&run.json(), "client secret");
    assert_eq!((result.as_str(), detail.as_str()), ("ok", "from STORM_CLIENT_SECRET"));
    assert_eq!(check(&run.json(), "next client secret").1, "from STORM_CLIENT_SECRET_NEXT");
    let warned = "the endpoint refuses it and takes the next one; put that in its place";
    assert!(run.out.contains(warned) && run.out.matches("\"warning\"").count() == 1, "{}", run.out);
    run.shows_no_secret();
    assert_eq!(emulator.token_requests(), 2);

    let shell = shell();
    let token = shell.run(&["get"]).ok();
    assert_eq!(shell.run(&["get"]).ok(), token);
    assert_eq!(emulator.token_requests(), 4);
    // What is shared is under the second secret, and so is what is told.
    let text = shell.run(&["status"]).ok();
    assert!(text.contains("token   shared until 20") && text.contains("lease   free"), "{text}");
    assert!(shell.run(&["doctor"]).ok().contains("ok   token request: not made: a valid token is shared"));
    assert_eq!(emulator.token_requests(), 4);

    let neither = shell.with("STORM_CLIENT_SECRET_NEXT", " wrong").run(&["doctor"]);
    assert_eq!(neither.code, 2);
    assert!(
        neither.out.contains("FAIL next client secret: next client secret (STORM_CLIENT_SECRET_NEXT): white space")
    );
    let neither = Shell::of(&emulator).with("STORM_CLIENT_SECRET", "one").with("STORM_CLIENT_SECRET_NEXT", "other");
    let run = neither.run(&["doctor", "--json"]);
    let (result, detail) = check(&run.json(), "token request");
    assert_eq!((run.code, result.as_str()), (3, "failed"));
    assert!(
        detail.contains("invalid_client") && detail.contains("The client id or both secrets are wrong"),
        "{detail}"
    );
    assert_eq!(emulator.token_requests(), 6);
    // The next one finds that in the folder.
    let run = neither.run(&["doctor", "--json"]);
    let (_, detail) = check(&run.json(), "token request");
    assert_eq!(run.code, 3);
    assert!(detail.contains("An earlier run was refused, so nothing was asked now"), "{detail}");
    assert_eq!(emulator.token_requests(), 6);
    assert_eq!(neither.run(&["status", "--json"]).json()["refused"], true);
}

#[test]
fn doctor_explains_each_refusal_and_asks_once() {
    let emulator = emulator();
    let doctor = |shell: Shell, code: i32, result: &str, words: &[&str]| {
        let before = emulator.token_requests();
        let run = shell.run(&["doctor", "--json"]);
        assert_eq!(run.code, code, "{}", run.out);
        let (found, detail) = check(&run.json(), "token request");
        assert_eq!(found, result);
        for word in words {
            assert!(detail.contains(word), "{word:?} is not in {detail}");
        }
        run.shows_no_secret();
        assert!(emulator.token_requests() - before <= 1);
        run
    };
    doctor(Shell::of(&emulator).with("STORM_CLIENT_ID", "nobody"), 3, "failed", &["invalid_client", "compare them"]);
    doctor(
        Shell::of(&emulator).with("STORM_SCOPE", "prod"),
        3,
        "failed",
        &["invalid_scope", "the scope prod", "STORM_SCOPE"],
    );
    emulator.fail(Endpoint::Token, Fault::redirect(301, "https://new.example/connect/token"));
    doctor(Shell::of(&emulator), 3, "failed", &["Set STORM_TOKEN_URL to https://new.example/connect/token"]);
    emulator.fail(Endpoint::Token, Fault::html(404));
    doctor(Shell::of(&emulator), 3, "failed", &["HTTP 404", "whose path is /identity/1.0/connect/token"]);

    // A throttle whose wait is shorter than anybody's patience.
    emulator.fail(Endpoint::Token, Fault::answer(429, &[("retry-after", "1")], ""));
    doctor(Shell::of(&emulator), 4, "failed", &["the next token can be had at 20", "look for others behind it"]);
    emulator.fail(Endpoint::Token, throttle());
    let shell = Shell::of(&emulator);
    assert_eq!(shell.run(&["get"]).code, 4);
    let requests = emulator.token_requests();
    let run = doctor(shell, 4, "failed", &["not made", "the next request fits at 20"]);
    assert!(run.json()["retry_at"].is_string(), "{}", run.out);
    assert_eq!(emulator.token_requests(), requests, "the gate is kept");

    emulator.fail(Endpoint::Token, Fault::Outage);
    let shell = Shell::of(&emulator).with("HTTPS_PROXY", &format!("http://user:{}@127.0.0.1:9", "proxy-password"));
    let run = doctor(shell, 6, "failed", &["the environment sets HTTPS_PROXY"]);
    run.shows_nothing_of("proxy-password");
    let nothing = Shell::of(&emulator)
        .with("STORM_TOKEN_URL", "http://127.0.0.1:9/token")
        .with("STORM_API_URL", "http://127.0.0.1:9");
    let run = nothing.run(&["doctor", "--json"]);
    assert_eq!(check(&run.json(), "API").0, "failed");
    assert!(check(&run.json(), "token request").1.contains("no connection came about"), "{}", run.out);
}

#[test]
fn doctor_sees_a_clock_that_is_off_and_a_scope_that_does_not_fit_its_host() {
    let now = Unix::from(SystemTime::now()).as_millis();
    for (clock, code, result, words) in [
        (now + 20_000, 0, "warning", "behind the endpoint's, by the answer's Date; set this machine's clock"),
        (now - 20_000, 0, "warning", "ahead of the endpoint's"),
        (now - 3_660_000, 6, "failed", "1 h "),
    ] {
        let emulator = emulator_with(Clock::manual(clock));
        let run = Shell::of(&emulator).run(&["doctor", "--json"]);
        let (found, detail) = check(&run.json(), "clock");
        assert_eq!((run.code, found.as_str()), (code, result), "{detail}");
        assert!(detail.contains(words), "{detail}");
    }
    // Nothing answers under these names here; the hint needs none of it.
    let emulator = emulator();
    for (key, url, scope, words) in [
        ("STORM_API_URL", "https://acme.api-se.playground.norce.tech", "prod", "documented for the scope playground"),
        ("STORM_API_URL", "https://api.lab.storm.io", "production", "documented for the scope lab"),
    ] {
        let shell =
            Shell::of(&emulator).with(key, url).with("STORM_SCOPE", scope).with("HTTPS_PROXY", "http://127.0.0.1:9");
        let (result, detail) = check(&shell.run(&["doctor", "--json"]).json(), "scope and host");
        assert_eq!(result, "warning");
        assert!(detail.contains(words) && detail.contains(key), "{detail}");
    }
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(Shell::bare().run(&["completions", shell]).ok().contains("storm-token"), "{shell}");
    }
    // Bash completes with its own: subcommands, and their options.
    let complete = |line: &str| {
        let shell = Shell::bare();
        shell.file("completions", shell.run(&["completions", "bash"]).ok());
        let script = format!(
            "source completions; COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _storm__token storm-token \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[*]}}\""
        );
        let output = std::process::Command::new("bash").args(["-c", &script]).current_dir(&shell.home).output();
        output.map(|output| String::from_utf8(output.stdout).unwrap())
    };
    match complete("storm-token do") {
        // As on macOS, which has none of this age.
        Ok(words) if cfg!(target_os = "linux") => {
            assert_eq!(words, "doctor\n");
            assert_eq!(complete("storm-token call --app").unwrap(), "--application-id\n");
            assert_eq!(complete("storm-token completions ba").unwrap(), "bash\n");
        }
        _ => eprintln!("skipped: no bash to complete with"),
    }
    Shell::bare().run(&["completions", "tcsh"]).failed(2, &["tcsh", "bash"]);
}

#[test]
fn each_wrong_variable_is_named_and_ends_with_2() {
    let emulator = emulator();
    for (name, value, words) in [
        ("STORM_TOKEN_URL", "not a url", "white space in it"),
        ("STORM_TOKEN_URL", "http://token.example/", "plain http would show the secret"),
        ("STORM_API_URL", "https://user:pass@api.example", "userinfo"),
        ("STORM_API_URL", "", "empty"),
        ("STORM_SCOPE", "a  b", "join tokens by one space"),
        ("STORM_CLIENT_ID", " a", "white space"),
        ("STORM_CLIENT_SECRET", "Canary+7d1f&secret%0b9c ", "white space"),
        ("STORM_CLIENT_SECRET_FILE", "somewhere", "set twice"),
        ("STORM_APPLICATION_ID", "+7", "not a decimal number; give the number alone, like 1042"),
        ("STORM_CONFIG", "nowhere.toml", "it cannot be read"),
        ("STORM_CACHE_DIR", "/dev/null/tokens", "token store"),
    ] {
        let shell = Shell::of(&emulator).with(name, value);
        shell.run(&["call", "GET", "/a"]).failed(2, &[name, words]);
        let value = shell.run(&["call", "GET", "/a", "--json"]).failed_as_json(2, "configuration");
        assert!(value["error"]["message"].as_str().unwrap().contains(name), "{value}");
    }
    for name in ["STORM_TOKEN_URL", "STORM_SCOPE", "STORM_CLIENT_ID", "STORM_CLIENT_SECRET"] {
        Shell::of(&emulator).without(name).run(&["get"]).failed(2, &[name, "not set"]);
    }
    let nothing = Shell::bare().run(&["get"]);
    nothing.failed(
        2,
        &["STORM_TOKEN_URL", "there could be one at ", "More is missing or wrong: see `storm-token doctor`"],
    );
    let shell = Shell::of(&emulator).without("STORM_API_URL");
    shell.run(&["get"]).ok();
    shell.run(&["call", "GET", "/a"]).failed(2, &["STORM_API_URL", "not set", "api_url"]);
    assert_eq!(emulator.token_requests(), 1);
}

#[test]
fn each_wrong_flag_is_named_and_ends_with_2() {
    let emulator = emulator();
    // What stands for a flag is not repeated.
    let bearer = format!("authorization: Bearer {}", CLIENT.1);
    let shell = Shell::of(&emulator);
    for (arguments, words) in [
        (&["get", "--deadline", "0"][..], &["--deadline", "above zero; give one like 30"][..]),
        (
            &["get", "--deadline", "soon"],
            &["--deadline <SECONDS>: not a number of seconds above zero; give one like 30"],
        ),
        (&["get", "--config", "nowhere.toml"], &["--config", "nowhere.toml", "cannot be read"]),
        (&["get", "--nonsense"], &["--nonsense"]),
        (&["call", "GET"], &["<URL-OR-PATH>"]),
        (&["call", "G T", "/a"], &["<METHOD>", "give one like GET"]),
        (&["call", "GET", "/a", "--application-id", "+7"], &["--application-id", "like 1042"]),
        (&["call", "GET", "/a", "--header", "no colon"], &["--header", "Accept: application/json"]),
        (
            &["call", "GET", "/a", "--header", &bearer],
            &["--header <NAME: VALUE>: Authorization is what", "leave it out"],
        ),
        (&["call", "GET", "/a", "--header", CLIENT.1], &["--header", "Accept: application/json"]),
        (&["call", "GET", "/a", "--body-file", "nowhere"], &["--body-file", "nowhere", "cannot be read"]),
        (&["call", "GET", "https://elsewhere.example/a"], &["request target"]),
        (&["frobnicate"], &["frobnicate"]),
        (&[], &["no command", "--help"]),
    ] {
        shell.run(arguments).failed(2, words);
    }
    shell.run(&["call", "--json", "GET"]).failed_as_json(2, "usage");
    shell.run(&["get", "--header", "--json"]).failed_as_json(2, "usage");
    // There is no such argument, and what somebody gave for it is not repeated.
    shell.run(&["get", &format!("--client-secret={}", CLIENT.1)]).failed(2, &["--client-secret"]);
    assert_eq!(emulator.token_requests(), 0);
}

#[cfg(all(unix, not(target_os = "macos")))]
#[test]
fn a_configuration_file_is_found_in_four_places_and_variables_win() {
    let emulator = emulator();
    let text = |scope: &str| {
        format!(
            "token_url = '{}'\napi_url = '{}'\nscope = '{scope}'\nclient_id = 'shop'\nclient_secret_file = 'secret'\napplication_id = 7",
            emulator.token_url(),
            emulator.api_url()
        )
    };
    let shell = Shell::bare();
    for folder in ["flag", "variable", ".config/storm-auth", "xdg/storm-auth"] {
        shell.file(&format!("{folder}/config.toml"), text("playground"));
        shell.file(&format!("{folder}/secret"), format!("{}\r\n", CLIENT.1));
    }
    let used = |shell: &Shell, arguments: &[&str]| {
        let report = shell.run(&[&["doctor", "--json"], arguments].concat()).json();
        check(&report, "configuration file").1
    };
    assert!(
        shell.run(&["call", "GET", "/a"]).ok().contains("\"applicationId\":7"),
        "the path of the secret is relative to the file"
    );
    assert!(used(&shell, &[]).ends_with(".config/storm-auth/config.toml"));
    let home = shell.home.clone();
    let at = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let shell = shell.with("XDG_CONFIG_HOME", &at("xdg"));
    assert!(used(&shell, &[]).ends_with("xdg/storm-auth/config.toml"));
    let shell = shell.with("STORM_CONFIG", "variable/config.toml");
    assert_eq!(used(&shell, &[]), "variable/config.toml");
    assert_eq!(used(&shell, &["--config", "flag/config.toml"]), "flag/config.toml");
    assert_eq!(emulator.token_requests(), 1, "they are the same settings");

    let shell = shell.with("STORM_APPLICATION_ID", "9");
    assert!(shell.run(&["call", "GET", "/a"]).ok().contains("\"applicationId\":9"));
    shell.file("variable/config.toml", text("prod"));
    shell.run(&["get"]).failed(3, &["invalid_scope"]);
    shell.with("STORM_SCOPE", "playground").run(&["get"]).ok();
}

#[test]
fn each_wrong_key_is_named_with_the_file_and_ends_with_2() {
    let emulator = emulator();
    for (line, words) in [
        ("application_id = 'Canary+7d1f'", &["application_id in the configuration file", "like 1042"][..]),
        ("budget = 3", &["budget in the configuration file", "per_minute"]),
        ("caller_deadline = 'Canary+7d1f'", &["caller_deadline in the configuration file"]),
        (
            "client_secret = 'Canary+7d1f&secret%0b9c'",
            &["client_secret in the configuration file", "client_secret_file"],
        ),
        ("applicationid = 7", &["line 2", "unknown field `applicationid`", "application_id"]),
        ("egress = Canary+7d1f", &["line 2"]),
        ("egress = 'Canary+7d1f", &["line 2"]),
        ("client_secret", &["line 2"]),
    ] {
        let shell = Shell::of(&emulator).without("STORM_APPLICATION_ID");
        shell.file("storm.toml", format!("# a comment\n{line}\n"));
        shell.run(&["get", "--config", "storm.toml"]).failed(2, &[words, &["storm.toml"]].concat());
    }
    assert_eq!(emulator.token_requests(), 0);
}

#[test]
fn a_secret_that_is_set_nowhere_is_not_asked_for_without_a_terminal() {
    let emulator = emulator();
    let shell = Shell::of(&emulator).without("STORM_CLIENT_SECRET");
    let run = shell.feed(&["get"], &format!("{}\n", CLIENT.1));
    run.failed(2, &["STORM_CLIENT_SECRET", "STORM_CLIENT_SECRET_FILE", "client_secret_file"]);
    assert!(!run.err.contains("Client secret:"), "{}", run.err);
    assert_eq!(emulator.token_requests(), 0);
}

#[test]
fn r58_r59_nothing_shows_the_secret_and_only_what_was_asked_for_shows_the_token() {
    let emulator = emulator();
    let shell = Shell::of(&emulator).with("RUST_LOG", "trace").with("RUST_BACKTRACE", "full");
    let token = shell.run(&["get"]).ok();
    let token = token.trim_end();
    let all = [
        &["get", "--verbose"][..],
        &["call", "GET", "/a", "--verbose", "--include"],
        &["call", "GET", "/a", "--json"],
        &["inspect", "--verbose"],
        &["inspect", "--json"],
        &["status", "--verbose"],
        &["doctor", "--verbose"],
        &["doctor", "--json"],
    ];
    for arguments in all {
        let mut run = shell.run(arguments);
        assert_eq!(run.code, 0, "{}", run.err);
        if arguments[0] == "get" {
            run.out.clear();
        }
        run.shows_no_secret();
        run.shows_nothing_of(token);
    }
    // What goes wrong says no more: a server that repeats what it was sent, an API that is not there.
    let echo = format!(r#"{{"error":"invalid_client","error_description":"no {} {token}"}}"#, CLIENT.1);
    emulator.fail(Endpoint::Token, Fault::json(400, echo));
    emulator.fail(Endpoint::Api, Fault::Outage);
    for arguments in all {
        let arguments = [arguments, &["--no-cache"]].concat();
        shell.run(&arguments).shows_no_secret();
    }
    for (path, bytes) in shell.files() {
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            !CLIENT.1.as_bytes().windows(8).any(|part| text.contains(std::str::from_utf8(part).unwrap())),
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_reader_that_goes_is_no_failure() {
    let emulator = emulator();
    // More than any pipe holds.
    emulator.fail(Endpoint::Api, Fault::answer(200, &[], vec![b'a'; 4 * 1024 * 1024]));
    let shell = Shell::of(&emulator);
    let mut child =
        shell.command(&["call", "GET", "/a"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
    assert!(shell.run(&["status"]).ok().contains("shared until"), "and the token is kept");
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_ends_with_6() {
    let emulator = emulator();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Shell::of(&emulator).command(&["get"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(String::from_utf8(output.stderr).unwrap().contains("standard output cannot be written"));
}

#[test]
fn verbose_tells_what_happens() {
    let emulator = emulator();
    let shell = Shell::of(&emulator);
    assert!(shell.run(&["get", "-v"]).err.contains("token granted until"));
    assert!(shell.run(&["get", "-v"]).err.contains("token of another process taken"));
}

#[test]
fn help_has_the_exit_statuses_and_every_setting() {
    let shell = Shell::bare().with("COLUMNS", "80");
    let text = shell.run(&["--help"]).ok();
    for word in ["Exit status:", "STORM_CACHE_DIR", "STORM_CONFIG", "--no-cache", "throttled", "NO_COLOR"] {
        assert!(text.contains(word), "{word}");
    }
    for variable in [
        "STORM_TOKEN_URL ",
        "STORM_API_URL ",
        "STORM_SCOPE ",
        "STORM_CLIENT_ID ",
        "STORM_CLIENT_SECRET ",
        "STORM_CLIENT_SECRET_FILE ",
        "STORM_CLIENT_SECRET_NEXT ",
        "STORM_CLIENT_SECRET_NEXT_FILE ",
        "STORM_APPLICATION_ID ",
    ] {
        assert!(text.contains(&format!("\n  {variable}")), "{variable}");
    }
    // All keys that there are stand in what is said to one that there is not, and the secret's is refused.
    shell.file("wrong.toml", "nonsense = 7");
    let error = shell.run(&["get", "--config", "wrong.toml"]).err;
    let keys: Vec<_> = error.split('`').skip(3).step_by(2).filter(|key| *key != "client_secret").collect();
    assert!(keys.contains(&"norce") && keys.contains(&"danger_allow_http"), "{error}");
    for key in keys {
        assert!(text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == key), "{key}");
    }
    for command in ["get", "call", "inspect", "status", "doctor", "completions"] {
        let text = shell.run(&[command, "--help"]).ok();
        assert!(text.contains("Usage: storm-token"), "{command}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(Shell::bare().run(&["--version"]).ok().starts_with("storm-token 0."));
}

/// A hundred processes behind the documented limit as a real nginx keeps it.
#[test]
fn r72_cli_nginx_a_hundred_calls_cost_one_slot() {
    let behind = Emulator::builder().client(CLIENT.0, CLIENT.1, &["playground"]).limiter(Limiter::none()).start();
    let Some(nginx) = Nginx::in_front_of(&behind) else { return };
    let shell = Shell::of(&behind).with("STORM_TOKEN_URL", &nginx.token_url());
    for _ in 0..100 {
        shell.run(&["call", "GET", "/products"]).ok();
    }
    assert_eq!((behind.token_requests(), behind.api_requests()), (1, 100));

    // Without a folder each process takes a slot, and the first that finds none says when to come back.
    let alone = || shell.run(&["get", "--no-cache", "--deadline", "1"]);
    let runs: Vec<_> = std::iter::repeat_with(alone).take(40).collect();
    let (granted, throttled): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run.code == 0);
    assert!(granted.len() >= 20, "{}", granted.len());
    assert!(!throttled.is_empty());
    for run in throttled {
        run.failed(4, &["the next token can be had at 20"]);
    }
    assert_eq!(shell.run(&["call", "GET", "/products"]).code, 0, "the shared token is still good");
}
