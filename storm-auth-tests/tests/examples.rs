//! The examples, run as a person runs them: as programs, with arguments and `STORM_*` variables.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
    time::SystemTime,
};

use storm_auth_tests::emulator::{Emulator, Endpoint, Fault, Limiter, LimiterKind, Nginx};

/// Every example: its package, its name, and a path of it once it was built.
static EXAMPLES: LazyLock<[Example; 5]> = LazyLock::new(|| {
    [
        Example::find("storm-auth-reqwest", "quickstart"),
        Example::find("storm-auth-blocking", "quickstart_blocking"),
        Example::find("storm-auth-core", "custom_runtime"),
        Example::find("storm-auth-core", "custom_runtime_mio"),
        Example::find("storm-auth-core", "custom_runtime_smol"),
    ]
});

const VARIABLES: [&str; 7] = [
    "STORM_TOKEN_URL",
    "STORM_API_URL",
    "STORM_CLIENT_ID",
    "STORM_CLIENT_SECRET",
    "STORM_CLIENT_SECRET_FILE",
    "STORM_SCOPE",
    "STORM_APPLICATION_ID",
];
const SCENES: [&str; 5] = [
    "\n1  The first token\n",
    "\n2  Calls from the cache\n",
    "\n3  A cold start: 200 ",
    "\n4  A revoked token heals\n",
    "\n5  A token grows old, and nobody waits for the next one\n",
];
/// Each character that some encoder forgets.
const SECRET: &str = "S3cret with space+plus&amp=%/~\"x";

#[derive(Debug)]
struct Example {
    package: &'static str,
    name: &'static str,
    program: PathBuf,
}

impl Example {
    /// `cargo test --workspace` has built the examples before it runs a test, so they stand beside this one. Where one is missing or
    /// old, because this package was tested alone, they are built here.
    fn find(package: &'static str, name: &'static str) -> Self {
        let program = beside_this_test(name);
        if modified(&program) < newest_source(package) {
            build();
        }
        Self { package, name, program }
    }

    /// Runs it with these arguments and these variables alone.
    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Run<'_> {
        let output = self.command(arguments, variables).output().expect("the example starts");
        Run::new(self, output)
    }

    fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(&self.program);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
        command
    }
}

/// What came of a run.
struct Run<'a> {
    example: &'a Example,
    code: Option<i32>,
    out: String,
    err: String,
}

impl<'a> Run<'a> {
    fn new(example: &'a Example, output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("an example writes UTF-8");
        let run = Self { example, code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!run.err.contains("panicked"), "{run}");
        run
    }

    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        assert!(words.iter().all(|word| self.err.contains(word)), "{words:?} in {self}");
        self
    }

    #[track_caller]
    fn never_says(self, words: &[&str]) -> Self {
        assert!(!words.iter().any(|word| self.err.contains(word) || self.out.contains(word)), "{words:?} in {self}");
        self
    }

    /// The five scenes in their order, and the number of requests that each took.
    #[track_caller]
    fn shows(self) -> Self {
        let starts: Vec<_> = SCENES.iter().map(|scene| self.out.find(scene)).collect();
        assert!(starts.iter().all(Option::is_some) && starts.is_sorted(), "{self}");
        let wire = |line: &str| line.trim_start().strip_prefix("wire ").map(|count| count.trim().to_owned());
        let wire: Vec<_> = self.out.lines().skip_while(|line| !line.starts_with('1')).filter_map(wire).collect();
        assert_eq!(wire, ["1 request", "no request", "1 request", "1 request", "1 request"], "{self}");
        assert!(self.out.contains("200 served"), "{self}");
        self
    }
}

impl std::fmt::Display for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { example: Example { package, name, .. }, code, out, err } = self;
        write!(f, "{package}: {name}, exit {code:?}\n--- stdout\n{out}\n--- stderr\n{err}")
    }
}

