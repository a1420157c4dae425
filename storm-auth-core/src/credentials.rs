//! Who asks: the client id, the client secret and the scope, checked at the edge.

use core::fmt;

use zeroize::Zeroizing;

use crate::error::{ConfigError, Field};

/// A client secret. It has no `Display`, no `PartialEq` and no `Serialize`, and is wiped when its last holder goes
/// (R60, R61).
#[derive(Clone)]
pub struct ClientSecret(Zeroizing<Box<str>>);

impl ClientSecret {
    /// Takes a secret after the check of R3: not empty, no white space around it, no control character in it.
    pub fn new(secret: impl Into<String>) -> Result<Self, ConfigError> {
        let secret = Zeroizing::new(secret.into());
        check_text(Field::ClientSecret, &secret)?;
        // `into_boxed_str` of the String itself could leave a copy behind when it shrinks; this copy is the only other one.
        Ok(Self(Zeroizing::new(Box::from(secret.as_str()))))
    }

    /// The second of two, after the same check.
    pub(crate) fn next(secret: impl Into<String>) -> Result<Self, ConfigError> {
        Self::new(secret).map_err(|error| error.about(Field::NextSecret))
    }

    /// The secret itself, for building the request.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is the same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[client secret]")
    }
}

/// The client id and secret of one integration; while its secret is being changed, two of them.
///
/// ```
/// use storm_auth_core::Credentials;
///
/// let credentials = Credentials::new("shop", "S3cret with space+plus&amp=%/~\"x")?;
/// assert_eq!(credentials.client_id(), "shop");
/// assert_eq!(format!("{credentials:?}"), r#"Credentials { client_id: "shop", secret: [client secret] }"#);
///
/// let error = Credentials::new("shop", "pasted with a newline\n").unwrap_err();
/// assert_eq!(error.to_string(), "client secret (STORM_CLIENT_SECRET): white space at its start or end; remove it");
/// # Ok::<(), storm_auth_core::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Credentials {
    client_id: String,
    secret: ClientSecret,
    next: Option<ClientSecret>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Credentials");
        shown.field("client_id", &self.client_id).field("secret", &self.secret);
        if let Some(next) = &self.next {
            shown.field("next", next);
        }
        shown.finish()
    }
}

impl Credentials {
    /// Takes an id and a secret after the checks of R3.
    pub fn new(client_id: impl Into<String>, secret: impl Into<String>) -> Result<Self, ConfigError> {
        let client_id = client_id.into();
        // The secret goes first into its wiping type, so that a bad id does not leave it behind.
        let secret = ClientSecret::new(secret)?;
        check_text(Field::ClientId, &client_id)?;
        Ok(Self { client_id, secret, next: None })
    }

    /// The same with a second secret beside the first, for the time in which nobody knows when the server changes from one to the
    /// other. A request that is refused with `invalid_client` is sent once more with the other one, and the one that works is kept to.
    /// Which of them is given as the first matters only until then. The same secret twice is one.
    ///
    /// ```
    /// use storm_auth_core::Credentials;
    ///
    /// let credentials = Credentials::new("shop", "S3cret")?.with_next("Successor")?;
    /// assert_eq!(credentials.next_secret().map(|secret| secret.expose()), Some("Successor"));
    /// assert!(Credentials::new("shop", "S3cret")?.with_next("S3cret")?.next_secret().is_none());
    /// # Ok::<(), storm_auth_core::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// As for the first one: [`Field::NextSecret`].
    pub fn with_next(self, secret: impl Into<String>) -> Result<Self, ConfigError> {
        Ok(self.and(ClientSecret::next(secret)?))
    }

    pub(crate) fn and(self, next: ClientSecret) -> Self {
        Self { next: Some(next).filter(|next| !next.is(&self.secret)), ..self }
    }

    /// The client id.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The client secret that is sent; of two, the one that is tried first.
    pub fn secret(&self) -> &ClientSecret {
        &self.secret
    }

    /// The other one, where there are two.
    pub fn next_secret(&self) -> Option<&ClientSecret> {
        self.next.as_ref()
    }

    /// Puts the other secret first, where there is one.
    pub(crate) fn swap(&mut self) {
        if let Some(next) = &mut self.next {
            core::mem::swap(&mut self.secret, next);
        }
    }

    pub(crate) fn secrets(&self) -> impl Iterator<Item = &ClientSecret> {
        [&self.secret].into_iter().chain(&self.next)
    }

