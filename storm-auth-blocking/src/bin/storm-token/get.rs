//! `storm-token get`

use std::process::ExitCode;
use std::time::SystemTime;

use serde::Serialize;
use storm_auth_blocking::{Token, TokenProvider, Unix};
use zeroize::Zeroizing;

use crate::args::{Common, Get};
use crate::failure::Failure;
use crate::{output, settings};

pub(crate) fn run(common: &Common, get: &Get) -> Result<ExitCode, Failure> {
    let tokens = settings::builder(common)?.build_tokens()?;
    let result = tokens.token().map_err(Failure::from).and_then(|token| print(common, get, &tokens, &token));
    settings::close(&tokens);
    result.map(|()| ExitCode::SUCCESS)
}

fn print(common: &Common, get: &Get, tokens: &TokenProvider, token: &Token) -> Result<(), Failure> {
    if common.json {
        return output::print(&json(tokens, token));
    }
    let prefix = if get.header { "Authorization: Bearer " } else { "" };
    output::print(Zeroizing::new(format!("{prefix}{}\n", token.expose())).as_bytes())
}

/// The members of RFC 6749 §5.1, and the time at which `expires_in` ends.
#[derive(Serialize)]
struct Shown<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_at: String,
    expires_in: u64,
    /// Where it is not the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
}

fn json(tokens: &TokenProvider, token: &Token) -> Zeroizing<Vec<u8>> {
    let (text, expires_at) = (token.expose(), token.expires_at());
    let asked = tokens.key_status().and_then(|key| key.scope);
    let shown = Shown {
        access_token: text,
        token_type: "Bearer",
        expires_at: expires_at.to_string(),
        expires_in: expires_at.since(Unix::from(SystemTime::now())).as_secs(),
        scope: token.granted_scope().filter(|granted| asked.as_deref() != Some(granted)),
    };
    // Room for a token of which each character is escaped: what a `Vec` leaves behind when it grows is not wiped.
    let mut json = Zeroizing::new(Vec::with_capacity(2 * text.len() + 1024));
    serde_json::to_writer_pretty(&mut *json, &shown).expect("texts and numbers have JSON, and memory takes it");
    json.push(b'\n');
    json
}