/// The variables that lead to `emulator`.
struct Variables(Vec<(&'static str, String)>);

impl Variables {
    fn of(emulator: &Emulator) -> Self {
        Self(vec![
            ("STORM_TOKEN_URL", emulator.token_url()),
            ("STORM_API_URL", emulator.api_url()),
            ("STORM_CLIENT_ID", emulator.client_id().to_owned()),
            ("STORM_CLIENT_SECRET", emulator.client_secret()),
            ("STORM_SCOPE", emulator.scope()),
            ("STORM_APPLICATION_ID", emulator.application_id().to_string()),
        ])
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self = self.without(name);
        self.0.push((name, value.to_owned()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.0.retain(|(known, _)| *known != name);
        self
    }

    fn run<'a>(&self, example: &'a Example, arguments: &[&str]) -> Run<'a> {
        let variables: Vec<_> = self.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        example.run(arguments, &variables)
    }
}

#[test]
fn without_variables_the_show_runs_against_an_emulator() {
    for example in EXAMPLES.iter() {
        let run = example.run(&[], &[]).exits(0).shows().never_says(&["Bearer", "eyJ", "emulated-secret"]);
        // An emulator can be switched off besides.
        if example.name.starts_with("quickstart") {
            let outage = run.out.find("\n6  The token endpoint goes down, and nobody notices\n");
            assert!(
                run.out[outage.expect("the sixth scene")..].contains("1,000 calls, all served from the cache"),
                "{run}"
            );
        }
    }
}

#[test]
fn the_show_runs_against_a_server_that_it_has_no_hand_in() {
    for example in EXAMPLES.iter() {
        let emulator = Emulator::builder().client("shop", SECRET, &["playground"]).start();
        Variables::of(&emulator).run(example, &[]).exits(0).shows().never_says(&["Bearer", "eyJ", "S3cret"]);
        assert_eq!(emulator.token_requests(), 4, "{example:?}");
    }
}

/// It has no server: a day is over in an instant, and only the long outage is felt.
#[test]
fn the_day_in_virtual_time_is_told_hour_by_hour() {
    let example = Example::find("storm-auth-core", "custom_runtime_virtual");
    let run = example.run(&[], &[]).exits(0);
    let hours: Vec<Vec<u32>> = (run.out.lines())
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .filter(|numbers: &Vec<_>| numbers.len() == 4)
        .collect();
    assert_eq!(hours.len(), 24, "{run}");
    for hour in hours {
        let [number, requests, rounds, left_out] = hour[..] else { panic!("{run}") };
        assert_eq!((rounds + left_out, left_out > 0, requests > 10), (60, number == 11, number == 11), "{run}");
    }
}

/// Its tests run by themselves.
#[test]
fn the_shop_asks_the_warehouse() {
    let example = Example::find("storm-auth-tests", "shop");
    let run = example.run(&[], &[]).exits(0).never_says(&["Bearer", "eyJ", "emulated-secret"]);
    assert!(run.out.starts_with("product 17: 7 on hand"), "{run}");
}

/// The last scene moves the show's clock, and not that of a limiter elsewhere, which has nothing left for the refresh then.
#[test]
fn r26_the_show_goes_on_where_the_limiter_has_nothing_left_for_the_refresh() {
    for example in EXAMPLES.iter() {
        let limiter = Limiter::new(LimiterKind::Nginx(Nginx { per_minute: 3, burst: 2, nodelay: true }));
        let emulator = Emulator::builder().limiter(limiter).start();
        let run = Variables::of(&emulator).run(example, &[]).exits(0).shows();
        assert!(run.out.contains("no new token yet"), "{run}");
        assert_eq!(emulator.token_requests(), 4, "{run}");
    }
}

#[test]
fn the_show_goes_on_where_the_api_has_nothing_at_its_root_or_is_down() {
    for example in EXAMPLES.iter() {
        let emulator = Emulator::start();
        emulator.fail(Endpoint::Api, Fault::status(404));
        let run = Variables::of(&emulator).run(example, &[]).exits(0).shows();
        assert!(run.out.contains("404 Not Found"), "{run}");
        emulator.fail(Endpoint::Api, Fault::Outage);
        let run = Variables::of(&emulator).run(example, &[]).exits(0).shows();
        assert!(run.out.contains("STORM_API_URL"), "{run}");
    }
}

#[test]
fn once_prints_status_and_body_of_one_get() {
    for (example, chunked) in EXAMPLES.iter().flat_map(|example| [(example, false), (example, true)]) {
        let emulator = Emulator::builder().client("shop", SECRET, &["playground"]).chunked(chunked).start();
        let run = Variables::of(&emulator).run(example, &["--once", "/products?top=3"]).exits(0);
        assert!(run.out.starts_with("200 OK\n{") && run.out.ends_with("}\n"), "{run}");
        for part in [r#""method":"GET""#, r#""path":"/products""#, r#""query":"top=3""#, r#""applicationId":1042"#] {
            assert!(run.out.contains(part), "{part} in {run}");
        }
        assert_eq!(run.err, "", "{run}");
        assert_eq!((emulator.token_requests(), emulator.api_requests()), (1, 1), "{example:?}");
    }
}

#[test]
fn once_needs_neither_a_path_nor_variables() {
    for example in EXAMPLES.iter() {
        let run = example.run(&["--once"], &[]).exits(0);
        assert!(run.out.starts_with("200 OK\n") && run.out.contains(r#""path":"/""#), "{run}");
    }
}

#[test]
fn once_fails_for_an_answer_that_is_not_2xx() {
    for example in EXAMPLES.iter() {
        let emulator = Emulator::start();
        emulator.fail(Endpoint::Api, Fault::html(404));
        let run = Variables::of(&emulator).run(example, &["--once", "/nothing"]).exits(1);
        assert!(run.out.starts_with("404 Not Found\n<html>"), "{run}");
        assert!(run.err.contains("check the path and STORM_API_URL"), "{run}");
        emulator.heal(Endpoint::Api);
        let run = Variables::of(&emulator).without("STORM_APPLICATION_ID").run(example, &["--once"]).exits(1);
        assert_eq!(run.out, "500 Internal Server Error\n", "{run}");
        assert!(run.err.contains("STORM_APPLICATION_ID"), "{run}");
        emulator.revoke_all();
        emulator.fail(Endpoint::Api, Fault::unauthorized("Bearer error=\"invalid_token\""));
        let before = emulator.token_requests();
        let run = Variables::of(&emulator).run(example, &["--once"]).exits(1);
        assert_eq!(run.out, "401 Unauthorized\n", "{run}");
        assert!(run.err.contains("STORM_SCOPE"), "{run}");
        assert_eq!(emulator.token_requests() - before, 2, "one replay: {run}");
    }
}

#[test]
fn once_says_that_the_server_refuses_the_client() {
    for example in EXAMPLES.iter() {
        let emulator = Emulator::start();
        let variables = Variables::of(&emulator).with("STORM_CLIENT_SECRET", "wr0ng+secret");
        let run = variables.run(example, &["--once"]).exits(1).says(&["invalid_client"]).never_says(&["wr0ng"]);
        assert_eq!(run.out, "", "{run}");
        assert_eq!((emulator.token_requests(), emulator.api_requests()), (1, 0), "{example:?}");
    }
}

/// It does not wait for it either: a caller at a prompt is told when to come back.
#[test]
fn once_says_until_when_it_is_throttled() {
    for example in EXAMPLES.iter() {
        let emulator = Emulator::start();
        let retry_after = Fault::answer(429, &[("retry-after", "120")], "");
        for fault in [Fault::html(429), retry_after] {
            emulator.fail(Endpoint::Token, fault);
            let before = emulator.token_requests();
            let run = Variables::of(&emulator).run(example, &["--once"]).exits(1).says(&["rate limited", "T", "Z; "]);
            assert_eq!(run.out, "", "{run}");
            assert_eq!(emulator.token_requests() - before, 1, "{run}");
        }
    }
}

#[test]
fn once_says_what_cannot_be_reached() {
    for example in EXAMPLES.iter() {
        let emulator = Emulator::start();
        let gone = Emulator::start();
        let (token_url, api_url) = (gone.token_url(), gone.api_url());
        drop(gone);
        let run = Variables::of(&emulator).with("STORM_TOKEN_URL", &token_url).run(example, &["--once"]);
        run.exits(1).says(&["no connection to the token endpoint"]);
        let run = Variables::of(&emulator).with("STORM_API_URL", &api_url).run(example, &["--once"]);
        run.exits(1).says(&["API call failed", "STORM_API_URL"]);
    }
}

#[test]
fn a_missing_variable_is_named_before_any_request() {
    let emulator = Emulator::start();
    for example in EXAMPLES.iter() {
        for name in VARIABLES.into_iter().filter(|name| !name.ends_with("_FILE") && !name.ends_with("_APPLICATION_ID"))
        {
            for arguments in [&["--once"][..], &[]] {
                let run = Variables::of(&emulator).without(name).run(example, arguments);
                run.exits(1).says(&[name, "not set"]).never_says(&["emulated-secret"]);
            }
        }
    }
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (0, 0));
}

/// R4: plain http is taken for loopback because it stays on this machine; a proxy that the environment names would read the
/// secret and the bearer.
#[test]
fn r4_no_proxy_of_the_environment_sees_plain_http() {
    let emulator = Emulator::start();
    for example in EXAMPLES.iter() {
        let variables = Variables::of(&emulator).with("http_proxy", "http://127.0.0.1:1");
        let variables = variables.with("HTTP_PROXY", "http://127.0.0.1:1").with("ALL_PROXY", "http://127.0.0.1:1");
        variables.run(example, &["--once"]).exits(0);
    }
}

#[test]
fn a_malformed_variable_is_named_before_any_request() {
    let emulator = Emulator::start();
    for example in EXAMPLES.iter() {
        for (name, value) in [
            ("STORM_TOKEN_URL", ""),
            ("STORM_TOKEN_URL", "identity"),
            ("STORM_TOKEN_URL", "http://identity.example/connect/token"),
            ("STORM_TOKEN_URL", "http://id:hush@127.0.0.1/"),
            ("STORM_API_URL", "ftp://127.0.0.1/"),
            ("STORM_API_URL", "http://127.0.0.1/?hush"),
            ("STORM_CLIENT_ID", ""),
            ("STORM_CLIENT_SECRET", " hush"),
            ("STORM_CLIENT_SECRET", "hu\tsh"),
            ("STORM_CLIENT_SECRET_FILE", "/set/beside/the/secret"),
            ("STORM_SCOPE", "a\"b"),
            ("STORM_APPLICATION_ID", "+1042"),
            ("STORM_APPLICATION_ID", ""),
        ] {
            let run = Variables::of(&emulator).with(name, value).run(example, &["--once"]);
            run.exits(1).says(&[name, ";"]).never_says(&["hush", "emulated-secret"]);
        }
        let run =
            Variables::of(&emulator).without("STORM_CLIENT_SECRET").with("STORM_CLIENT_SECRET_FILE", "/no/such/file");
        run.run(example, &["--once"]).exits(1).says(&["STORM_CLIENT_SECRET_FILE", "no such file"]);
    }
    assert_eq!((emulator.token_requests(), emulator.api_requests()), (0, 0));
}

#[test]
fn the_secret_may_stand_in_a_file_with_a_line_end() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("secret-{}", std::process::id()));
    for (example, end) in EXAMPLES.iter().flat_map(|example| ["", "\n", "\r\n"].map(|end| (example, end))) {
        fs::write(&path, format!("{SECRET}{end}")).unwrap();
        let emulator = Emulator::builder().client("shop", SECRET, &["playground"]).start();
        let variables = Variables::of(&emulator).without("STORM_CLIENT_SECRET");
        let variables = variables.with("STORM_CLIENT_SECRET_FILE", path.to_str().expect("a path in UTF-8"));
        variables.run(example, &["--once"]).exits(0);
    }
    fs::remove_file(path).unwrap();
}

#[test]
fn arguments_that_are_not_known_get_the_usage() {
    for example in EXAMPLES.iter() {
        for arguments in [&["--twice"][..], &["--once", "/", "/"], &["--once", "--twice"], &["products"]] {
            let run = example.run(arguments, &[]).exits(2).says(&["usage: ", "--once [PATH]"]);
            assert_eq!(run.out, "", "{run}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_causes_no_panic() {
    for example in EXAMPLES.iter() {
        let mut child = example
            .command(&[], &[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the example starts");
        drop(child.stdout.take());
        Run::new(example, child.wait_with_output().expect("the example ends")).exits(1);
    }
}

/// What this library looks like in other people's stacks. Each shows a token that serves three calls, and one that was revoked.
#[test]
fn the_integrations_run_against_an_emulator() {
    let sent_again = "200 OK\n200 OK\n200 OK\ntoken requests: 1\nrevoked, and sent again: 200 OK\ntoken requests: 2\n";
    let sent_once =
        "200 OK\n200 OK\n200 OK\ntoken requests: 1\nrevoked: 401 Unauthorized\nand then: 200 OK\ntoken requests: 2\n";
    for (package, name, out) in [
        ("storm-auth-reqwest", "reqwest_middleware", sent_again),
        ("storm-auth-reqwest", "tower_layer", sent_again),
        ("storm-auth-blocking", "ureq_middleware", sent_once),
    ] {
        let example = Example::find(package, name);
        let run = example.run(&[], &[]).exits(0);
        assert_eq!((&*run.out, &*run.err), (out, ""), "{run}");
    }
}

/// Builds the examples with the features that `cargo test --workspace` builds them with. Cargo holds no lock while it runs tests.
fn build() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace", "--examples"]).current_dir(workspace());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    assert!(cargo.status().expect("cargo starts").success(), "the examples do not build");
}

fn beside_this_test(example: &str) -> PathBuf {
    let mut path = env::current_exe().expect("a test has a path");
    path.pop();
    path.pop();
    path.push("examples");
    path.push(format!("{example}{}", env::consts::EXE_SUFFIX));
    path
}

/// When a source was last changed that an example of this package is made of.
fn newest_source(package: &str) -> SystemTime {
    let folders = [package, "storm-auth-core", "storm-auth-tests"].map(|package| workspace().join(package).join("src"));
    let mut folders = [&folders[..], &[workspace().join(package).join("examples")]].concat();
    let mut newest = SystemTime::UNIX_EPOCH;
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).expect("a crate has sources").flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => newest = newest.max(modified(&path)),
            }
        }
    }
    newest
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands in its workspace")
}