    /// Whether these are the same secrets, whichever stands first.
    pub(crate) fn are(&self, other: &Self) -> bool {
        let holds = |one: &Self, other: &Self| one.secrets().all(|secret| other.secrets().any(|its| its.is(secret)));
        holds(self, other) && holds(other, self)
    }
}

/// Why the place where credentials come from gave none. The text is for people; the machine cuts it, and clears it of the secrets
/// that it knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CredentialsFailure {
    /// What went wrong, and where to look.
    pub detail: String,
}

impl CredentialsFailure {
    /// A failure with a description of it.
    pub fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into() }
    }

    /// Nobody could be had to look there.
    pub fn not_looked() -> Self {
        Self::new("no thread could be had to look there")
    }

    /// Whoever looked there panicked.
    pub fn panicked() -> Self {
        Self::new("their source panicked instead of answering")
    }

    /// Whoever looked there ended without an answer, where that may be a runtime's doing.
    pub fn unanswered() -> Self {
        Self::new("their source ended without an answer: it panicked, or its runtime went away")
    }
}

impl fmt::Display for CredentialsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for CredentialsFailure {}

/// R3: an id or a secret that was pasted with something around it is refused before it costs a request.
fn check_text(field: Field, text: &str) -> Result<(), ConfigError> {
    if text.is_empty() {
        return Err(ConfigError::new(field, "it is empty; set it"));
    }
    if text.trim() != text {
        return Err(ConfigError::new(field, "white space at its start or end; remove it"));
    }
    if text.chars().any(char::is_control) {
        return Err(ConfigError::new(field, "a control character in it; remove it"));
    }
    Ok(())
}

/// The scope of a token request: one or more tokens of RFC 6749 §3.3, or an explicit nothing.
///
/// Norce's scopes name environments, not permissions, and differ from service to service; so this is a checked string with
/// constants for the known ones ([`scope`]), never a closed enum.
///
/// ```
/// use storm_auth_core::{Scope, scope};
///
/// let lab = Scope::new(scope::LAB)?;
/// assert_eq!(lab.as_str(), Some("lab"));
/// assert_eq!(Scope::new("playground stage")?.tokens().count(), 2);
/// assert!(Scope::new("lab lab").is_err());
/// assert_eq!(Scope::server_default().as_str(), None);
/// # Ok::<(), storm_auth_core::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope(Option<Box<str>>);

/// The scopes that Norce documents. Any other valid string is accepted by [`Scope::new`] too.
pub mod scope {
    /// Storm, the lab environment.
    pub const LAB: &str = "lab";
    /// Storm, the QA environment.
    pub const QA: &str = "qa";
    /// Storm, production.
    pub const PRODUCTION: &str = "production";
    /// Norce Commerce, the playground.
    pub const PLAYGROUND: &str = "playground";
    /// Norce Commerce, stage.
    pub const STAGE: &str = "stage";
    /// Norce Commerce, production.
    pub const PROD: &str = "prod";
}

impl Scope {
    /// Takes scope tokens joined by one space each; refuses an empty, malformed or repeated one (R2).
    pub fn new(scope: impl AsRef<str>) -> Result<Self, ConfigError> {
        let scope = scope.as_ref();
        let mut seen = std::collections::BTreeSet::new();
        for token in scope.split(' ') {
            if token.is_empty() {
                return Err(ConfigError::new(
                    Field::Scope,
                    "an empty scope token; join tokens by one space, or ask for the server's default on purpose",
                ));
            }
            // RFC 6749 §3.3: %x21 / %x23-5B / %x5D-7E
            if !token.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5B | 0x5D..=0x7E)) {
                return Err(ConfigError::new(
                    Field::Scope,
                    "a character that RFC 6749 does not allow in a scope; use printable ASCII without \" and \\",
                ));
            }
            if !seen.insert(token) {
                return Err(ConfigError::new(Field::Scope, "a scope token stands twice; name it once"));
            }
        }
        Ok(Self(Some(scope.into())))
    }

    /// Sends no scope: the server then grants all that the client may have. An explicit choice, never a fallback.
    pub const fn server_default() -> Self {
        Self(None)
    }

    /// The scope as it is sent; `None` when none is.
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The single tokens, in the order given.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.as_str().into_iter().flat_map(|scope| scope.split(' '))
    }
}
