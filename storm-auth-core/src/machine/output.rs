//! What comes out of the machine, as data: it can be printed, recorded and compared.

use core::fmt;
use core::time::Duration;
use std::collections::VecDeque;

use http::Request;

use crate::error::{AcquireError, Cause};
use crate::machine::{KeyId, WaiterId};
use crate::store::StoreOp;
use crate::time::{Mono, Unix};
use crate::token::{Token, TokenId};
use crate::wire::request::FormBody;
use crate::wire::response::{Diagnostic, Refusal};

/// Something that the machine wants done or known, first in first out.
#[derive(Clone, Debug)]
pub enum Output {
    /// Do this, and report what happened.
    Perform(Action),
    /// This waiter has its result; it will get no other.
    Resolve(WaiterId, Result<Token, AcquireError>),
    /// This happened; may be ignored.
    Event(Event),
}

/// What a driver does for the machine.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send a token request, and report with `handle_response` or `handle_failure`.
    Send(TokenRequest),
    /// Hand an operation to the store, on a thread that may block, and report with `handle_store`. Only where a store was
    /// announced with [`share`](crate::Machine::share). Perform them one after the other, in the order they come.
    Store(StoreRequest),
    /// Look where a key's credentials come from, on a thread that may block where that takes its time, and report with
    /// `handle_credentials`. Only for keys that were announced with
    /// [`renew_credentials`](crate::Machine::renew_credentials). Nothing waits for it.
    Credentials(CredentialsRequest),
}

impl Action {
    /// Names the operation in the report.
    pub fn op(&self) -> OpId {
        match self {
            Self::Send(send) => send.op,
            Self::Store(request) => request.op,
            Self::Credentials(request) => request.op,
        }
    }
}

/// A look at the place where a key's credentials come from. There is one under way per key at the most: until it is reported, no other
/// is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CredentialsRequest {
    /// Names the operation in the report.
    pub op: OpId,
    /// Whose credentials.
    pub key: KeyId,
}

/// An operation for a store.
#[derive(Clone, Debug)]
pub struct StoreRequest {
    /// Names the operation in the report.
    pub op: OpId,
    /// Whose token it is about.
    pub key: KeyId,
    /// What to hand to the store.
    pub store_op: StoreOp,
    /// How long it may take. The machine gives up on it by itself then.
    pub patience: Duration,
}

/// A token request to be sent, once, to the URL it names and nowhere else: no redirect is followed, nothing is retried.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TokenRequest {
    /// Names the operation in the report.
    pub op: OpId,
    /// Whose token it is for.
    pub key: KeyId,
    /// Why it goes out.
    pub reason: Reason,
    /// The request. Its body holds the client secret.
    pub request: Request<FormBody>,
    /// How long the whole exchange may take. The machine gives up on it by itself then; the driver frees its socket.
    pub patience: Duration,
    /// Whether a lease is held for it, which has to be renewed while it is under way: somebody has to sleep until
    /// `poll_timeout` then and call `handle_timeout`, also when no caller waits.
    pub leased: bool,
}

impl TokenRequest {
    /// How long a connection, its TLS handshake included, may take (R47).
    pub const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
}

/// Names one operation that a driver performs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub(super) u64);

impl OpId {
    /// Its number: operations are counted from 0 in their machine, and no number is used twice.
    pub fn index(self) -> u64 {
        self.0
    }
}

/// When to call `handle_timeout` next, and what for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeout {
    /// The point on the monotonic clock; it may lie in the past.
    pub at: Mono,
    /// What is due then.
    pub reason: TimeoutReason,
}

/// What a timeout is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TimeoutReason {
    /// Outputs are queued: call `poll_output` first.
    Output,
    /// A request's patience ends.
    Patience,
    /// A caller's deadline passes.
    Deadline,
    /// The gate or the budget lets the next request go.
    NextSlot,
    /// A key that is kept warm needs its refresh.
    KeepWarm,
    /// A lease has to be renewed, or whoever holds it is looked after.
    Lease,
    /// A key that is kept warm was refused: it is looked where its credentials come from.
    Credentials,
}

