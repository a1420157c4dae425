//! Settings from the environment.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use storm_auth_core::{ConfigError, Credentials, Settings};

use crate::builder::Builder;

/// Reads `STORM_CLIENT_ID`, and `STORM_CLIENT_SECRET` or the file that `STORM_CLIENT_SECRET_FILE` names; where they are set,
/// `STORM_CLIENT_SECRET_NEXT` or `STORM_CLIENT_SECRET_NEXT_FILE` give the [second secret](Credentials::with_next).
///
/// # Errors
/// The variable that is missing or malformed, with what to set.
pub fn credentials() -> Result<Credentials, ConfigError> {
    Credentials::from_variables(|name| std::env::var_os(name), read)
}

/// Reads all settings: `STORM_TOKEN_URL`, `STORM_API_URL`, `STORM_SCOPE`, the [`credentials`], and, where it is set,
/// `STORM_APPLICATION_ID`. Credentials that are in a file are read again as [`Builder::credentials_file`] says.
///
/// # Errors
/// The variable that is missing or malformed, with what to set.
pub fn builder() -> Result<Builder, ConfigError> {
    let settings = Settings::from_variables(|name| std::env::var_os(name), read)?;
    Ok(Builder::from(settings).read_again(credentials))
}

/// Reads the settings of a configuration file under the same variables: each that is set takes the place of its key, and none has
/// to be. Credentials that are in a file are read again as [`Builder::credentials_file`] says.
///
/// ```no_run
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let config = toml::from_str(&std::fs::read_to_string("storm.toml")?)?;
/// let storm = storm_auth_blocking::env::builder_over(&config)?.build()?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// The first variable or key that is missing or malformed, with what to set.
#[cfg(feature = "serde")]
pub fn builder_over(config: &storm_auth_core::FileSettings) -> Result<Builder, ConfigError> {
    configured(config, |name| std::env::var_os(name))
}

/// A builder from a configuration file under these variables.
#[cfg(feature = "serde")]
pub(crate) fn configured(
    config: &storm_auth_core::FileSettings,
    variable: fn(&str) -> Option<std::ffi::OsString>,
) -> Result<Builder, ConfigError> {
    let builder = Builder::from(config.under_variables(variable, read).finish()?);
    let config = config.clone();
    Ok(builder.read_again(move || config.under_variables(variable, read).finish_credentials()))
}

/// As [`builder_over`], with each setting as it was found: for a program that tells its user all that is wrong.
#[cfg(feature = "serde")]
pub fn draft_over(config: &storm_auth_core::FileSettings) -> storm_auth_core::config_file::Draft {
    config.under_variables(|name| std::env::var_os(name), read)
}

/// A secret's file, one byte further than the longest that is taken: the path may name something endless.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut secret = Vec::with_capacity(4 * 1024);
    File::open(path)?.take(Credentials::LONGEST_FILE as u64 + 1).read_to_end(&mut secret)?;
    Ok(secret)
}
