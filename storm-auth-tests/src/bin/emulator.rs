//! The emulator as a program: starts it, prints what to paste into a shell, and runs until it is killed.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use lexopt::prelude::*;
use storm_auth_tests::emulator::{
    APPLICATION_ID, Builder, CLIENT_ID, CLIENT_SECRET, Emulator, KeySize, Limiter, SCOPE,
};

const HELP: &str = "\
An emulator of Norce's token endpoint and API on 127.0.0.1.

Usage: emulator [options]

  --port <n>            the token endpoint's port (default: 8080; 0: any free one)
  --api-port <n>        the API's port (default: 8081; 0: any free one)
  --ttl <seconds>       lifetime of the tokens (default: 600)
  --limiter <kind>      what stands before the token endpoint (default: nginx)
                          nginx        3 requests a minute with a burst of 20 more
                          nginx-delay  the same, holding early requests
                          nginx-503    the same as nginx, refusing with 503
                          nginx-date   the same as nginx, with a date in Retry-After
                          apim         Azure API Management: 15 requests in any 300 s, Retry-After in seconds
                          aspnet       AspNetCoreRateLimit, stacked: 21 requests in 7 minutes, 200 in an hour, refused
                                       ones included; Retry-After in seconds
                          lump         three tokens each minute, a bucket of 21
                          none         no limit
  --reject-status <n>   status of a request that the limiter refuses (default: the limiter's own)
  --leeway <seconds>    how long past its expiry the API takes a token, at most 300 (default: 0)
  --client-id <id>      the client (default: storm-auth)
  --client-secret <s>   its secret (default: emulated-secret)
  --scope <scope>       a scope that it may have; may be given more than once (default: playground)
  --application-id <n>  the application id to print (default: 1042)
  --key-bits <n>        2048 or 4096, the size of the key that signs tokens (default: 4096)
  --chunked             send responses in chunks
  -h, --help            print this

It prints the variables that a client of it needs, as lines for a shell.
";

fn main() -> ExitCode {
    let outcome =
        arguments(lexopt::Parser::from_env()).map_err(|error| error.to_string()).and_then(|start| match start {
            None => print(HELP).map_err(|error| error.to_string()),
            Some(builder) => run(builder).map_err(|error| error.to_string()),
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when this fails too.
            let _ = writeln!(io::stderr(), "emulator: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The emulator that the command line asks for, or `None` for the help.
fn arguments(mut parser: lexopt::Parser) -> Result<Option<Builder>, lexopt::Error> {
    let mut builder = Emulator::builder().token_port(8080).api_port(8081).key_size(KeySize::Rsa4096);
    let (mut id, mut secret, mut scopes) = (CLIENT_ID.to_owned(), CLIENT_SECRET.to_owned(), Vec::new());
    let mut application_id = APPLICATION_ID;
    while let Some(argument) = parser.next()? {
        builder = match argument {
            Long("port") => builder.token_port(parser.value()?.parse()?),
            Long("api-port") => builder.api_port(parser.value()?.parse()?),
            Long("ttl") => builder.lifetime(Duration::from_secs(parser.value()?.parse()?)),
            Long("limiter") => builder.limiter(parser.value()?.parse_with(|kind| match Limiter::named(kind) {
                Some(limiter) => Ok(limiter),
                None => Err(format!("one of {}", Limiter::NAMES.join(", "))),
            })?),
            Long("reject-status") => {
                builder.reject_status(parser.value()?.parse_with(|status| match status.parse() {
                    Ok(status @ 200..=599) => Ok(status),
                    _ => Err("a status from 200 to 599"),
                })?)
            }
            Long("leeway") => builder.leeway(Duration::from_secs(parser.value()?.parse()?)),
            Long("key-bits") => builder.key_size(parser.value()?.parse_with(|bits| match bits {
                "2048" => Ok(KeySize::Rsa2048),
                "4096" => Ok(KeySize::Rsa4096),
                _ => Err("2048 or 4096"),
            })?),
            Long("chunked") => builder.chunked(true),
            Long("client-id") => {
                id = parser.value()?.string()?;
                builder
            }
            Long("client-secret") => {
                secret = parser.value()?.string()?;
                builder
            }
            Long("scope") => {
                scopes.push(parser.value()?.string()?);
                builder
            }
            Long("application-id") => {
                application_id = parser.value()?.parse()?;
                builder
            }
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        };
    }
    if scopes.is_empty() {
        scopes.push(SCOPE.to_owned());
    }
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    Ok(Some(builder.client(&id, &secret, &scopes).application_id(application_id)))
}

fn run(builder: Builder) -> io::Result<()> {
    let emulator = builder.try_start().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let hint = format!("{error}; give other ports with --port and --api-port, or 0 for any free one");
            io::Error::new(error.kind(), hint)
        }
        _ => error,
    })?;
    // Whoever reads the variables may start at once.
    emulator.prepare();
    let mut exports = String::new();
    for (name, value) in [
        ("STORM_TOKEN_URL", emulator.token_url()),
        ("STORM_API_URL", emulator.api_url()),
        ("STORM_CLIENT_ID", emulator.client_id().to_owned()),
        ("STORM_CLIENT_SECRET", emulator.client_secret()),
        ("STORM_SCOPE", emulator.scope()),
        ("STORM_APPLICATION_ID", emulator.application_id().to_string()),
    ] {
        exports.push_str(&format!("export {name}='{}'\n", value.replace('\'', r"'\''")));
    }
    print(&exports)?;
    loop {
        std::thread::park();
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