/// Why a request goes out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// The key never had a token.
    First,
    /// The token's refresh time has come; it is still served.
    Refresh,
    /// The token has expired.
    Expired,
    /// The API rejected the token.
    Rejected,
}

impl Reason {
    /// The word for it in logs and metrics: `first`, `refresh`, `expired`, `rejected`.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Refresh => "refresh",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
        }
    }
}

/// What happened and why, for people and meters. No event holds a secret.
///
/// Its `Display` is for people. For logs that are searched, each has a [name](Self::name) and [facts](Self::facts), which are stable:
///
/// | name | severity | facts |
/// |---|---|---|
/// | `key_added` | info | `key` |
/// | `token_requested` | debug | `key`, `op`, `reason` |
/// | `request_deferred` | info | `key`, `reason`, `retry_at` |
/// | `token_granted` | debug | `key`, `expires_at`, `refresh_at` |
/// | `token_adopted` | debug | `key`, `expires_at`, `refresh_at` |
/// | `record_ignored` | warn | `key`, `cause` |
/// | `lease_lapsed` | warn | `key` |
/// | `store_failed` | warn | `retry_at` |
/// | `store_recovered` | info | |
/// | `answer_noticed` | info | `key` |
/// | `config_refused` | error | `key`, `cause`, `retry_at` |
/// | `request_failed` | warn | `key`, `cause`, `retry_at` |
/// | `gate_closed` | warn | `retry_at` |
/// | `token_rejected` | warn | `key`, `retry_at` where none is asked for before |
/// | `rejection_ignored` | debug | `key` |
/// | `replay_abandoned` | warn | `key`, `retry_at` where the reason has one |
/// | `credentials_replaced` | info | `key` |
/// | `secret_swapped` | info | `key` |
/// | `credentials_failed` | warn | `key` |
/// | `late_report` | debug | `op` |
/// | `events_dropped` | info | |
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A key was added; other events name it by its number.
    KeyAdded {
        /// The key.
        key: KeyId,
        /// Its client id.
        client_id: String,
        /// The scope that is asked for; `None` for the server's default.
        scope: Option<String>,
    },
    /// A token request goes out.
    Requested {
        /// The key it is for.
        key: KeyId,
        /// The operation.
        op: OpId,
        /// Why.
        reason: Reason,
    },
    /// A request has to wait for the gate or the budget.
    Deferred {
        /// The key it is for.
        key: KeyId,
        /// Why it is wanted.
        reason: Reason,
        /// When it may go, as far as is known.
        until: Unix,
    },
    /// A token came.
    Granted {
        /// The key it is for.
        key: KeyId,
        /// The token.
        token: TokenId,
        /// When it is no longer handed out.
        expires_at: Unix,
        /// When the first call starts its refresh.
        refresh_at: Unix,
        /// The scope that the server granted, where it named one that differs from the one asked for (R19).
        other_scope: Option<String>,
    },
    /// Another process's token was found in the store.
    Adopted {
        /// The key it is for.
        key: KeyId,
        /// The token.
        token: TokenId,
        /// When it is no longer handed out.
        expires_at: Unix,
        /// When the first call starts its refresh.
        refresh_at: Unix,
    },
    /// A record in the store was ignored.
    RecordIgnored {
        /// The key whose record it is.
        key: KeyId,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// The lease is held by a process that hangs, or the store gives it to nobody: this process goes on alone.
    LeaseLapsed {
        /// The key.
        key: KeyId,
    },
    /// The store cannot be used: this process goes on alone, within its budget, and says nothing more until it can.
    StoreFailed {
        /// What the store says.
        detail: String,
        /// When it is asked again.
        retry_at: Unix,
    },
    /// The store works again.
    StoreRecovered,
    /// The answer had something odd in it that did not matter.
    Noticed {
        /// The key whose answer it was.
        key: KeyId,
        /// What was odd.
        diagnostic: Diagnostic,
    },
    /// The endpoint refused the configuration; callers without a token fail until `retry_at`.
    Refused {
        /// The key it refused.
        key: KeyId,
        /// What it said.
        refusal: Refusal,
        /// When it may be asked again.
        retry_at: Unix,
    },
    /// A request brought no token; a held one stays.
    Failed {
        /// The key it was for.
        key: KeyId,
        /// Why.
        cause: Cause,
        /// When the endpoint may be asked again.
        retry_at: Unix,
    },
    /// The gate of the limiter group closed, or stays closed longer.
    GateClosed {
        /// Until then nothing is sent, for any key.
        until: Unix,
        /// Whether the endpoint itself said for how long.
        retry_after: Option<Duration>,
    },
    /// The API rejected the current token; it is never served again.
    TokenRejected {
        /// The token.
        token: TokenId,
        /// Whether no new one is asked for, because two fresh ones were rejected in a row, and until when.
        held_off_until: Option<Unix>,
    },
    /// A token was rejected that is not the current one: nothing changed.
    RejectionIgnored {
        /// The token.
        token: TokenId,
    },
    /// A rejected API call was not sent again, and its caller got the 401.
    ReplayAbandoned {
        /// The token that was rejected.
        token: TokenId,
        /// Why no other could be had; `None` when the call cannot be sent twice.
        error: Option<AcquireError>,
    },
    /// The credentials of a key were replaced.
    CredentialsReplaced {
        /// The key.
        key: KeyId,
    },
    /// The other one of two secrets is used from now on: the one before was refused, or another process got a token with this one.
    SecretSwapped {
        /// The key.
        key: KeyId,
    },
    /// Where the credentials of a key come from, none were found that can be used; the known ones stay.
    CredentialsFailed {
        /// The key.
        key: KeyId,
        /// What the place says, cleared of secrets.
        detail: String,
    },
    /// An answer or failure came for an operation that is over, or an error for credentials that were replaced.
    LateReport {
        /// The operation.
        op: OpId,
    },
    /// Events were dropped because nobody took them.
    Dropped {
        /// How many.
        count: u64,
    },
}

