//! What others do, as small models: when they refresh, how they retry, and until when they think a token lives.

use super::holder::{Holding, News};

const SECOND: u64 = 1_000;

/// How long they wait for an answer.
const PATIENCE: u64 = 30 * SECOND;

/// The policy of a client that is not ours.
#[derive(Debug)]
pub struct Peer {
    /// What it is called on a command line.
    pub name: &'static str,
    /// What it does, and who does it.
    pub about: &'static str,
    refresh: Refresh,
    retry: Retry,
    /// Whether it counts the lifetime from the answer, not from the request.
    from_answer: bool,
}

#[derive(Debug)]
enum Refresh {
    /// After a share of the lifetime, drawn anew for each token from these two, in thousandths.
    Share(u64, u64),
    /// So many seconds before its end.
    Before(u64),
}

#[derive(Debug)]
enum Retry {
    /// After a span that is drawn from these two, in seconds, whatever went wrong.
    Between(u64, u64),
    /// With the next call.
    NextCall,
    /// After a second, then after twice as long each time, up to so many seconds, each half drawn.
    Doubling(u64),
}

/// The policies that are compared with ours, the best first. What is common to them is told in their favour: all have one request
/// at a time, and all serve the token that lives while it is refreshed.
pub const PEERS: [Peer; 6] = [
    Peer {
        name: "steady",
        about: "refreshes at 0.90 of the life, retries after 5-10 s",
        refresh: Refresh::Share(900, 900),
        retry: Retry::Between(5, 10),
        from_answer: false,
    },
    Peer {
        name: "jitter",
        about: "refreshes at 0.75-0.90 of the life, drawn anew each time, retries after 10-30 s (MSAL, Vault and AWS in spirit)",
        refresh: Refresh::Share(750, 900),
        retry: Retry::Between(10, 30),
        from_answer: false,
    },
    Peer {
        name: "backoff",
        about: "refreshes at 0.90 of the life, retries after 1 s, doubling to 300 s",
        refresh: Refresh::Share(900, 900),
        retry: Retry::Doubling(300),
        from_answer: false,
    },
    Peer {
        name: "margin",
        about: "refreshes 60 s before the end, retries with the next call (most caches written by hand)",
        refresh: Refresh::Before(60),
        retry: Retry::NextCall,
        from_answer: false,
    },
    Peer {
        name: "background",
        about: "refreshes 60 s before the end, retries after 10 s, counts the lifetime from the answer (google-cloud-auth in spirit)",
        refresh: Refresh::Before(60),
        retry: Retry::Between(10, 10),
        from_answer: true,
    },
    Peer {
        name: "expiry",
        about: "asks for a token once there is none any more, and again with the next call",
        refresh: Refresh::Before(0),
        retry: Retry::NextCall,
        from_answer: false,
    },
];

/// A process that decides as a peer does.
#[derive(Debug)]
pub(super) struct Client {
    peer: &'static Peer,
    rng: fastrand::Rng,
    held: Option<Holding>,
    refresh_at: u64,
    flight: Flight,
    failures: u32,
    next_op: u64,
    /// A request that nobody has taken yet.
    wanted: Option<u64>,
}

#[derive(Debug)]
enum Flight {
    Idle,
    Requesting { op: u64, sent: u64 },
    Waiting { until: u64 },
}

impl Client {
    pub(super) fn new(peer: &'static Peer, seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { peer, rng, held: None, refresh_at: 0, flight: Flight::Idle, failures: 0, next_op: 0, wanted: None }
    }

    pub(super) fn call(&mut self, at: u64) {
        if self.look(at).is_none_or(|look| look > at) {
            return;
        }
        let op = self.next_op;
        self.next_op += 1;
        self.flight = Flight::Requesting { op, sent: at };
        self.wanted = Some(op);
    }

    pub(super) fn elapse(&mut self, at: u64) {
        if let Flight::Requesting { sent, .. } = self.flight
            && sent + PATIENCE <= at
        {
            self.fail(at);
        }
    }

    pub(super) fn report(&mut self, op: u64, news: &News, at: u64) {
        let sent = match self.flight {
            Flight::Requesting { op: awaited, sent } if awaited == op => sent,
            _ => return,
        };
        let News::Token { serial, life } = *news else { return self.fail(at) };
        let from = if self.peer.from_answer { at } else { sent };
        self.refresh_at = from
            + match self.peer.refresh {
                Refresh::Share(least, most) => life * self.rng.u64(least..=most) / 1_000,
                Refresh::Before(seconds) => life.saturating_sub(seconds * SECOND),
            };
        self.held = Some(Holding { serial, until: from + life });
        self.flight = Flight::Idle;
        self.failures = 0;
    }

    fn fail(&mut self, at: u64) {
        self.failures += 1;
        let wait = match self.peer.retry {
            Retry::NextCall => 0,
            Retry::Between(least, most) => self.rng.u64(least * SECOND..=most * SECOND),
            Retry::Doubling(most) => {
                let wait = (SECOND << (self.failures - 1).min(20)).min(most * SECOND);
                wait / 2 + self.rng.u64(0..=wait / 2)
            }
        };
        self.flight = Flight::Waiting { until: at + wait };
    }

    pub(super) fn next_request(&mut self) -> Option<u64> {
        self.wanted.take()
    }

    pub(super) fn holding(&self, at: u64) -> Option<Holding> {
        self.held.filter(|held| held.until > at)
    }

    pub(super) fn timeout(&self) -> Option<u64> {
        match self.flight {
            Flight::Requesting { sent, .. } => Some(sent + PATIENCE),
            Flight::Idle | Flight::Waiting { .. } => None,
        }
    }

    pub(super) fn look(&self, at: u64) -> Option<u64> {
        let due = if self.holding(at).is_some() { self.refresh_at } else { at };
        match self.flight {
            Flight::Idle => Some(due),
            Flight::Waiting { until } => Some(until.max(due)),
            Flight::Requesting { .. } => None,
        }
    }
}
