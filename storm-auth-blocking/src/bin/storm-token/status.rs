//! `storm-token status`

use std::process::ExitCode;

use serde_json::json;
use storm_auth_blocking::Unix;
use storm_auth_blocking::core::store::{Lease, Seen};

use crate::args::Common;
use crate::failure::{Failure, Kind};
use crate::{output, settings};

pub(crate) fn run(common: &Common) -> Result<ExitCode, Failure> {
    let config = settings::load(common)?.check()?;
    let Some(store) = settings::store(common)? else {
        let alone = "--no-cache: without a shared folder there is nothing to show; leave it out";
        return Err(Failure::new(Kind::Usage, alone));
    };
    let now = settings::now();
    let seen = Seen::in_store(&config, &store, now)
        .map_err(|error| Failure::new(Kind::Unavailable, format!("token store: {error}")))?;
    let (token_until, refresh_at) = (seen.key.token_until, seen.key.refresh_at);
    let budget = config.policy.budget.to_string();
    if common.json {
        let text = |at: Option<Unix>| at.map(|at| at.to_string());
        output::print_json(&json!({
            "token_until": text(token_until),
            "refresh_at": text(refresh_at),
            "gate_closed_until": text(seen.gate_closed_until),
            "budget": budget,
            "lease": match seen.lease {
                Lease::Free | Lease::Mine => "free",
                Lease::Taken => "taken",
                Lease::Lapsed => "lapsed",
                Lease::Resting(_) => "resting",
            },
            "lease_rests_until": match seen.lease {
                Lease::Resting(rest) => text(Some(now.unix + rest)),
                _ => None,
            },
            "refused": seen.is_refused(),
            "failures": seen.failures,
            "fault": seen.fault.map(|fault| fault.to_string()),
            "store": store.folder().display().to_string(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let when = |at: Unix| match at > now.unix {
        true => format!("{at} (in {})", output::span(at.since(now.unix))),
        false => format!("{at} (now)"),
    };
    let token = match (token_until, refresh_at) {
        (Some(until), Some(refresh)) => {
            format!("shared until {}\n        refreshed by the first call from {}", when(until), when(refresh))
        }
        (Some(until), None) => format!("shared until {}", when(until)),
        (None, _) => "none that is valid; the next call requests one".to_owned(),
    };
    let gate = seen
        .gate_closed_until
        .map_or_else(|| "open".to_owned(), |until| format!("closed by a throttle until {}", when(until)));
    let lease = match seen.lease {
        Lease::Free | Lease::Mine => "free".to_owned(),
        Lease::Taken => "another process is requesting a token".to_owned(),
        Lease::Lapsed => "a process that does not come to an end has it".to_owned(),
        Lease::Resting(rest) if seen.is_refused() => {
            let until = when(now.unix + rest);
            format!(
                "refused: nobody requests before {until}\n        check the client id, the client secret and the scope"
            )
        }
        Lease::Resting(rest) => format!("after a failure nobody requests before {}", when(now.unix + rest)),
    };
    let mut text = format!("token   {token}\ngate    {gate}\nbudget  {budget}\nlease   {lease}\n");
    if seen.failures > 0 {
        text.push_str(&format!("failed  {} in a row so far\n", seen.failures));
    }
    if let Some(fault) = seen.fault {
        text.push_str(&format!("record  ignored: {fault}\n"));
    }
    text.push_str(&format!("folder  {}\n", store.folder().display()));
    output::print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
