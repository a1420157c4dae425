//! A record: a token with its absolute times and its order, and a tag that only holders of the client secret can make.

use core::fmt;
use core::time::Duration;

use hmac_sha256::{HMAC, Hash};
use zeroize::Zeroizing;

use super::{SealingKey, StoreCommand, StoreOp};
use crate::credentials::ClientSecret;
use crate::machine::Key;
use crate::time::{Unix, millis};
use crate::wire::response::{AccessToken, Grant, MAX_LIFETIME};

/// The longest record, in bytes: a token of 16 KiB, its scope and what sealing adds fit into it several times.
pub const MAX_RECORD: usize = 64 * 1024;

/// What every record begins with. Another version has other names too, so that neither displaces the other's.
const MAGIC: &str = "storm-auth 1 ";
const VERSION: &[u8] = b"1";
const HEADER: usize = MAGIC.len() + 32 + 1 + 16 + 1;

/// How records are ordered: by when their requests were sent, then by a number drawn at random, so that the order survives a store
/// that lost its data (R74).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Order {
    /// When the request was sent.
    pub sent: Unix,
    /// Drawn at random.
    pub id: u64,
}

impl fmt::Display for Order {
    /// 32 hexadecimal digits that sort as the order does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.sent.as_millis(), self.id)
    }
}

/// A token as it lies in a store. What it holds is for the machine to read; a store looks at its order and its end.
#[derive(Clone)]
pub struct Record {
    /// Which of two records is the newer one.
    pub order: Order,
    /// From when on it is of no use.
    pub expires_at: Unix,
    /// The rest.
    pub body: Zeroizing<Vec<u8>>,
}

