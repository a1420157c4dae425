//! storm-auth beside other ways to get a token, measured in one run on loopback. README.md says how to read the figures.

mod allocations;
mod cached;
mod callers;
mod cold;
mod contender;
mod endpoint;
mod instructions;
mod outage;
mod plot;
mod refresh;
mod report;

use std::path::PathBuf;

use contender::{ALL, Candidate, Error};
use report::Results;

const HELP: &str = "\
Measures storm-auth beside other ways to get a token, on loopback.

storm-auth-peers [--rounds N] [--cached-only] [--instructions] [--json FILE] [--svg FILE]
  --rounds N       slices of each contender's cached call (101)
  --cached-only    leave out what takes minutes: refresh, outage and cold start
  --instructions   count the instructions of a cached call too; needs valgrind
  --json FILE      write the figures
  --svg FILE       write the plot of the cached call

storm-auth-peers --only NAME --calls N
  makes N cached calls of one contender, for callgrind: --toggle-collect='*counted_calls*'";

const ROUNDS: usize = 101;

#[derive(Default)]
struct Arguments {
    rounds: Option<usize>,
    cached_only: bool,
    instructions: bool,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    only: Option<&'static Candidate>,
    calls: u64,
}

fn main() -> Result<(), Error> {
    let Some(arguments) = parse()? else {
        println!("{HELP}");
        return Ok(());
    };
    if let Some(candidate) = arguments.only {
        instructions::only(candidate, arguments.calls)?;
        // The emulator may be making a key still, which takes long under valgrind and is for nobody.
        std::process::exit(0);
    }
    let results = measure(&arguments)?;
    if let Some(path) = arguments.json {
        std::fs::write(path, format!("{:#}\n", results.object()))?;
    }
    if let Some(path) = arguments.svg {
        std::fs::write(path, plot::svg(&results)?)?;
    }
    Ok(())
}

/// Measures, and prints each table as soon as it is there.
fn measure(arguments: &Arguments) -> Result<Results, Error> {
    let candidates: Vec<_> = ALL.iter().collect();
    let cached = cached::measure(&candidates, arguments.rounds.unwrap_or(ROUNDS).max(1))?;
    let mut results = Results { cached, ..Results::default() };
    if arguments.instructions {
        results.instructions = instructions::measure(&candidates)?;
    }
    println!("{}", results.cached_table());
    if !arguments.cached_only {
        results.refresh = refresh::measure(&candidates)?;
        println!("{}", results.refresh_table());
        results.outage = outage::measure(&candidates)?;
        println!("{}", results.outage_table());
        results.cold = cold::measure(&candidates)?;
        println!("{}", results.cold_table());
    }
    Ok(results)
}

/// `None` when help is wanted.
fn parse() -> Result<Option<Arguments>, Error> {
    use lexopt::prelude::*;

    let mut arguments = Arguments { calls: 10_000, ..Arguments::default() };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("rounds") => arguments.rounds = Some(parser.value()?.parse()?),
            Long("cached-only") => arguments.cached_only = true,
            Long("instructions") => arguments.instructions = true,
            Long("json") => arguments.json = Some(parser.value()?.into()),
            Long("svg") => arguments.svg = Some(parser.value()?.into()),
            Long("only") => {
                let name = parser.value()?.string()?;
                let names = || ALL.iter().map(|candidate| candidate.name).collect::<Vec<_>>().join(", ");
                let unknown = || format!("no contender is called {name}; there are {}", names());
                arguments.only = Some(Candidate::named(&name).ok_or_else(unknown)?);
            }
            Long("calls") => arguments.calls = parser.value()?.parse()?,
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(arguments))
}
