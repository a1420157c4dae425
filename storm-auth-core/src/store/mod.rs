//! Sharing a token between processes, as data: what the machine asks of a store, and what a store answers.
//!
//! A store keeps three things, each under a name that the machine gives:
//!
//! - a **record**: the newest token of a key. The machine checks whatever it reads, so a record that is torn, foreign or false
//!   is only a miss;
//! - a **lease** on the key: who holds it sends the token request, everybody else waits for the record. It keeps requests few, and
//!   nothing else depends on it;
//! - a **gate** of the limiter group: until when nobody behind the address sends anything.
//!
//! A driver performs a [`StoreOp`] by handing it to a [`TokenStore`], on a thread that may block. `storm-auth-store` has stores for
//! one machine (files) and for many (Redis); `storm-auth-tests` has a suite that shows whether another one keeps to the protocol.

mod look;
mod record;

use core::fmt;
use core::time::Duration;

use zeroize::Zeroizing;

use crate::machine::Key;
use crate::time::Unix;

pub use look::Seen;
pub(crate) use record::Vault;
pub use record::{GateName, MAX_RECORD, Order, Record, RecordName};

/// Where processes share their tokens. It decides nothing about them: each operation is one step, done as a whole or not at all.
///
/// It is called on threads that may block, several at once. The machine goes on without it after the
/// [`patience`](crate::machine::StoreRequest::patience) of the request, so give every wait in it an end of that order.
///
/// | command | what it does |
/// |---|---|
/// | [`Read`](StoreCommand::Read) | nothing |
/// | [`Lease`](StoreCommand::Lease) | takes the lease, or renews it for its owner, unless another owner holds it or it rests |
/// | [`Publish`](StoreCommand::Publish) | writes the record, unless one that is not older is there, or another owner than the given one holds the lease; then ends the given owner's lease, and forgets failures and rest |
/// | [`Release`](StoreCommand::Release) | ends the owner's lease, if it still holds it, and lets it rest |
/// | [`CloseGate`](StoreCommand::CloseGate) | closes the gate until then, unless it is closed longer |
///
/// Every command answers with what is there *afterwards*: see [`StoreReply`]. A record whose request was sent more than an hour from now
/// is in nobody's way, or one process with a wrong clock would keep all others from publishing.
///
/// ```
/// use storm_auth_core::store::{StoreFailure, StoreOp, StoreReply, TokenStore};
///
/// /// A store that keeps nothing: every process works alone.
/// #[derive(Debug)]
/// struct Nowhere;
///
/// impl TokenStore for Nowhere {
///     fn perform(&self, _op: &StoreOp) -> Result<StoreReply, StoreFailure> {
///         Err(StoreFailure::new("there is no store; name one"))
///     }
/// }
/// ```
pub trait TokenStore: Send + Sync + fmt::Debug {
    /// Does what the operation says.
    ///
    /// # Errors
    /// The store cannot be reached or used; say what a person should look at. The process goes on alone, and asks again later.
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure>;
}

impl<S: TokenStore + ?Sized> TokenStore for std::sync::Arc<S> {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        (**self).perform(op)
    }
}

impl<S: TokenStore + ?Sized> TokenStore for Box<S> {
    fn perform(&self, op: &StoreOp) -> Result<StoreReply, StoreFailure> {
        (**self).perform(op)
    }
}

/// One step that a store is asked for.
#[derive(Clone, Debug)]
pub struct StoreOp {
    /// Names the key's record and its lease.
    pub record: RecordName,
    /// Names the limiter group's gate.
    pub gate: GateName,
    /// What to do.
    pub command: StoreCommand,
    pub(crate) sealing_key: SealingKey,
}

impl StoreOp {
    /// An operation on a key's record and on the gate of its limiter group behind an address, as a machine makes it: for testing a
    /// store.
    pub fn for_key(key: &Key, egress: &str, command: StoreCommand) -> Self {
        Vault::new(key, key.credentials().secret(), egress).op(command)
    }

    /// A key of which only holders of the same client secret have a copy, another one for each record. For a store that encrypts
    /// what it keeps.
    pub fn sealing_key(&self) -> &SealingKey {
        &self.sealing_key
    }
}

/// What a store is asked to do.
#[derive(Clone, Debug)]
pub enum StoreCommand {
    /// Only say what is there.
    Read,
    /// Take the lease, or renew it.
    Lease {
        /// Who wants it.
        owner: Owner,
        /// For how long, unless it is renewed or ended before.
        ttl: Duration,
    },
    /// Write a record, and end the lease.
    Publish {
        /// Who holds the lease; `None` for a process that works alone: then the record's order alone decides.
        owner: Option<Owner>,
        /// What to write.
        record: Record,
    },
    /// End the lease without a record.
    Release {
        /// Who holds it.
        owner: Owner,
        /// For how long nobody may take it; zero lets the next one at once.
        rest: Duration,
        /// How many requests in a row have failed, for whoever takes it next.
        failures: u32,
    },
    /// Close the gate.
    CloseGate {
        /// Until when.
        until: Unix,
    },
}

/// What a store has, after an operation.
#[derive(Clone, Debug, Default)]
pub struct StoreReply {
    /// The record; `None` when there is none, or when what is there is not one.
    pub record: Option<Record>,
    /// Until when the gate is closed; `None` when it was never closed, or is open again.
    pub gate: Option<Unix>,
    /// Who has the lease.
    pub lease: Lease,
    /// How many requests in a row have failed, as was said when the lease was last released.
    pub failures: u32,
}

/// Who has the lease of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Lease {
    /// Nobody.
    #[default]
    Free,
    /// The owner that the operation names.
    Mine,
    /// Another owner.
    Taken,
    /// Another owner, which has not renewed it in time and from which it cannot be taken, as a lock cannot from a stopped process.
    Lapsed,
    /// Nobody, and nobody may take it for so long.
    Resting(Duration),
}

/// Who holds a lease: a number that no other process has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u128);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({self})")
    }
}

/// A key for encrypting a record, derived from the client secret. It shows nothing, and is wiped with its last copy.
#[derive(Clone)]
pub struct SealingKey(pub(crate) Zeroizing<[u8; 32]>);

impl SealingKey {
    /// The key itself.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[sealing key]")
    }
}

/// Why a store could not do what it was asked for. The text is the store's own, for people; it is cut, and cleared of secrets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreFailure {
    /// What went wrong, and where to look.
    pub detail: String,
}

impl StoreFailure {
    /// A failure with the store's description of it.
    pub fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into() }
    }
}

impl fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for StoreFailure {}
