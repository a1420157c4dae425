//! A token as it is handed out: a ready header, an identity, and the times of its life.

use core::fmt;
use std::sync::Arc;

use bytes::Bytes;
use hmac_sha256::Hash;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::machine::KeyId;
use crate::time::Unix;
use crate::wire::response::AccessToken;

const SCHEME: &str = "Bearer ";

/// Which token of which key: enough to reject it (R38), and nothing that leads back to its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId {
    pub(crate) key: KeyId,
    /// The first half of the token's SHA-256.
    pub(crate) digest: [u8; 16],
}

impl TokenId {
    /// The key whose token it is.
    pub fn key(&self) -> KeyId {
        self.key
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({}:", self.key.index())?;
        self.digest[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// A bearer token. Cloning costs one reference count and no allocation; the bytes are wiped when the last holder goes,
/// headers that were taken from it included (R60).
///
/// Its `Debug` shows identity and times only, and every header made of it is marked sensitive (R57, R58).
#[derive(Clone)]
pub struct Token(Arc<Lane>);

/// One reference count of its own over bytes that all lanes of a token share, so that threads need not share a cache line.
struct Lane {
    header: HeaderValue,
    facts: Arc<Facts>,
}

struct Facts {
    id: TokenId,
    expires_at: Unix,
    scope: Option<String>,
    bytes: Arc<Zeroizing<Box<[u8]>>>,
}

/// What `Bytes` owns: dropping the last of them wipes the text.
struct Owner(Arc<Zeroizing<Box<[u8]>>>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Token {
    pub(crate) fn new(key: KeyId, token: &AccessToken, expires_at: Unix, scope: Option<String>) -> Self {
        Self::from_bytes(key, token.as_bytes(), expires_at, scope)
    }

    /// A token that no server issued, for tests of code that takes one. It belongs to no machine's key.
    ///
    /// ```
    /// assert_eq!(storm_auth_core::Token::fake("first").header(), "Bearer first");
    /// ```
    pub fn fake(text: &str) -> Self {
        let visible: Vec<u8> = text.bytes().filter(|byte| byte.is_ascii_graphic()).collect();
        Self::from_bytes(KeyId::NONE, &visible, Unix::from_millis(u64::MAX), None)
    }

    fn from_bytes(key: KeyId, token: &[u8], expires_at: Unix, scope: Option<String>) -> Self {
        let mut digest = [0; 16];
        digest.copy_from_slice(&Hash::hash(token)[..16]);
        let bytes = Zeroizing::new([SCHEME.as_bytes(), token].concat().into_boxed_slice());
        Self::lane(Arc::new(Facts { id: TokenId { key, digest }, expires_at, scope, bytes: Arc::new(bytes) }))
    }

    fn lane(facts: Arc<Facts>) -> Self {
        let mut header = HeaderValue::from_maybe_shared(Bytes::from_owner(Owner(facts.bytes.clone())))
            .expect("the codec lets only visible ASCII into an access token");
        header.set_sensitive(true);
        Self(Arc::new(Lane { header, facts }))
    }

    /// The same token with a reference count of its own, for another thread's clones.
    #[cfg(feature = "driver")]
    pub(crate) fn another_lane(&self) -> Self {
        Self::lane(self.0.facts.clone())
    }

    /// The value of an `Authorization` header, `Bearer` included, ready and marked sensitive.
    // Not inlined, so that the clone is written straight to where it is wanted: copying it from a temporary takes longer than the call.
    #[inline(never)]
    pub fn header(&self) -> HeaderValue {
        self.0.header.clone()
    }

    /// The token's text, for a client that builds its own header.
    pub fn expose(&self) -> &str {
        core::str::from_utf8(&self.0.facts.bytes[SCHEME.len()..]).expect("an access token is visible ASCII")
    }

    /// Which token this is; what `invalidate` takes.
    pub fn id(&self) -> TokenId {
        self.0.facts.id
    }

    /// When the machine stops handing it out, on the wall clock.
    pub fn expires_at(&self) -> Unix {
        self.0.facts.expires_at
    }

    /// The scope that the server granted, where it named one. It may differ from the one asked for (R19).
    pub fn granted_scope(&self) -> Option<&str> {
        self.0.facts.scope.as_deref()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id())
            .field("expires_at", &format_args!("{}", self.expires_at()))
            .field("granted_scope", &self.granted_scope())
            .finish_non_exhaustive()
    }
}