/// What is wrong with a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RecordFault {
    /// Nobody with this client's secret has written it as it is.
    Unreadable,
    /// Its request was sent later than it is now.
    FromTheFuture,
}

impl RecordFault {
    /// The word for it in logs: `unreadable`, `from_the_future`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::FromTheFuture => "from_the_future",
        }
    }
}

impl fmt::Display for RecordFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable => "it was not written by a holder of this client's secret, or was changed since; look at who may write to the store",
            Self::FromTheFuture => "its token is from the future; look at the clocks of the machines that share the store",
        })
    }
}

/// How much an event matters to whoever operates the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Ordinary work.
    Debug,
    /// Worth a line: it tells what the library did about something from outside.
    Info,
    /// Tokens are late, or will run out unless something changes.
    Warn,
    /// A person has to change the configuration.
    Error,
}

/// What an event says, in parts: `None` where it has no such part.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Facts {
    /// The key that it is about.
    pub key: Option<KeyId>,
    /// The operation that it is about.
    pub op: Option<OpId>,
    /// Why a request is wanted.
    pub reason: Option<&'static str>,
    /// What went wrong, in a word.
    pub cause: Option<&'static str>,
    /// When the token is no longer handed out.
    pub expires_at: Option<Unix>,
    /// When the first call starts the token's refresh.
    pub refresh_at: Option<Unix>,
    /// When it is tried again, at the earliest.
    pub retry_at: Option<Unix>,
}