impl Record {
    /// The bytes to store: the order stands from byte 13 to 45, in hexadecimal digits that sort as orders do.
    ///
    /// ```
    /// use storm_auth_core::store::{Order, Record};
    /// use storm_auth_core::Unix;
    ///
    /// let order = Order { sent: Unix::from_millis(1_700_000_000_000), id: 7 };
    /// let record = Record { order, expires_at: Unix::from_millis(1_700_000_600_000), body: b"opaque".to_vec().into() };
    /// let bytes = record.to_bytes();
    /// assert_eq!(bytes[13..45], order.to_string().into_bytes());
    /// assert_eq!(Record::from_bytes(&bytes).expect("it is one").order, order);
    /// ```
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let header = format!("{MAGIC}{} {:016x}\n", self.order, self.expires_at.as_millis());
        let mut bytes = Zeroizing::new(Vec::with_capacity(header.len() + self.body.len()));
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` for anything else, which is a miss (R70).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_RECORD {
            return None;
        }
        let (header, body) = bytes.split_at_checked(HEADER)?;
        let header = core::str::from_utf8(header).ok()?.strip_prefix(MAGIC)?.strip_suffix('\n')?;
        let (order, expires_at) = header.split_once(' ')?;
        let (sent, id) = order.split_at_checked(16)?;
        Some(Self {
            order: Order { sent: Unix::from_millis(number(sent)?), id: number(id)? },
            expires_at: Unix::from_millis(number(expires_at)?),
            body: Zeroizing::new(body.to_vec()),
        })
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("order", &self.order)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// 16 hexadecimal digits, as they are written: small, and without a sign.
fn number(digits: &str) -> Option<u64> {
    let written = digits.len() == 16 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    written.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

macro_rules! name {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The hash itself; `Display` shows it as 64 hexadecimal digits.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

name! {
    /// Names a key's record and lease: a hash over the format's version, the token URL, the client id, the sorted scopes and a
    /// fingerprint of the secret (R69). Processes with the same of all these find each other's records.
    RecordName
}

name! {
    /// Names a limiter group's gate: a hash over the origin of the token URL and the label of the address that requests leave by
    /// (R76).
    GateName
}

impl GateName {
    pub(crate) fn new(key: &Key, egress: &str) -> Self {
        let origin = key.token_url().origin().to_string();
        Self(hash([b"storm-auth gate", VERSION, origin.as_bytes(), egress.as_bytes()]))
    }
}

/// SHA-256 over fields, each with its length before it: no two lists of fields read the same.
fn hash<'f>(fields: impl IntoIterator<Item = &'f [u8]>) -> [u8; 32] {
    let mut hash = Hash::new();
    for field in fields {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize()
}

/// What a key's secret is good for in a store: naming its record, and telling a true one.
#[derive(Clone, Debug)]
pub(crate) struct Vault {
    record: RecordName,
    gate: GateName,
    secret: ClientSecret,
}

impl Vault {
    /// `secret` is the key's own, or the one that a request was sent with and that was replaced since.
    pub(crate) fn new(key: &Key, secret: &ClientSecret, egress: &str) -> Self {
        let mut scopes: Vec<_> = key.scope().tokens().map(str::as_bytes).collect();
        scopes.sort_unstable();
        let asked: &[u8] = if key.scope().as_str().is_some() { b"scopes" } else { b"the server's" };
        let url = key.token_url().canonical();
        let fingerprint = derived(secret, b"fingerprint", &[]);
        let fields =
            [b"storm-auth record", VERSION, url.as_bytes(), key.credentials().client_id().as_bytes(), &*fingerprint];
        let record = RecordName(hash(fields.into_iter().chain([asked]).chain(scopes)));
        Self { record, gate: GateName::new(key, egress), secret: secret.clone() }
    }

    /// Whether it is the one of this secret.
    pub(crate) fn is_of(&self, secret: &ClientSecret) -> bool {
        self.secret.expose() == secret.expose()
    }

    /// An operation on this key's record.
    pub(crate) fn op(&self, command: StoreCommand) -> StoreOp {
        let sealing_key = SealingKey(derived(&self.secret, b"seal", self.record.as_bytes()));
        StoreOp { record: self.record, gate: self.gate, command, sealing_key }
    }

    /// A record of a token.
    pub(crate) fn close(&self, order: Order, grant: &Grant) -> Record {
        let expires_at = order.sent + grant.lifetime;
        let scope = grant.scope.as_deref().unwrap_or_default();
        let token = grant.access_token.as_bytes();
        let facts = format!("{}\n{scope}\n", millis(grant.lifetime));
        let mut body = Zeroizing::new(Vec::with_capacity(TAG + facts.len() + token.len()));
        body.extend_from_slice(&[0; TAG]);
        body.extend_from_slice(facts.as_bytes());
        body.extend_from_slice(token);
        let tag = self.tag(order, expires_at, &body[TAG..]).finalize();
        body[..TAG].copy_from_slice(&tag);
        Record { order, expires_at, body }
    }

    /// What a record of this key holds; `None` when it is not one, or when somebody without the secret has changed it.
    pub(crate) fn open(&self, record: &Record) -> Option<Grant> {
        let (tag, content) = record.body.split_first_chunk::<TAG>()?;
        self.tag(record.order, record.expires_at, content).finalize_verify(tag).then_some(())?;
        let mut lines = content.splitn(3, |byte| *byte == b'\n');
        let lifetime = core::str::from_utf8(lines.next()?).ok()?.parse().ok()?;
        let scope = core::str::from_utf8(lines.next()?).ok()?;
        let access_token = AccessToken::new(lines.next()?).ok()?;
        let lifetime = Duration::from_millis(lifetime);
        let sound = lifetime <= MAX_LIFETIME && record.expires_at == record.order.sent + lifetime;
        sound.then(|| Grant { access_token, lifetime, scope: Some(scope.to_owned()).filter(|scope| !scope.is_empty()) })
    }

    fn tag(&self, order: Order, expires_at: Unix, content: &[u8]) -> HMAC {
        let key = derived(&self.secret, b"authenticate", self.record.as_bytes());
        let mut tag = HMAC::new(*key);
        tag.update(format!("{order} {:016x}\n", expires_at.as_millis()).as_bytes());
        tag.update(content);
        tag
    }
}

/// The length of a tag.
const TAG: usize = 32;

/// A key for one purpose and record, from which nothing leads back to the secret.
fn derived(secret: &ClientSecret, purpose: &[u8], record: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(HMAC::mac(hash([b"storm-auth", VERSION, purpose, record]), secret.expose()))
}
