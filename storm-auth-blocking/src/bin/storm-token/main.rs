//! `storm-token`: tokens and authorised calls of Norce Commerce (Storm) from a shell.
//!
//! All decisions about tokens are the library's; what stands here is arguments, files and text.

#![forbid(unsafe_code)]

mod args;
mod call;
mod doctor;
mod failure;
mod get;
mod inspect;
mod jwt;
mod output;
mod settings;
mod status;
mod voice;

use std::error::Error as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser as _};

use crate::args::{Args, Command};
use crate::failure::{Failure, Kind};

/// What a panic says could hold anything; where it happened is enough for a report.
fn tell_of_panics_where_they_are() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |place| format!(" at {}:{}", place.file(), place.line()));
        output::tell(&format!("storm-token: a bug{place}; please report it"));
    }));
}

fn main() -> ExitCode {
    tell_of_panics_where_they_are();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // Help, or the version. A reader that has gone has seen enough.
            let _ = output::print(error.to_string().as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let wants_json = std::env::args_os().any(|argument| argument == "--json");
            let text = match error.kind() {
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    "no command; give one of get, call, inspect, status, doctor and completions, or --help".to_owned()
                }
                // The value is not repeated: a header may hold a token.
                ErrorKind::ValueValidation => match (error.get(ContextKind::InvalidArg), error.source()) {
                    (Some(ContextValue::String(argument)), Some(problem)) => format!("{argument}: {problem}"),
                    _ => error.to_string(),
                },
                _ => error.to_string(),
            };
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            return Failure::new(Kind::Usage, text).report(wants_json);
        }
    };
    let result = match &args.command {
        Command::Get(get) => get::run(&args.common, get),
        Command::Call(call) => call::run(&args.common, call),
        Command::Inspect(inspect) => inspect::run(&args.common, inspect),
        Command::Status => status::run(&args.common),
        Command::Doctor => doctor::run(&args.common),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "storm-token", &mut script);
            // A name with a hyphen comes in two spellings in bash's (clap-rs/clap#6421), and no subcommand is completed then.
            let script = String::from_utf8_lossy(&script).replace("storm__subcmd__token", "storm__token");
            output::print(script.as_bytes()).map(|()| ExitCode::SUCCESS)
        }
    };
    args.common.voice.hear_out();
    result.unwrap_or_else(|failure| failure.report(args.common.json))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// No way to a panic is known, so this makes one, in a process of its own.
    #[test]
    fn r59_a_panic_tells_where_it_is_and_not_what_it_says() {
        const SCENE: &str = "STORM_TOKEN_TEST_PANICS";
        const CANARY: &str = "cAn4ry-of-a-secret";
        if std::env::var_os(SCENE).is_some() {
            super::tell_of_panics_where_they_are();
            panic!("a server says {CANARY}");
        }
        let test = std::thread::current().name().expect("a test has a name").to_owned();
        let child = Command::new(std::env::current_exe().expect("it runs"))
            .args(["--exact", &test, "--nocapture"])
            .env(SCENE, "1")
            .env("RUST_BACKTRACE", "full")
            .output()
            .expect("it starts");
        let told = [child.stdout, child.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("storm-token: a bug at ") && told.contains("main.rs:"), "{told}");
        assert!(!told.contains(&CANARY[..8]), "{told}");
    }
}