impl Event {
    /// Its name in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::KeyAdded { .. } => "key_added",
            Self::Requested { .. } => "token_requested",
            Self::Deferred { .. } => "request_deferred",
            Self::Granted { .. } => "token_granted",
            Self::Adopted { .. } => "token_adopted",
            Self::RecordIgnored { .. } => "record_ignored",
            Self::LeaseLapsed { .. } => "lease_lapsed",
            Self::StoreFailed { .. } => "store_failed",
            Self::StoreRecovered => "store_recovered",
            Self::Noticed { .. } => "answer_noticed",
            Self::Refused { .. } => "config_refused",
            Self::Failed { .. } => "request_failed",
            Self::GateClosed { .. } => "gate_closed",
            Self::TokenRejected { .. } => "token_rejected",
            Self::RejectionIgnored { .. } => "rejection_ignored",
            Self::ReplayAbandoned { .. } => "replay_abandoned",
            Self::CredentialsReplaced { .. } => "credentials_replaced",
            Self::SecretSwapped { .. } => "secret_swapped",
            Self::CredentialsFailed { .. } => "credentials_failed",
            Self::LateReport { .. } => "late_report",
            Self::Dropped { .. } => "events_dropped",
        }
    }

    /// What it says, in parts.
    pub fn facts(&self) -> Facts {
        let of = |key: KeyId| Facts { key: Some(key), ..Facts::default() };
        match self {
            Self::KeyAdded { key, .. }
            | Self::LeaseLapsed { key }
            | Self::Noticed { key, .. }
            | Self::CredentialsReplaced { key }
            | Self::SecretSwapped { key }
            | Self::CredentialsFailed { key, .. } => of(*key),
            Self::Requested { key, op, reason } => Facts { op: Some(*op), reason: Some(reason.name()), ..of(*key) },
            Self::Deferred { key, reason, until } => {
                Facts { reason: Some(reason.name()), retry_at: Some(*until), ..of(*key) }
            }
            Self::Granted { key, expires_at, refresh_at, .. } | Self::Adopted { key, expires_at, refresh_at, .. } => {
                Facts { expires_at: Some(*expires_at), refresh_at: Some(*refresh_at), ..of(*key) }
            }
            Self::RecordIgnored { key, fault } => Facts { cause: Some(fault.name()), ..of(*key) },
            Self::Refused { key, retry_at, .. } => {
                Facts { cause: Some("refused"), retry_at: Some(*retry_at), ..of(*key) }
            }
            Self::Failed { key, cause, retry_at } => {
                Facts { cause: Some(cause.name()), retry_at: Some(*retry_at), ..of(*key) }
            }
            Self::StoreFailed { retry_at, .. } => Facts { retry_at: Some(*retry_at), ..Facts::default() },
            Self::GateClosed { until, .. } => Facts { retry_at: Some(*until), ..Facts::default() },
            Self::TokenRejected { token, held_off_until } => Facts { retry_at: *held_off_until, ..of(token.key()) },
            Self::RejectionIgnored { token } => of(token.key()),
            Self::ReplayAbandoned { token, error } => {
                Facts { retry_at: error.as_ref().and_then(AcquireError::retry_at), ..of(token.key()) }
            }
            Self::LateReport { op } => Facts { op: Some(*op), ..Facts::default() },
            Self::StoreRecovered | Self::Dropped { .. } => Facts::default(),
        }
    }

    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Requested { .. }
            | Self::Granted { .. }
            | Self::Adopted { .. }
            | Self::RejectionIgnored { .. }
            | Self::LateReport { .. } => Severity::Debug,
            Self::KeyAdded { .. }
            | Self::Deferred { .. }
            | Self::Noticed { .. }
            | Self::CredentialsReplaced { .. }
            | Self::SecretSwapped { .. }
            | Self::StoreRecovered
            | Self::Dropped { .. } => Severity::Info,
            Self::Failed { .. }
            | Self::GateClosed { .. }
            | Self::TokenRejected { .. }
            | Self::RecordIgnored { .. }
            | Self::LeaseLapsed { .. }
            | Self::StoreFailed { .. }
            | Self::CredentialsFailed { .. }
            | Self::ReplayAbandoned { .. } => Severity::Warn,
            Self::Refused { .. } => Severity::Error,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyAdded { key, client_id, scope } => {
                write!(
                    f,
                    "key {}: client {client_id}, scope {}",
                    key.index(),
                    scope.as_deref().unwrap_or("(the server's)")
                )
            }
            Self::Requested { key, reason, .. } => write!(f, "key {}: token requested, {reason}", key.index()),
            Self::Deferred { key, reason, until } => {
                write!(f, "key {}: token request, {reason}, has to wait until {until}", key.index())
            }
            Self::Granted { key, expires_at, refresh_at, other_scope, .. } => {
                write!(f, "key {}: token granted until {expires_at}, refreshed from {refresh_at}", key.index())?;
                match other_scope {
                    Some(scope) => write!(f, "; the granted scope differs from the one asked for: {scope}"),
                    None => Ok(()),
                }
            }
            Self::Adopted { key, expires_at, refresh_at, .. } => {
                let key = key.index();
                write!(f, "key {key}: token of another process taken until {expires_at}, refreshed from {refresh_at}")
            }
            Self::RecordIgnored { key, fault } => {
                write!(f, "key {}: the store's record is ignored: {fault}", key.index())
            }
            Self::LeaseLapsed { key } => {
                write!(
                    f,
                    "key {}: the process that holds the lease does not come to an end; going on alone",
                    key.index()
                )
            }
            Self::StoreFailed { detail, retry_at } => {
                write!(f, "the token store cannot be used, going on alone: {detail}; asked again from {retry_at}")
            }
            Self::StoreRecovered => f.write_str("the token store works again"),
            Self::Noticed { key, diagnostic } => write!(f, "key {}: {diagnostic}", key.index()),
            Self::Refused { key, refusal, retry_at } => {
                write!(f, "key {}: {refusal}; asked again from {retry_at}", key.index())
            }
            Self::Failed { key, cause, retry_at } => {
                write!(f, "key {}: {cause}; tried again from {retry_at}", key.index())
            }
            Self::GateClosed { until, retry_after: Some(_) } => {
                write!(f, "the token endpoint wants no request before {until}")
            }
            Self::GateClosed { until, retry_after: None } => {
                write!(f, "the token endpoint throttles; nothing is sent before {until}")
            }
            Self::TokenRejected { token, held_off_until: None } => write!(f, "the API rejected {token:?}"),
            Self::TokenRejected { token, held_off_until: Some(until) } => {
                write!(
                    f,
                    "the API rejected {token:?}, the second fresh token in a row; none is asked for before {until}"
                )
            }
            Self::RejectionIgnored { token } => {
                write!(f, "the API rejected {token:?}, which had been replaced already")
            }
            Self::ReplayAbandoned { token, error: Some(error) } => {
                write!(f, "the API rejected {token:?} and its call was not sent again: {error}")
            }
            Self::ReplayAbandoned { token, error: None } => {
                write!(f, "the API rejected {token:?} and its call was not sent again: it cannot be sent twice")
            }
            Self::CredentialsReplaced { key } => write!(f, "key {}: credentials replaced", key.index()),
            Self::SecretSwapped { key } => {
                write!(f, "key {}: the other one of its two secrets is used now", key.index())
            }
            Self::CredentialsFailed { key, detail } => {
                let key = key.index();
                write!(f, "key {key}: no credentials where they come from, the known ones stay in use: {detail}")
            }
            Self::LateReport { op } => write!(f, "a report for request {} came late and was ignored", op.0),
            Self::Dropped { count } => write!(f, "{count} events were dropped because nobody took them"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "the first one",
            Self::Refresh => "to refresh it in time",
            Self::Expired => "since it has expired",
            Self::Rejected => "since the API rejected it",
        })
    }
}

