//! Settings from a configuration file (feature `serde`): in TOML, YAML, JSON, or whatever else serde reads and tells apart texts,
//! numbers and tables by itself.
//!
//! The core reads no file and no variable: an adapter or a program hands it [`FileSettings`], and closures for the rest.
//!
//! | key | value |
//! |---|---|
//! | `norce` | a tenant of Norce Commerce: `{ tenant = "acme", region = "se", stage = "playground" }`, or `"stage"`, `"production"` |
//! | `environment` | one of Storm's: `"storm-lab"`, `"storm-qa"` or `"storm-production"` |
//! | `token_url` | the token endpoint, in place of the environment's |
//! | `api_url` | the base URL of the API, or a list: paths are appended to the first one |
//! | `scope` | the scope, in place of the environment's |
//! | `client_id` | the client id |
//! | `client_secret_file` | the path of a file that holds the secret; a secret in the configuration file itself is refused |
//! | `client_secret_next_file` | the same for a [second secret](Credentials::with_next), while one takes the other's place; an empty file names none |
//! | `application_id` | the application id, a number |
//! | `application_header` | the header that carries it, `ApplicationId` unless it is set |
//! | `egress` | a label of the address that token requests leave by |
//! | `group` | the name of the limiter group in logs and metrics |
//! | `budget` | `{ per_minute = 3, burst = 20 }`, or `"unlimited"` |
//! | `caller_deadline` | how long a call waits for a token, in seconds |
//! | `danger_allow_http` | a host, or a list of hosts, that plain http is taken for |
//!
//! One variable takes the place of one key, where [variables count](FileSettings::under_variables); `STORM_CLIENT_SECRET` and
//! `STORM_CLIENT_SECRET_FILE` both take that of `client_secret_file`, and so do those of the second secret.

use core::cell::Cell;
use core::fmt;
use core::time::Duration;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use http::HeaderName;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::config::{Settings, into_text, next_from_variables};
use crate::credentials::{ClientSecret, Credentials, Scope};
use crate::environment::{ApiUrl, Environment, HttpHosts, Stage, TokenUrl};
use crate::error::{ConfigError, Field};
use crate::machine::Budget;

/// What a configuration file says, before it is checked.
///
/// What is read fails for syntax and for keys that there are not. A value that is wrong is told by [`settings`](Self::settings), by
/// its key, and never shown: it may be a secret in the wrong place. `Debug` shows the keys alone.
///
/// ```
/// use storm_auth_core::config_file::FileSettings;
///
/// let config: FileSettings = toml::from_str(
///     r#"
///     norce = { tenant = "acme", region = "se", stage = "playground" }
///     client_id = "shop"
///     client_secret_file = "/run/secrets/storm"
///     application_id = 1042
///     "#,
/// )?;
/// let settings = config.settings(|_path| Ok(b"S3cret\n".to_vec()))?;
/// assert_eq!(settings.check()?.key.scope().as_str(), Some("playground"));
///
/// let config: FileSettings = toml::from_str("environment = 'storm-lab'\nclient_id = 7")?;
/// let error = config.settings(|_path| Ok(b"S3cret\n".to_vec())).unwrap_err();
/// assert_eq!(error.to_string(), "client id (client_id in the configuration file): not a text; write it in quotes");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table of settings")]
pub struct FileSettings {
    norce: Option<Given>,
    environment: Option<Given>,
    token_url: Option<Given>,
    api_url: Option<Given>,
    scope: Option<Given>,
    client_id: Option<Given>,
    client_secret_file: Option<Given>,
    client_secret_next_file: Option<Given>,
    /// Where people put it first. It is refused with the way to do it, and not kept.
    client_secret: Option<IgnoredAny>,
    application_id: Option<Given>,
    application_header: Option<Given>,
    egress: Option<Given>,
    group: Option<Given>,
    budget: Option<Given>,
    caller_deadline: Option<Given>,
    danger_allow_http: Option<Given>,
    #[serde(skip)]
    folder: PathBuf,
}

