//! What is simulated.

use core::time::Duration;

use super::peer::Peer;
use crate::emulator::Limiter;

/// Who takes part, behind which limiter, for how long, and what goes wrong.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Processes behind the one address.
    pub processes: usize,
    /// The lifetime of the tokens.
    pub lifetime: Duration,
    /// How long it is measured.
    pub hours: Duration,
    /// How long it goes on before that.
    pub warmup: Duration,
    /// How every process decides.
    pub policy: Policy,
    /// What stands before the token endpoint.
    pub limiter: Limiter,
    /// When the endpoint fails.
    pub outage: Option<Outage>,
    /// The store that they share; `None` where each has a token of its own. Only this library's policy has one.
    pub store: Option<Shared>,
    /// Each process stands still once in each span of the first length, at a random time, for the second.
    pub pause: Option<(Duration, Duration)>,
    /// Each process starts anew once in each span of this length, at a random time.
    pub restart_every: Option<Duration>,
}

impl Plan {
    /// 24 hours after two of warm-up behind the documented limiter, with the library's own policy, and nothing goes wrong.
    pub fn new(processes: usize, lifetime: Duration) -> Self {
        Self {
            processes,
            lifetime,
            hours: Duration::from_secs(24 * 3600),
            warmup: Duration::from_secs(2 * 3600),
            policy: Policy::default(),
            limiter: super::documented(),
            outage: None,
            store: None,
            pause: None,
            restart_every: None,
        }
    }

    /// Whether its processes share a token: peers have no store.
    pub fn shares(&self) -> bool {
        self.store.is_some() && matches!(self.policy, Policy::Storm(_))
    }
}

/// A store that processes share.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shared {
    /// It cannot be used for the second length, once in each span of the first, at the same random time in each.
    pub outage: Option<(Duration, Duration)>,
}

/// How a process decides.
#[derive(Clone, Debug)]
pub enum Policy {
    /// As this library does.
    Storm(Box<storm_auth_core::Policy>),
    /// As others do.
    Peer(&'static Peer),
}

impl Policy {
    /// What it is called on a command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Storm(_) => "storm",
            Self::Peer(peer) => peer.name,
        }
    }

    /// The share of a token's life after which it refreshes where no throttle was felt, for this library's policy.
    pub fn refresh_early(&self) -> Option<f64> {
        match self {
            Self::Storm(policy) => Some(policy.refresh_early),
            Self::Peer(_) => None,
        }
    }

    /// The policy of this name: `storm`, or one of [`PEERS`](super::PEERS).
    pub fn named(name: &str) -> Option<Self> {
        if name == "storm" {
            return Some(Self::default());
        }
        super::PEERS.iter().find(|peer| peer.name == name).map(Self::Peer)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::Storm(Box::default())
    }
}

/// The endpoint fails for `length`, once in each span of `every`, at a random time in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outage {
    /// How often.
    pub every: Duration,
    /// For how long; no longer than `every`.
    pub length: Duration,
    /// How it fails.
    pub kind: OutageKind,
}

/// How an endpoint fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutageKind {
    /// It answers 502 behind the limiter, so each attempt costs a slot.
    Status,
    /// Nobody listens: no attempt reaches the limiter.
    Refused,
    /// It takes requests behind the limiter and says nothing.
    Silent,
}

impl OutageKind {
    /// Their names on a command line.
    pub const NAMES: [(&'static str, Self); 3] =
        [("status", Self::Status), ("refused", Self::Refused), ("silent", Self::Silent)];
}