/// Outputs in their order. Events are the only kind whose number no caller bounds, so they have a cap.
#[derive(Clone, Default, Debug)]
pub(super) struct Outputs {
    queue: VecDeque<Output>,
    events: usize,
    dropped: u64,
}

impl Outputs {
    /// Events that may wait to be taken.
    const MOST_EVENTS: usize = 256;

    pub(super) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    pub(super) fn event(&mut self, event: Event) {
        if self.events >= Self::MOST_EVENTS {
            self.dropped += 1;
            return;
        }
        self.events += 1;
        self.queue.push_back(Output::Event(event));
    }

    pub(super) fn pop(&mut self) -> Option<Output> {
        let output = self.queue.pop_front();
        match &output {
            Some(Output::Event(_)) => self.events -= 1,
            None if self.dropped > 0 => {
                let count = core::mem::take(&mut self.dropped);
                return Some(Output::Event(Event::Dropped { count }));
            }
            _ => {}
        }
        output
    }

    /// Takes a request back that no driver has taken.
    pub(super) fn withdraw(&mut self, op: OpId) {
        self.queue.retain(|output| !matches!(output, Output::Perform(action) if action.op() == op));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.dropped == 0
    }
}

/// What a machine has counted since it was made (R79).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Counters {
    /// Token requests that were let go.
    pub requests: u64,
    /// Answers with a usable token.
    pub granted: u64,
    /// 429 and 503 answers.
    pub throttled: u64,
    /// Refused configurations.
    pub refused: u64,
    /// Answers without a usable token that were none of these.
    pub unusable: u64,
    /// Requests that got no connection.
    pub unconnected: u64,
    /// Requests whose patience ran out.
    pub timed_out: u64,
    /// Requests whose connection broke.
    pub broken: u64,
    /// Requests that this side aborted.
    pub aborted: u64,
    /// Current tokens that the API rejected.
    pub rejected: u64,
    /// Records of other processes whose token was taken.
    pub store_hits: u64,
    /// Times that the store had no record, or none that was of use.
    pub store_misses: u64,
    /// Operations that the store could not do.
    pub store_failures: u64,
    /// How long the gate was closed, the rest of the current closure included.
    pub gated: Duration,
}