/// Where a setting comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Source {
    /// A variable of the environment, by its name.
    Variable(&'static str),
    /// A key of the configuration file.
    Key(&'static str),
    /// The preset that this key of the configuration file chooses.
    Preset(&'static str),
    /// The program itself, such as from a person who typed it.
    Program,
    /// It is not set.
    Unset,
}

/// One setting as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Found {
    /// The setting.
    pub field: Field,
    /// Where it comes from.
    pub source: Source,
    /// What is wrong with it.
    pub fault: Option<ConfigError>,
}

/// Settings of which each was looked at, whether those before it are right or not.
///
/// ```
/// use storm_auth_core::Field;
/// use storm_auth_core::config_file::{FileSettings, Source};
///
/// let config: FileSettings = toml::from_str("environment = 'storm-lab'\nclient_id = 'shop'")?;
/// let variable = |name: &str| match name {
///     "STORM_CLIENT_SECRET" => Some("S3cret\n".into()),
///     "STORM_SCOPE" => Some("lab  qa".into()),
///     _ => None,
/// };
/// let draft = config.under_variables(variable, |_path| Ok(b"S3cret\n".to_vec()));
/// let wrong: Vec<_> = draft.found().iter().filter(|found| found.fault.is_some()).map(|found| found.field).collect();
/// assert_eq!(wrong, [Field::Scope, Field::ClientSecret]);
/// assert_eq!(draft.found()[0].source, Source::Preset("environment"));
/// assert_eq!(draft.finish().unwrap_err().field(), Field::Scope);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default, Debug)]
pub struct Draft {
    settings: Settings,
    found: Vec<Found>,
    /// The client id, where it is right.
    id: Option<String>,
    /// The second secret, where there is one and it is right.
    next: Option<ClientSecret>,
}

impl FileSettings {
    /// Takes a path in the file to be relative to this folder: the one that the file itself lies in, say. Without it such a path
    /// is relative to where the process works.
    pub fn relative_to(self, folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), ..self }
    }

    /// The file of the client secret, if the configuration file names one.
    pub fn secret_file(&self) -> Option<PathBuf> {
        self.path(&self.client_secret_file, &FIRST)?.ok()
    }

    /// The file of the second secret, if the configuration file names one.
    pub fn next_secret_file(&self) -> Option<PathBuf> {
        self.path(&self.client_secret_next_file, &NEXT)?.ok()
    }

    fn path(&self, given: &Option<Given>, names: &SecretNames) -> Option<Result<PathBuf, ConfigError>> {
        let given = given.as_ref()?.text(names.file_field, names.key);
        Some(given.map(|path| self.folder.join(path)))
    }

    fn find(
        &self,
        given: &Option<Given>,
        names: &SecretNames,
        filled: impl Fn(&str) -> Option<OsString>,
    ) -> Option<FoundSecret> {
        let at = |text, path| At { text: Cell::new(text), path };
        let (field, source, at) = match (filled(names.text), filled(names.file)) {
            (Some(text), path) => (names.field, Source::Variable(names.text), Ok(at(Some(text), path))),
            (None, Some(path)) => (names.file_field, Source::Variable(names.file), Ok(at(None, Some(path)))),
            (None, None) => {
                let path = self.path(given, names)?;
                (names.file_field, Source::Key(names.key), path.map(|path| at(None, Some(path.into()))))
            }
        };
        Some(FoundSecret { field, source, at })
    }

    /// The file's settings alone. `file` reads the file of the client secret; one line ending at its end is not part of the secret.
    ///
    /// # Errors
    /// The first key that is missing or malformed, with what to write.
    pub fn settings(&self, file: impl Fn(OsString) -> io::Result<Vec<u8>>) -> Result<Settings, ConfigError> {
        self.under_variables(|_| None, file).finish()
    }

    /// The file's settings under the `STORM_*` variables of [`Settings::from_variables`]: each that is set takes the place of its key,
    /// and none has to be.
    pub fn under_variables(
        &self,
        variable: impl Fn(&str) -> Option<OsString>,
        file: impl Fn(OsString) -> io::Result<Vec<u8>>,
    ) -> Draft {
        let mut draft = Draft::default();
        let environment = draft.environment(self);
        let hosts = draft.http_hosts(self);
        let lookup = |field, name, key, given: &Option<Given>| match variable(name) {
            Some(value) => Some((Source::Variable(name), into_text(field, value))),
            None => given.as_ref().map(|given| (Source::Key(key), given.text(field, key).map(str::to_owned))),
        };
        // What a wrong environment would have set is not missing.
        let chosen = self.norce.is_some() || self.environment.is_some();
        let preset = environment.as_ref().map(|(key, environment)| (Source::Preset(key), environment));

        let token_url = lookup(Field::TokenUrl, "STORM_TOKEN_URL", "token_url", &self.token_url)
            .or_else(|| preset.map(|(preset, environment)| (preset, Ok(environment.token_url().to_owned()))));
        let unset = "not set; set the variable, or norce, environment or token_url in the configuration file";
        let check = |url: String| TokenUrl::parse(&url, &hosts).map(|_| url);
        if let Some(url) = draft.note(Field::TokenUrl, token_url, check, (!chosen).then_some(unset)) {
            draft.set(|settings| settings.token_url(url));
        }

        let several = match (variable("STORM_API_URL"), &self.api_url) {
            (Some(value), _) => {
                let url = into_text(Field::ApiUrl, value).map(|url| vec![url]);
                Some((Source::Variable("STORM_API_URL"), url))
            }
            (None, Some(given)) => Some((Source::Key("api_url"), given.texts(Field::ApiUrl, "api_url"))),
            (None, None) => preset
                .and_then(|(preset, environment)| environment.api_url().map(|url| (preset, Ok(vec![url.to_owned()])))),
        };
        let check = |urls: Vec<String>| {
            urls.iter().try_for_each(|url| ApiUrl::parse(url, &hosts).map(drop))?;
            Ok(urls)
        };
        if let Some(urls) = draft.note(Field::ApiUrl, several, check, None) {
            draft.set(|settings| urls.into_iter().fold(settings, Settings::api_url));
        }

        let scope = lookup(Field::Scope, "STORM_SCOPE", "scope", &self.scope)
            .or_else(|| preset.map(|(preset, environment)| (preset, Ok(environment.scope().to_owned()))));
        let unset = "not set; set the variable, or norce, environment or scope in the configuration file";
        if let Some(scope) = draft.note(Field::Scope, scope, Scope::new, (!chosen).then_some(unset)) {
            draft.set(|settings| settings.scope(scope));
        }

        draft.credentials(self, &variable, file);

        let id = match variable("STORM_APPLICATION_ID") {
            Some(value) => {
                let id = into_text(Field::ApplicationId, value).and_then(|id| Settings::parse_application_id(&id));
                Some((Source::Variable("STORM_APPLICATION_ID"), id))
            }
            None => self.application_id.as_ref().map(|given| {
                let wrong = wrong(Field::ApplicationId, "application_id", "not a number; write it alone, like 1042");
                (Source::Key("application_id"), given.whole().ok_or(wrong))
            }),
        };
        if let Some(id) = draft.note(Field::ApplicationId, id, Ok, None) {
            draft.set(|settings| settings.application_id(id));
        }
        draft.rest(self);
        draft
    }
}

