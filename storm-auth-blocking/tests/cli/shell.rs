//! A shell with nothing in its environment but what a test says.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use storm_auth_tests::emulator::Emulator;

/// The client id and the secret of all tests: eight bytes of the secret in a row are what nobody may see.
pub(crate) const CLIENT: (&str, &str) = ("shop", "Canary+7d1f&secret%0b9c");

/// A home of its own, and variables. Removed when it is dropped.
pub(crate) struct Shell {
    pub(crate) home: PathBuf,
    variables: Vec<(String, String)>,
}

/// What a run left behind.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Shell {
    /// No settings at all.
    pub(crate) fn bare() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        Self { home, variables: Vec::new() }
    }

    /// The settings that fit an emulator, in variables.
    pub(crate) fn of(emulator: &Emulator) -> Self {
        Self::bare()
            .with("STORM_TOKEN_URL", &emulator.token_url())
            .with("STORM_API_URL", &emulator.api_url())
            .with("STORM_SCOPE", &emulator.scope())
            .with("STORM_CLIENT_ID", emulator.client_id())
            .with("STORM_CLIENT_SECRET", &emulator.client_secret())
            .with("STORM_APPLICATION_ID", "1042")
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self
    }

    /// Writes a file into the home.
    pub(crate) fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_storm-token"));
        command.args(arguments).env_clear().current_dir(&self.home).stdin(Stdio::null());
        // Windows finds no socket library without it.
        command.envs(std::env::var_os("SystemRoot").map(|root| ("SystemRoot", root)));
        command.envs([("HOME", &self.home), ("LOCALAPPDATA", &self.home), ("APPDATA", &self.home)]);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        Run::from(self.command(arguments).output().unwrap())
    }

    /// The same with something on standard input.
    pub(crate) fn feed(&self, arguments: &[&str], input: &str) -> Run {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Not all of them read it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Run::from(child.wait_with_output().unwrap())
    }

    /// Everything that lies in the home now, by name.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn all(folder: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { all(&path, found) } else { found.push((path.clone(), fs::read(path).unwrap())) }
            }
        }
        let mut found = Vec::new();
        all(&self.home, &mut found);
        found
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Run {
    /// Standard output, when all went well and nothing was said.
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {:?} {:?}", self.out, self.err))
    }

    /// Ended with this status and said so, on standard error alone.
    pub(crate) fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.out.as_str()), (code, ""), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {:?}", self.err);
        }
        self.shows_no_secret();
    }

    /// Ended with this status and said so as JSON, on standard output alone.
    pub(crate) fn failed_as_json(&self, code: i32, kind: &str) -> Value {
        assert_eq!((self.code, self.err.as_str()), (code, ""), "{}", self.out);
        let value = self.json();
        assert_eq!(value["error"]["kind"], kind, "{value}");
        assert!(value["error"]["message"].is_string(), "{value}");
        self.shows_no_secret();
        value
    }

    pub(crate) fn shows_no_secret(&self) {
        self.shows_nothing_of(CLIENT.1);
    }

    /// No eight bytes in a row of it.
    pub(crate) fn shows_nothing_of(&self, secret: &str) {
        for part in secret.as_bytes().windows(8) {
            let part = std::str::from_utf8(part).unwrap();
            assert!(!self.out.contains(part) && !self.err.contains(part), "{part} is in {:?} {:?}", self.out, self.err);
        }
    }
}