/// The state of a limiter group, for a health endpoint.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Status {
    /// Until when the gate is closed; `None` when it is open.
    pub gate_closed_until: Option<Unix>,
    /// Until when keys that fail do not retry, because another one has just tried; `None` when nothing holds them back.
    pub retries_held_until: Option<Unix>,
    /// How many requests the budget would let go at once; `u32::MAX` without a budget.
    pub budget_left: u32,
    /// How many callers wait.
    pub waiters: usize,
    /// The keys, in the order they were added.
    pub keys: Vec<KeyStatus>,
}

/// The state of one key, for a health endpoint.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct KeyStatus {
    /// The key.
    pub key: KeyId,
    /// Its client id.
    pub client_id: String,
    /// The scope that is asked for; `None` for the server's default.
    pub scope: Option<String>,
    /// Whether a token is held, and until when it is served.
    pub token_until: Option<Unix>,
    /// When the next call starts a refresh; `None` without a token.
    pub refresh_at: Option<Unix>,
    /// What the key is doing.
    pub activity: Activity,
    /// What stands in the way, while it does: a caller without a token would get this.
    pub error: Option<AcquireError>,
}

/// What a key is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Activity {
    /// Nothing.
    Idle,
    /// It waits for the gate or the budget.
    Queued,
    /// Its request is under way.
    Requesting,
    /// It waits after a failure.
    BackingOff,
    /// It asks the store.
    AskingStore,
    /// Another process requests its token.
    Following,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::response::Class;

    /// What logs are searched for: these names, words and facts stay as they are, as documented above.
    #[test]
    fn r79_each_event_has_a_stable_name_severity_and_facts() {
        let (key, op, at) = (KeyId::NONE, OpId(5), Unix::from_millis);
        let token = TokenId { key, digest: [0; 16] };
        let refusal = Refusal {
            class: Class::Configuration,
            status: 400,
            error: None,
            invalid_client: false,
            problem: None,
            location: None,
        };
        let limited = AcquireError::RateLimited { retry_at: at(9_000), before: None };
        let (client_id, detail) = ("shop".to_owned(), "no way there".to_owned());
        let events = [
            Event::KeyAdded { key, client_id, scope: None },
            Event::Requested { key, op, reason: Reason::First },
            Event::Deferred { key, reason: Reason::Refresh, until: at(1_000) },
            Event::Granted { key, token, expires_at: at(3_000), refresh_at: at(2_000), other_scope: None },
            Event::Adopted { key, token, expires_at: at(3_000), refresh_at: at(2_000) },
            Event::RecordIgnored { key, fault: RecordFault::FromTheFuture },
            Event::LeaseLapsed { key },
            Event::StoreFailed { detail: detail.clone(), retry_at: at(4_000) },
            Event::StoreRecovered,
            Event::Noticed { key, diagnostic: Diagnostic::TokenTypeMissing },
            Event::Refused { key, refusal, retry_at: at(60_000) },
            Event::Failed { key, cause: Cause::NoLifetime, retry_at: at(5_000) },
            Event::GateClosed { until: at(6_000), retry_after: None },
            Event::TokenRejected { token, held_off_until: Some(at(7_000)) },
            Event::TokenRejected { token, held_off_until: None },
            Event::RejectionIgnored { token },
            Event::ReplayAbandoned { token, error: Some(limited) },
            Event::ReplayAbandoned { token, error: None },
            Event::CredentialsReplaced { key },
            Event::SecretSwapped { key },
            Event::CredentialsFailed { key, detail },
            Event::LateReport { op },
            Event::Dropped { count: 1 },
        ];
        let told = events.each_ref().map(|event| {
            let Facts { key, op, reason, cause, expires_at, refresh_at, retry_at } = event.facts();
            let mut text = format!("{} {:?}", event.name(), event.severity());
            let numbers = [("op", op.map(|op| op.0)), ("expires_at", expires_at.map(Unix::as_millis))];
            let times = [("refresh_at", refresh_at.map(Unix::as_millis)), ("retry_at", retry_at.map(Unix::as_millis))];
            text.push_str(key.map_or("", |_| " key"));
            for (name, number) in numbers.into_iter().chain(times) {
                text.push_str(&number.map_or(String::new(), |number| format!(" {name}={number}")));
            }
            text + &[reason, cause].into_iter().flatten().map(|word| format!(" {word}")).collect::<String>()
        });
        assert_eq!(
            told.each_ref().map(String::as_str),
            [
                "key_added Info key",
                "token_requested Debug key op=5 first",
                "request_deferred Info key retry_at=1000 refresh",
                "token_granted Debug key expires_at=3000 refresh_at=2000",
                "token_adopted Debug key expires_at=3000 refresh_at=2000",
                "record_ignored Warn key from_the_future",
                "lease_lapsed Warn key",
                "store_failed Warn retry_at=4000",
                "store_recovered Info",
                "answer_noticed Info key",
                "config_refused Error key retry_at=60000 refused",
                "request_failed Warn key retry_at=5000 no_lifetime",
                "gate_closed Warn retry_at=6000",
                "token_rejected Warn key retry_at=7000",
                "token_rejected Warn key",
                "rejection_ignored Debug key",
                "replay_abandoned Warn key retry_at=9000",
                "replay_abandoned Warn key",
                "credentials_replaced Info key",
                "secret_swapped Info key",
                "credentials_failed Warn key",
                "late_report Debug op=5",
                "events_dropped Info",
            ]
        );
    }
}