/// The keys that are set, since nobody has looked yet whether somebody wrote a secret there.
impl fmt::Debug for FileSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = [
            ("norce", self.norce.is_some()),
            ("environment", self.environment.is_some()),
            ("token_url", self.token_url.is_some()),
            ("api_url", self.api_url.is_some()),
            ("scope", self.scope.is_some()),
            ("client_id", self.client_id.is_some()),
            ("client_secret_file", self.client_secret_file.is_some()),
            ("client_secret_next_file", self.client_secret_next_file.is_some()),
            ("client_secret", self.client_secret.is_some()),
            ("application_id", self.application_id.is_some()),
            ("application_header", self.application_header.is_some()),
            ("egress", self.egress.is_some()),
            ("group", self.group.is_some()),
            ("budget", self.budget.is_some()),
            ("caller_deadline", self.caller_deadline.is_some()),
            ("danger_allow_http", self.danger_allow_http.is_some()),
        ];
        f.write_str("FileSettings")?;
        f.debug_set().entries(keys.iter().filter(|(_, set)| *set).map(|(key, _)| key)).finish()
    }
}

impl Draft {
    /// The settings, in the order in which they were looked at: those that are set, and those that have to be.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// Whether nobody has said where the client secret is.
    pub fn lacks_secret(&self) -> bool {
        self.found.iter().any(|found| found.is_missing_secret())
    }

