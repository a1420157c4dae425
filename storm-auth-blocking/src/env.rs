//! Settings from the environment.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};

use storm_auth_core::{ConfigError, Credentials, Settings};

use crate::builder::Builder;

/// Reads `STORM_CLIENT_ID`, and `STORM_CLIENT_SECRET` or the file that `STORM_CLIENT_SECRET_FILE` names.
///
/// # Errors
/// The variable that is missing or malformed, with what to set.
pub fn credentials() -> Result<Credentials, ConfigError> {
    Credentials::from_variables(|name| std::env::var_os(name), read)
}

/// Reads all settings: `STORM_TOKEN_URL`, `STORM_API_URL`, `STORM_SCOPE`, the [`credentials`], and, where it is set,
/// `STORM_APPLICATION_ID`.
///
/// # Errors
/// The variable that is missing or malformed, with what to set.
pub fn builder() -> Result<Builder, ConfigError> {
    Ok(Settings::from_variables(|name| std::env::var_os(name), read)?.into())
}

/// A secret's file, one byte further than the longest that is taken: the path may name something endless.
fn read(path: OsString) -> io::Result<Vec<u8>> {
    let mut secret = Vec::with_capacity(4 * 1024);
    File::open(path)?.take(Credentials::LONGEST_FILE as u64 + 1).read_to_end(&mut secret)?;
    Ok(secret)
}
