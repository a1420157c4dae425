//! The guide's tables against the code: each text that tells a person what to do, and each number.

#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use storm_auth_core::machine::TokenRequest;
use storm_auth_core::store::MAX_RECORD;
use storm_auth_core::wire::{challenge, response, retry_after};
use storm_auth_core::{Budget, Credentials, Policy};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn page(name: &str) -> String {
    fs::read_to_string(workspace().join("storm-auth-core/docs").join(name)).unwrap()
}

/// The Rust files under a folder, without comments and without the tests at their end.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // A program tells about itself in its help.
            if !path.ends_with("bin") && !path.ends_with("cli") {
                found.append(&mut sources(&path));
            }
        } else {
            let source = fs::read_to_string(&path).unwrap();
            let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            found.push((path, lines.collect::<Vec<_>>().join("\n")));
        }
    }
    found
}

/// The string literals of a source, as they read.
fn literals(source: &str) -> Vec<String> {
    let source = source.replace("'\"'", "' '");
    let (mut found, mut rest) = (Vec::new(), &*source);
    while let Some(start) = rest.find('"') {
        let (mut text, mut characters) = (String::new(), rest[start + 1..].char_indices());
        let mut end = rest.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    end = start + 1 + at + 1;
                    break;
                }
                '\\' => match characters.next() {
                    // A line that goes on below.
                    Some((_, '\n')) => {
                        let gap = characters.as_str().chars().take_while(|gap| gap.is_whitespace()).count();
                        characters.by_ref().take(gap).for_each(drop);
                    }
                    Some((_, escaped)) => text.push(escaped),
                    None => {}
                },
                _ => text.push(character),
            }
        }
        found.push(text);
        rest = &rest[end..];
    }
    found
}

/// What is wrong stands before the semicolon in every text for people, and what to do behind it.
#[test]
fn every_text_that_tells_what_to_do_stands_on_the_page_of_errors() {
    let (page, mut texts) = (page("errors.md"), 0);
    for member in ["storm-auth-core", "storm-auth-reqwest", "storm-auth-blocking", "storm-auth-store"] {
        for (path, source) in sources(&workspace().join(member).join("src")) {
            for text in literals(&source).iter().filter(|text| text.contains("; ")) {
                texts += 1;
                let (problem, _) = text.split_once("; ").unwrap();
                // What stands in braces is filled in.
                for part in problem.split(['{', '}']).step_by(2).map(|part| part.trim_matches([' ', ':', ','])) {
                    assert!(
                        page.contains(part),
                        "errors.md has no row for {part:?}, of {text:?} in {}",
                        path.display()
                    );
                }
            }
        }
    }
    assert!(texts > 60, "only {texts} texts were found");
}

#[test]
fn literals_are_read_as_they_are_meant() {
    let source = "f(\"one; \\\"two\\\"\", '\"', \"three; \\\n        four\");";
    assert_eq!(literals(source), ["one; \"two\"", "three; four"]);
}

#[track_caller]
fn says(page: &str, text: &str) {
    assert!(page.contains(text), "defaults.md does not say {text:?}");
}