    /// Gives the client secret where it is set nowhere, such as one that a person types.
    ///
    /// ```
    /// let config: storm_auth_core::FileSettings = toml::from_str("environment = 'storm-lab'\nclient_id = 'shop'")?;
    /// let draft = config.under_variables(|_| None, |_path| Ok(Vec::new()));
    /// assert!(draft.lacks_secret());
    /// assert!(draft.with_secret("S3cret").finish().is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_secret(mut self, secret: impl Into<String>) -> Self {
        let Some(at) = self.found.iter().position(Found::is_missing_secret) else { return self };
        let credentials = Credentials::new(self.id.as_deref().unwrap_or(ANY), secret);
        self.found[at] =
            Found { field: Field::ClientSecret, source: Source::Program, fault: credentials.as_ref().err().cloned() };
        if let Ok(credentials) = credentials {
            self.use_credentials(credentials);
        }
        self
    }

    /// The settings, if all of them are right.
    ///
    /// # Errors
    /// The first one that is not.
    pub fn finish(self) -> Result<Settings, ConfigError> {
        match self.found.into_iter().find_map(|found| found.fault) {
            Some(fault) => Err(fault),
            None => Ok(self.settings),
        }
    }

    /// The credentials alone, for who reads them again.
    ///
    /// # Errors
    /// The first setting that is not right.
    pub fn finish_credentials(self) -> Result<Credentials, ConfigError> {
        Ok(self.finish()?.check()?.key.credentials().clone())
    }

    /// Notes what was found and what a check says to it. What is not found is only wrong where `unset` says so.
    fn note<T, U>(
        &mut self,
        field: Field,
        found: Option<(Source, Result<T, ConfigError>)>,
        check: impl FnOnce(T) -> Result<U, ConfigError>,
        unset: Option<&'static str>,
    ) -> Option<U> {
        let (source, result) = match (found, unset) {
            (Some((source, value)), _) => (source, value.and_then(check)),
            (None, Some(unset)) => (Source::Unset, Err(ConfigError::new(field, unset))),
            (None, None) => return None,
        };
        let result = result.map_err(|fault| match source {
            Source::Key(key) => fault.under(key),
            _ => fault,
        });
        let (value, fault) = match result {
            Ok(value) => (Some(value), None),
            Err(fault) => (None, Some(fault)),
        };
        self.found.push(Found { field, source, fault });
        value
    }

    fn set(&mut self, set: impl FnOnce(Settings) -> Settings) {
        self.settings = set(core::mem::take(&mut self.settings));
    }

    fn environment(&mut self, config: &FileSettings) -> Option<(&'static str, Environment)> {
        let (field, key, environment) = match (&config.norce, &config.environment) {
            (None, None) => return None,
            (Some(_), Some(_)) => {
                let twice = "chosen twice; remove norce or environment";
                (Field::Environment, "environment", Err(ConfigError::new(Field::Environment, twice)))
            }
            (Some(given), None) => (Field::Tenant, "norce", tenant(given)),
            (None, Some(given)) => (Field::Environment, "environment", named(given)),
        };
        let checked = environment.and_then(|environment| environment.check().map(|()| environment));
        if let Err(fault) = &checked {
            let found = Some((Source::Key(key), Err::<(), _>(fault.clone())));
            self.note(field, found, Ok, None);
        }
        checked.ok().map(|environment| (key, environment))
    }

    fn http_hosts(&mut self, config: &FileSettings) -> HttpHosts {
        let (field, key) = (Field::HttpHosts, "danger_allow_http");
        let given = config.danger_allow_http.as_ref().map(|given| (Source::Key(key), given.texts(field, key)));
        let mut hosts = HttpHosts::default();
        for host in self.note(field, given, Ok, None).into_iter().flatten() {
            hosts.danger_allow(&host);
            self.set(|settings| settings.danger_allow_http(host));
        }
        hosts
    }

    fn credentials(
        &mut self,
        config: &FileSettings,
        variable: impl Fn(&str) -> Option<OsString>,
        file: impl Fn(OsString) -> io::Result<Vec<u8>>,
    ) {
        let id = match variable("STORM_CLIENT_ID") {
            Some(value) => Some((Source::Variable("STORM_CLIENT_ID"), into_text(Field::ClientId, value))),
            None => config
                .client_id
                .as_ref()
                .map(|given| (Source::Key("client_id"), given.text(Field::ClientId, "client_id").map(str::to_owned))),
        };
        let check = |id: String| Credentials::new(id.clone(), ANY).map(|_| id);
        let unset = "not set; set the variable, or client_id in the configuration file";
        let id = self.note(Field::ClientId, id, check, Some(unset));
        self.id.clone_from(&id);

        if config.client_secret.is_some() {
            let misplaced =
                "a secret does not belong there; write it into a file of its own, and name that as client_secret_file";
            let found = Err::<(), _>(ConfigError::new(Field::ClientSecret, misplaced));
            self.note(Field::ClientSecret, Some((Source::Key("client_secret"), found)), Ok, None);
        }
        let filled = |name: &str| variable(name).filter(|value| !value.is_empty());
        let first = self.first_secret(config, filled, &file);
        self.next = self.next_secret(config, filled, &file);
        if let Some(credentials) = first {
            self.use_credentials(credentials);
        }
    }

    /// The first secret, whether the id is right or not.
    fn first_secret(
        &mut self,
        config: &FileSettings,
        filled: impl Fn(&str) -> Option<OsString>,
        file: impl Fn(OsString) -> io::Result<Vec<u8>>,
    ) -> Option<Credentials> {
        let given = &config.client_secret_file;
        let found = match config.find(given, &FIRST, filled) {
            Some(found) => found,
            None if config.client_secret.is_some() => return None,
            None => {
                let unset = "not set; set the variable, or STORM_CLIENT_SECRET_FILE to a file that holds it, or client_secret_file in the \
                             configuration file";
                return self.note(Field::ClientSecret, None::<(_, Result<Credentials, _>)>, Ok, Some(unset));
            }
        };
        let id = self.id.clone().unwrap_or_else(|| ANY.to_owned());
        let read = |at: At| {
            let variable = |name: &str| match name {
                "STORM_CLIENT_ID" => Some(id.clone().into()),
                name => at.of(name, &FIRST),
            };
            Credentials::from_variables(variable, file)
        };
        self.note(found.field, Some((found.source, found.at)), read, None)
    }

    /// The second secret, whether the first is right or not.
    fn next_secret(
        &mut self,
        config: &FileSettings,
        filled: impl Fn(&str) -> Option<OsString>,
        file: impl Fn(OsString) -> io::Result<Vec<u8>>,
    ) -> Option<ClientSecret> {
        let found = config.find(&config.client_secret_next_file, &NEXT, filled)?;
        let read = |at: At| next_from_variables(|name| at.of(name, &NEXT), file);
        self.note(found.field, Some((found.source, found.at)), read, None).flatten()
    }

    /// Takes these with the second secret, unless their id was wrong.
    fn use_credentials(&mut self, credentials: Credentials) {
        if self.id.is_some() {
            let credentials = match self.next.clone() {
                None => credentials,
                Some(next) => credentials.and(next),
            };
            self.set(|settings| settings.credentials(credentials));
        }
    }

    /// What only the file can say.
    fn rest(&mut self, config: &FileSettings) {
        let (field, key) = (Field::ApplicationHeader, "application_header");
        let given = config.application_header.as_ref().map(|given| (Source::Key(key), given.text(field, key)));
        let check = |name: &str| match HeaderName::try_from(name) {
            Ok(_) => Ok(name.to_owned()),
            Err(_) => Err(ConfigError::new(field, "not a header name; use one like application-id")),
        };
        if let Some(name) = self.note(field, given, check, None) {
            self.set(|settings| settings.application_header(name));
        }

        let (field, key) = (Field::Egress, "egress");
        let given = config.egress.as_ref().map(|given| (Source::Key(key), given.text(field, key)));
        if let Some(label) = self.note(field, given, |label| Ok(label.to_owned()), None) {
            self.set(|settings| settings.egress(label));
        }

        let (field, key) = (Field::Group, "group");
        let given = config.group.as_ref().map(|given| (Source::Key(key), given.text(field, key)));
        if let Some(name) = self.note(field, given, |name| Ok(name.to_owned()), None) {
            self.set(|settings| settings.group(name));
        }

        let given = config.budget.as_ref().map(|given| (Source::Key("budget"), budget(given)));
        if let Some(budget) = self.note(Field::Budget, given, Ok, None) {
            self.set(|settings| settings.budget(budget));
        }

        let (field, key) = (Field::CallerDeadline, "caller_deadline");
        let seconds = config.caller_deadline.as_ref().map(|given| {
            let wrong = wrong(field, key, "not a number of seconds above zero; write one like 30");
            (Source::Key(key), given.seconds().ok_or(wrong))
        });
        if let Some(span) = self.note(field, seconds, Ok, None) {
            self.set(|settings| settings.caller_deadline(span));
        }
    }
}

