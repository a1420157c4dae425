//! Where the settings come from: the variables, the configuration file, and a person for the secret.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use storm_auth_blocking::config_file::{Draft, FileSettings};
use storm_auth_blocking::core::{Now, Settings};
use storm_auth_blocking::{Builder, TokenProvider, Unix};
use storm_auth_store::FileStore;
use zeroize::Zeroizing;

use crate::args::Common;
use crate::failure::Failure;

/// How long a request that is under way at the end may take, so that it is not wasted.
const CLOSING: Duration = Duration::from_secs(5);

/// The longest configuration file that is read, in bytes.
const LONGEST: u64 = 256 * 1024;

/// The configuration file, if there is one.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) path: Option<PathBuf>,
    pub(crate) settings: FileSettings,
}

impl Configuration {
    pub(crate) fn load(common: &Common) -> Result<Self, Failure> {
        let (origin, path) = match (&common.config, variable("STORM_CONFIG")) {
            (Some(path), _) => ("--config", path.clone()),
            (None, Some(path)) => ("STORM_CONFIG", path),
            (None, None) => match of_user().filter(|path| path.exists()) {
                Some(path) => ("the user's configuration file", path),
                None => return Ok(Self { path: None, settings: FileSettings::default() }),
            },
        };
        let settings = read(&path)
            .map_err(|problem| Failure::configuration(format!("{origin}: {}: {problem}", path.display())))?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self { path: Some(path), settings: settings.relative_to(folder) })
    }

    /// All settings as they are, with a secret that a person types where it is set nowhere.
    pub(crate) fn draft(&self) -> Result<Draft, Failure> {
        let draft = storm_auth_blocking::env::draft_over(&self.settings);
        if !draft.lacks_secret() || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Ok(draft);
        }
        let typed = rpassword::prompt_password("Client secret: ")
            .map_err(|error| Failure::configuration(format!("the client secret could not be read: {error}")))?;
        Ok(draft.with_secret(typed))
    }

    /// The settings, if they are right.
    pub(crate) fn finish(&self, common: &Common, draft: Draft) -> Result<Settings, Failure> {
        let wrong = draft.found().iter().filter(|found| found.fault.is_some()).count();
        let settings = draft.finish().map_err(|error| {
            let file = match (&self.path, of_user()) {
                (Some(path), _) => format!(" (the configuration file is {})", path.display()),
                (None, Some(path)) => format!(" (there is none; there could be one at {})", path.display()),
                (None, None) => String::new(),
            };
            let more = if wrong > 1 { ". More is missing or wrong: see `storm-token doctor`" } else { "" };
            Failure::configuration(format!("{error}{file}{more}"))
        })?;
        Ok(match common.deadline {
            Some(deadline) => settings.caller_deadline(deadline),
            None => settings,
        })
    }
}

/// The settings of a subcommand that needs all of them right.
pub(crate) fn load(common: &Common) -> Result<Settings, Failure> {
    let configuration = Configuration::load(common)?;
    configuration.finish(common, configuration.draft()?)
}

/// The folder through which processes share their tokens, unless they are not to.
pub(crate) fn store(common: &Common) -> Result<Option<Arc<FileStore>>, Failure> {
    if common.no_cache {
        return Ok(None);
    }
    let store = match variable("STORM_CACHE_DIR") {
        Some(folder) => FileStore::new(folder).map_err(|error| format!("STORM_CACHE_DIR: {error}")),
        None => FileStore::for_user().map_err(|error| format!("{error}; or set STORM_CACHE_DIR, or give --no-cache")),
    };
    store.map(Arc::new).map(Some).map_err(Failure::configuration)
}

/// A builder with the settings, the store, and a voice.
pub(crate) fn builder(common: &Common) -> Result<Builder, Failure> {
    Ok(with_store(common, load(common)?.into(), store(common)?))
}

pub(crate) fn with_store(common: &Common, builder: Builder, store: Option<Arc<FileStore>>) -> Builder {
    let builder = match store {
        Some(store) => builder.store(store),
        None => builder,
    };
    if common.verbose { builder.on_event(common.voice.on_event()) } else { builder }
}

/// Ends what is under way, so that a token which was asked for is there for the next process.
pub(crate) fn close(tokens: &TokenProvider) {
    // What is still under way after that ends with the process.
    let _ = tokens.close(CLOSING);
}

/// The wall clock alone, for what is over in a moment.
pub(crate) fn now() -> Now {
    Now::from_millis(0, Unix::from(SystemTime::now()).as_millis())
}

/// A variable that names a path. One that tools set to nothing is not set.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The user's own configuration file, whether it is there or not.
pub(crate) fn of_user() -> Option<PathBuf> {
    let folder = |name: &str| variable(name).filter(|path| path.is_absolute());
    let folder = if cfg!(windows) {
        folder("APPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library/Application Support"))
    } else {
        folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")))
    };
    Some(folder?.join("storm-auth/config.toml"))
}

fn read(path: &Path) -> Result<FileSettings, String> {
    let unreadable = |error: io::Error| format!("it cannot be read ({error}); check the path and its permissions");
    // Somebody may have written the secret there.
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 * 1024));
    File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > LONGEST {
        return Err("longer than 256 KiB; name the configuration file".to_owned());
    }
    let text = core::str::from_utf8(&bytes).map_err(|_| "not UTF-8; write it as UTF-8".to_owned())?;
    // Its own text would show the line.
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let line = line.map_or_else(String::new, |line| format!("line {line}: "));
        format!("{line}{}", error.message().trim_end().replace('\n', "; "))
    })
}
