//! `storm-token get`

use std::process::ExitCode;

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
    let text = token.expose();
    if common.json {
        return output::print(json(tokens, token).as_bytes());
    }
    let prefix = if get.header { "Authorization: Bearer " } else { "" };
    output::print(Zeroizing::new(format!("{prefix}{text}\n")).as_bytes())
}

fn json(tokens: &TokenProvider, token: &Token) -> Zeroizing<String> {
    let expires_at = token.expires_at();
    let expires_in = expires_at.since(Unix::from(std::time::SystemTime::now())).as_secs();
    let asked = tokens.key_status().and_then(|key| key.scope);
    let other = token.granted_scope().filter(|granted| asked.as_deref() != Some(granted));
    let scope = other.map_or_else(String::new, |scope| format!(",\n  \"scope\": {}", serde_json::json!(scope)));
    // A token is visible ASCII, and these two are all that JSON escapes of it.
    let text = Zeroizing::new(token.expose().replace('\\', "\\\\"));
    let text = Zeroizing::new(text.replace('"', "\\\""));
    Zeroizing::new(format!(
        "{{\n  \"access_token\": \"{}\",\n  \"token_type\": \"Bearer\",\n  \"expires_at\": \"{expires_at}\",\n  \"expires_in\": \
         {expires_in}{scope}\n}}\n",
        *text
    ))
}