impl Found {
    fn is_missing_secret(&self) -> bool {
        self.field == Field::ClientSecret && self.source == Source::Unset
    }
}

/// What a secret's settings are called.
struct SecretNames {
    text: &'static str,
    file: &'static str,
    key: &'static str,
    field: Field,
    file_field: Field,
}

const FIRST: SecretNames = SecretNames {
    text: "STORM_CLIENT_SECRET",
    file: "STORM_CLIENT_SECRET_FILE",
    key: "client_secret_file",
    field: Field::ClientSecret,
    file_field: Field::ClientSecretFile,
};

const NEXT: SecretNames = SecretNames {
    text: "STORM_CLIENT_SECRET_NEXT",
    file: "STORM_CLIENT_SECRET_NEXT_FILE",
    key: "client_secret_next_file",
    field: Field::NextSecret,
    file_field: Field::NextSecretFile,
};

/// Where a secret is said to be.
struct FoundSecret {
    field: Field,
    source: Source,
    at: Result<At, ConfigError>,
}

/// A secret, or the path of its file, or both by mistake.
struct At {
    /// Taken once, by what wipes it.
    text: Cell<Option<OsString>>,
    path: Option<OsString>,
}

impl At {
    /// As variables have it.
    fn of(&self, name: &str, names: &SecretNames) -> Option<OsString> {
        match name {
            name if name == names.text => self.text.take(),
            name if name == names.file => self.path.clone(),
            _ => None,
        }
    }
}