#[test]
fn the_public_numbers_are_those_on_the_page_of_defaults() {
    let (page, policy) = (page("defaults.md"), Policy::default());
    let percent = |share: f64| (share * 100.0).round();
    let kib = |bytes: usize| bytes / 1024;
    assert_eq!(policy.budget, Budget::per_minute(3, 20));
    assert_eq!(policy.serve_stale_on_error, Duration::ZERO);
    for text in [
        "3 a minute and a burst of 20 more: 21 at once, then one per 20 s".to_owned(),
        format!("from {} % of the life on", percent(policy.refresh_early)),
        format!("from {} % on, for {} lifetimes", percent(policy.refresh_late), Policy::LATE_LIVES),
        format!("for {} lifetimes after a failure", Policy::WARY_LIVES),
        format!("up to {} s can be used to survive an outage", Policy::STALE_CAP.as_secs()),
        format!("A caller's deadline | {} s", policy.caller_deadline.as_secs()),
        format!("A connection, TLS included | {} s", TokenRequest::CONNECT_PATIENCE.as_secs()),
        format!("An answer of the token endpoint | {} KiB", kib(response::MAX_RESPONSE_BODY)),
        format!("An access token | {} KiB", kib(response::MAX_ACCESS_TOKEN)),
        format!("Longest lifetime | {} h", response::MAX_LIFETIME.as_secs() / 3_600),
        format!("No lifetime in the answer | {} s", response::DEFAULT_LIFETIME.as_secs()),
        format!("obeyed, at most {} s", retry_after::MAX_RETRY_AFTER.as_secs()),
        format!("{} fields, {} KiB of each", challenge::MAX_FIELDS, kib(challenge::MAX_FIELD)),
        format!("A secret's file | {} KiB", kib(Credentials::LONGEST_FILE)),
        format!("A stored record | {} KiB", kib(MAX_RECORD)),
    ] {
        says(&page, &text);
    }
}

