//! Instructions of a cached call.
//!
//! `cargo bench -p storm-auth-tests --bench instructions` runs itself under callgrind, and compares with `instructions.txt`, which
//! `… -- --record` writes. It fails where a figure differs from the record by more than 5 %, or is above the bound.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program of one page, for people")]

mod support;

use std::fmt::Write as _;
use std::hint::black_box;
use std::process::ExitCode;

use storm_auth_core::Budget;
use support::adapter::{Adapter, Reqwest, Ureq};
use support::report::{Report, figure};
use support::server::Server;
use support::{arguments, bench, callgrind, client, ready, settings};

/// What a cached call may cost.
const BOUND: f64 = 190.0;

/// How far a figure may be from the record.
const TOLERANCE: f64 = 0.05;

/// Enough of them that whatever differs between two starts is lost in the division.
const CALLS: u64 = 200_000;

const MANY_KEYS: usize = 10_000;

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

fn main() -> ExitCode {
    let arguments = arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["calls", case, url, keys, number] => {
            calls(case, url, keys.parse().unwrap(), number.parse().unwrap());
            ExitCode::SUCCESS
        }
        _ if callgrind::is_there() => bench(|report| measure(report, arguments.contains(&"--record"))),
        _ => {
            println!("nothing was measured: valgrind is not installed");
            match std::env::var_os("STORM_TESTS_SKIP_NOTHING") {
                Some(_) => ExitCode::FAILURE,
                None => ExitCode::SUCCESS,
            }
        }
    }
}

fn measure(report: &mut Report, record: bool) {
    // Here and not in the run that is counted.
    let server = Server::tokens();
    let recorded = std::fs::read_to_string(RECORD).unwrap_or_default();
    let recorded = |name: &str| -> Option<f64> {
        recorded.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
    };
    let mut new_record =
        String::from("# Instructions of a cached call, written by `cargo bench --bench instructions -- --record`.\n");
    let mut rows = Vec::new();
    for case in ["reqwest header", "reqwest token", "ureq header", "ureq token"] {
        let [one, many] =
            [1, MANY_KEYS].map(|keys| callgrind::per_call(&["calls", case, &server.url(), &keys.to_string()], CALLS));
        writeln!(new_record, "{case}: {one:.0}").unwrap();
        rows.push(vec![
            figure(case),
            figure(format!("{one:.1}")).bound(&format!("at most {BOUND}"), one <= BOUND),
            figure(format!("{many:.1}")).bound("the same", (many - one).abs() < 1.0),
            match recorded(case) {
                _ if record => figure("written"),
                None => figure("none").bound("-- --record", false),
                Some(then) => {
                    let change = one / then - 1.0;
                    figure(format!("{then}, now {:+.1} %", change * 100.0))
                        .bound("within 5 %", change.abs() <= TOLERANCE)
                }
            },
        ]);
    }
    if record {
        std::fs::write(RECORD, new_record).unwrap();
    }
    report.table("Instructions of a cached call", &["", "one key", "one of 10,000 keys", "record"], rows);
}

/// The run that is counted. The other keys have no token: a request for each would take all of the time.
fn calls(case: &str, url: &str, keys: usize, number: u64) {
    let settings = settings(url).budget(Budget::unlimited());
    let (over, what) = case.split_once(' ').unwrap();
    if over == Reqwest::NAME {
        let tokens = Reqwest::new(settings).tokens;
        let _others: Vec<_> = (1..keys).map(|number| tokens.for_credentials(client(number))).collect();
        Reqwest::wait(tokens.token()).unwrap();
        match what {
            "header" => repeat(number, || drop(black_box(ready(tokens.header()).unwrap()))),
            _ => repeat(number, || drop(black_box(ready(tokens.token()).unwrap()))),
        }
    } else {
        let tokens = Ureq::new(settings).tokens;
        let _others: Vec<_> = (1..keys).map(|number| tokens.for_credentials(client(number))).collect();
        tokens.token().unwrap();
        match what {
            "header" => repeat(number, || drop(black_box(tokens.header().unwrap()))),
            _ => repeat(number, || drop(black_box(tokens.token().unwrap()))),
        }
    }
}

#[inline(always)]
fn repeat(number: u64, call: impl Fn()) {
    (0..number).for_each(|_| call());
}