/// Stands for an id or a secret that is right, so that each of the two is checked alone.
const ANY: &str = "any";

fn wrong(field: Field, key: &'static str, problem: &'static str) -> ConfigError {
    ConfigError::new(field, problem).under(key)
}

fn tenant(given: &Given) -> Result<Environment, ConfigError> {
    let wrong = |problem| wrong(Field::Tenant, "norce", problem);
    let form = r#"not a table of three texts; write { tenant = "acme", region = "se", stage = "playground" }"#;
    let [tenant, region, stage] = given.table(["tenant", "region", "stage"]).ok_or_else(|| wrong(form))?;
    let (Given::Text(tenant), Given::Text(region), Given::Text(stage)) = (tenant, region, stage) else {
        return Err(wrong(form));
    };
    let stage = match stage.as_str() {
        "playground" => Stage::Playground,
        "stage" => Stage::Stage,
        "production" => Stage::Production,
        _ => return Err(wrong(r#"no such stage; write "playground", "stage" or "production""#)),
    };
    Ok(Environment::norce(tenant, region, stage))
}

fn named(given: &Given) -> Result<Environment, ConfigError> {
    match given.text(Field::Environment, "environment")? {
        "storm-lab" => Ok(Environment::storm_lab()),
        "storm-qa" => Ok(Environment::storm_qa()),
        "storm-production" => Ok(Environment::storm_production()),
        _ => {
            let unknown = r#"no such environment; write "storm-lab", "storm-qa" or "storm-production", or describe a tenant with norce"#;
            Err(ConfigError::new(Field::Environment, unknown))
        }
    }
}

fn budget(given: &Given) -> Result<Budget, ConfigError> {
    let form = r#"not a budget; write { per_minute = 3, burst = 20 }, or "unlimited""#;
    let budget = match given {
        Given::Text(text) if text == "unlimited" => Some(Budget::unlimited()),
        _ => given.table(["per_minute", "burst"]).and_then(|[per_minute, burst]| {
            let number = |given: &Given| u32::try_from(given.whole()?).ok();
            Some(Budget::per_minute(number(per_minute)?, number(burst)?))
        }),
    };
    let budget = budget.ok_or_else(|| ConfigError::new(Field::Budget, form))?;
    match budget.check() {
        Ok(()) => Ok(budget),
        Err(_) => Err(ConfigError::new(Field::Budget, r#"no request a minute; write at least 1, or "unlimited""#)),
    }
}

/// A value as the file has it. It has no `Debug`: nobody has looked yet what it is.
#[derive(Clone)]
enum Given {
    Text(String),
    Whole(u64),
    Real(f64),
    List(Vec<Given>),
    Table(BTreeMap<String, Given>),
    Other,
}

impl Given {
    fn text(&self, field: Field, key: &'static str) -> Result<&str, ConfigError> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(wrong(field, key, "not a text; write it in quotes")),
        }
    }

    /// A text, or a list of some.
    fn texts(&self, field: Field, key: &'static str) -> Result<Vec<String>, ConfigError> {
        let texts: Option<Vec<_>> = match self {
            Self::Text(text) => Some(vec![text.clone()]),
            Self::List(list) => list.iter().map(|given| given.text(field, key).ok().map(str::to_owned)).collect(),
            _ => None,
        };
        texts
            .filter(|texts| !texts.is_empty())
            .ok_or_else(|| wrong(field, key, "not a text, nor a list of some; write it in quotes"))
    }

    fn whole(&self) -> Option<u64> {
        match self {
            Self::Whole(number) => Some(*number),
            _ => None,
        }
    }

    fn seconds(&self) -> Option<Duration> {
        let span = match self {
            Self::Whole(seconds) => Duration::from_secs(*seconds),
            Self::Real(seconds) => Duration::try_from_secs_f64(*seconds).ok()?,
            _ => return None,
        };
        (!span.is_zero()).then_some(span)
    }

    /// The values of a table that has these keys and no other.
    fn table<const N: usize>(&self, keys: [&str; N]) -> Option<[&Given; N]> {
        let Self::Table(table) = self else { return None };
        let values: Vec<_> = keys.iter().filter_map(|key| table.get(*key)).collect();
        if table.len() == N { values.try_into().ok() } else { None }
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

/// Takes every kind of value, so that the error for a wrong one is ours: serde's would show it.
struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Given;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, a list or a table")
    }

    fn visit_str<E>(self, text: &str) -> Result<Given, E> {
        Ok(Given::Text(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Given, E> {
        Ok(Given::Whole(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Given, E> {
        Ok(u64::try_from(number).map_or(Given::Other, Given::Whole))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Given, E> {
        Ok(Given::Real(number))
    }

    fn visit_i128<E>(self, _: i128) -> Result<Given, E> {
        Ok(Given::Other)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Given, E> {
        Ok(Given::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Given, E> {
        Ok(Given::Other)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Given, E> {
        Ok(Given::Other)
    }

    fn visit_unit<E>(self) -> Result<Given, E> {
        Ok(Given::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Given, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Given::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Given, A::Error> {
        let mut values = BTreeMap::new();
        while let Some((key, value)) = table.next_entry()? {
            values.insert(key, value);
        }
        Ok(Given::Table(values))
    }
}