/// They are nobody's to name, so each is looked up where it is set.
#[test]
fn the_other_numbers_are_those_on_the_page_of_defaults() {
    let page = page("defaults.md");
    let numbers = [
        ("core/src/machine/flight.rs", "LONGEST_SKEW: Duration = Duration::from_secs(10)", "2 % of it, 10 s at most"),
        ("core/src/machine/flight.rs", "SKEW_DIVISOR: u32 = 50", "2 % of it, 10 s at most"),
        (
            "core/src/machine/flight.rs",
            "FRESH: Duration = Duration::from_secs(60)",
            "younger than 60 s | no third one for 60 s",
        ),
        ("core/src/machine/flight.rs", "FRESH_REJECTIONS: u32 = 2", "Two rejections of tokens"),
        ("core/src/machine/flight.rs", "ABORTS_REPEATED: u32 = 2", "repeated at once, twice"),
        ("core/src/machine/flight.rs", "REJECTED_KEPT: usize = 8", "Rejected tokens that are remembered | 8 per key"),
        ("core/src/machine/budget.rs", "KEY_BURST: u32 = 2", "Requests of one key | 3 at once, then one per 20 s"),
        ("core/src/machine/backoff.rs", "FIRST: Duration = Duration::from_secs(5)", "0 to 5 s, doubling to 120 s"),
        ("core/src/machine/backoff.rs", "LONGEST: Duration = Duration::from_secs(120)", "0 to 5 s, doubling to 120 s"),
        (
            "core/src/machine/backoff.rs",
            "LONGEST_THROTTLE: Duration = Duration::from_secs(300)",
            "nothing else came, up to 300 s",
        ),
        (
            "core/src/machine/backoff.rs",
            "PROBES: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)]",
            "after 60 s, then every 300 s",
        ),
        ("core/src/machine/renewal.rs", "LOOKS: Duration = Duration::from_secs(10)", "every 10 s while a refused"),
        ("core/src/machine/renewal.rs", "PATIENCE: Duration = Duration::from_secs(600)", "given up after 600 s"),
        (
            "core/src/machine/backoff.rs",
            "FIRST_STORE_PAUSE: Duration = Duration::from_secs(1)",
            "1 s, doubling to 60 s, half of it spread",
        ),
        (
            "core/src/machine/backoff.rs",
            "LONGEST_STORE_PAUSE: Duration = Duration::from_secs(60)",
            "1 s, doubling to 60 s, half of it spread",
        ),
        (
            "core/src/machine/backoff.rs",
            "SHORTEST: Duration = Duration::from_secs(60)",
            "60 s, doubling to 420 s while nothing answers",
        ),
        (
            "core/src/machine/backoff.rs",
            "LONGEST: Duration = Duration::from_secs(420)",
            "60 s, doubling to 420 s while nothing answers",
        ),
        ("core/src/machine/backoff.rs", "HELD: Duration = Duration::from_secs(10)", "held (10 s or longer)"),
        ("core/src/machine/sharing.rs", "PATIENCE: Duration = Duration::from_secs(1)", "that a call waits for | 1 s"),
        (
            "core/src/machine/sharing.rs",
            "ERRAND_PATIENCE: Duration = Duration::from_secs(5)",
            "One that nobody waits for | 5 s",
        ),
        (
            "core/src/machine/sharing.rs",
            "TTL: Duration = Duration::from_secs(10)",
            "A lease | 10 s, renewed after a third of it",
        ),
        (
            "core/src/machine/sharing.rs",
            "LOOKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)]",
            "every 125 to 250 ms while callers wait, every 1 to 2 s otherwise",
        ),
        ("core/src/machine/sharing.rs", "LONGEST_FOLLOWED: Duration = Duration::from_secs(120)", "after 120 to 240 s"),
        (
            "core/src/machine/sharing.rs",
            "LONGEST_REST: Duration = Duration::from_secs(300)",
            "A lease rests after a failure | 300 s at most",
        ),
        ("core/src/machine/sharing.rs", "SPREAD: f64 = 0.9", "the first 90 % of what is left"),
        ("core/src/machine/output.rs", "MOST_EVENTS: usize = 256", "Events that nobody takes | 256 are kept"),
        ("core/src/wire/response.rs", "SCOPE: usize = 1024", "A scope that was granted | 1,024 bytes"),
        (
            "core/src/driver/cell.rs",
            "COARSE_LAG: Duration = Duration::from_millis(16)",
            "A coarse clock may lag | 16 ms",
        ),
        ("core/src/driver/cell.rs", "LANES: usize = 8", "one per core, 8 at most"),
        ("blocking/src/transport.rs", "HEAD: usize = 32 * 1024", "A head, over ureq | 32 KiB"),
        ("reqwest/src/client.rs", "connect_timeout(Duration::from_secs(10))", "its connection 10 s"),
        ("blocking/src/client.rs", "timeout_connect(Some(Duration::from_secs(10)))", "its connection 10 s"),
        (
            "store/src/file.rs",
            "LONGEST_WAIT: Duration = Duration::from_millis(500)",
            "a wait for another writer | 500 ms",
        ),
        (
            "store/src/redis.rs",
            "PATIENCE: Duration = Duration::from_millis(800)",
            "`RedisStore`: one operation | 800 ms",
        ),
    ];
    for (file, code, text) in numbers {
        let source = fs::read_to_string(workspace().join(format!("storm-auth-{file}"))).unwrap();
        assert!(source.contains(code), "{file} has no `{code}` any more: correct the page of defaults, and this list");
        says(&page, text);
    }
}

/// A promise by its number, a test by its file: what the page of threats rests on is there.
#[test]
fn what_the_page_of_threats_names_is_there() {
    let (page, promised) =
        (page("threats.md"), fs::read_to_string(workspace().join("storm-auth-tests/REQUIREMENTS.md")).unwrap());
    let mut promises = 0;
    for word in page.split(|letter: char| !letter.is_ascii_alphanumeric()) {
        if let Some(number) = word.strip_prefix('R').filter(|number| number.parse::<u32>().is_ok()) {
            promises += 1;
            assert!(
                promised.contains(&format!("\n- R{number}: ")),
                "threats.md names R{number}, and REQUIREMENTS.md does not"
            );
        }
    }
    assert!(promises > 30, "only {promises} were found");
    for file in page.split('`').filter(|name| name.starts_with("tests/")) {
        let there = ["storm-auth-tests", "storm-auth-core"].map(|member| workspace().join(member).join(file).exists());
        assert!(there.contains(&true), "threats.md names {file}, which is nowhere");
    }
}
