//! `storm-token inspect`

use std::io::{self, Read as _};
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::json;
use storm_auth_blocking::Unix;
use zeroize::Zeroizing;

use crate::args::{Common, Inspect};
use crate::failure::{Failure, Kind};
use crate::jwt::Jwt;
use crate::{output, settings};

/// The longest token that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

pub(crate) fn run(common: &Common, inspect: &Inspect) -> Result<ExitCode, Failure> {
    let result = if let Some(given) = &inspect.stdin {
        if given != "-" {
            // It may be a token, and is not repeated.
            let shown =
                "only - may stand there; give the token on standard input, since others see a command's arguments";
            return Err(Failure::new(Kind::Usage, shown));
        }
        show(common, &from_stdin()?, None)
    } else {
        let tokens = settings::builder(common)?.build_tokens()?;
        let result = tokens
            .token()
            .map_err(Failure::from)
            .and_then(|token| show(common, token.expose(), Some(token.expires_at())));
        settings::close(&tokens);
        result
    };
    result.map(|()| ExitCode::SUCCESS)
}

/// A token, be it as `get --header` prints it.
fn from_stdin() -> Result<Zeroizing<String>, Failure> {
    let wrong = |problem: &str| Failure::new(Kind::Usage, format!("standard input: {problem}"));
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 * 1024));
    let read = io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes);
    read.map_err(|error| wrong(&format!("it cannot be read: {error}")))?;
    if bytes.len() as u64 > LONGEST {
        return Err(wrong("longer than 64 KiB; give one token"));
    }
    let text = core::str::from_utf8(&bytes).map_err(|_| wrong("not UTF-8; give one token"))?;
    let text = text.trim();
    let text = text.strip_prefix("Authorization:").map_or(text, str::trim);
    let token = text.strip_prefix("Bearer ").map_or(text, str::trim);
    match token {
        "" => Err(wrong("no token in it; give one, such as with `storm-token get | storm-token inspect -`")),
        _ if token.contains(char::is_whitespace) => Err(wrong("more than one word; give one token")),
        _ => Ok(Zeroizing::new(token.to_owned())),
    }
}

/// `served_until` is when this library stops to hand the token out, where it is one of its own.
fn show(common: &Common, token: &str, served_until: Option<Unix>) -> Result<(), Failure> {
    let now = Unix::from(SystemTime::now());
    let jwt = Jwt::decode(token);
    let time = |claim: &str| Some(Unix::from_millis(jwt.as_ref()?.seconds(claim)?.saturating_mul(1_000)));
    let expires_at = time("exp").or(served_until);
    if common.json {
        return output::print_json(&json!({
            "verified": false,
            "header": jwt.as_ref().map(|jwt| &jwt.header),
            "claims": jwt.as_ref().map(|jwt| &jwt.claims),
            "expires_at": expires_at.map(|at| at.to_string()),
            "expires_in": expires_at.map(|at| at.since(now).as_secs()),
            "served_until": served_until.map(|at| at.to_string()),
        }));
    }
    let mut text = match &jwt {
        Some(jwt) => format!(
            "Not verified: this is what the token says, and nobody has checked its signature here.\nheader {:#}\nclaims {:#}\n",
            jwt.header, jwt.claims
        ),
        None => "Not verified: the token is opaque. It is no JWT, so it says nothing; that is no fault.\n".to_owned(),
    };
    let mut line = |what: &str, at: Unix| {
        let when = if at > now {
            format!("in {}", output::span(at.since(now)))
        } else {
            format!("{} ago", output::span(now.since(at)))
        };
        text.push_str(&format!("{what} {at} ({when})\n"));
    };
    if let Some(at) = time("nbf").filter(|at| *at > now) {
        line("not valid before", at);
    }
    if let Some(at) = time("exp") {
        line(if at > now { "expires" } else { "expired" }, at);
    }
    if let Some(at) = served_until {
        line("handed out until", at);
    }
    let lines: Vec<_> = text.lines().map(output::plain).collect();
    output::print(format!("{}\n", lines.join("\n")).as_bytes())
}
