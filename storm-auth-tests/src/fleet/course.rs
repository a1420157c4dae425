//! What is counted.

/// The width of a column of a [`Course`], in milliseconds.
pub(super) const COLUMN: u64 = 60_000;

/// What was counted while it was measured, over all processes and seeds. Spans are in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[non_exhaustive]
pub struct Figures {
    /// Seeds that were summed.
    pub seeds: u64,
    /// The measured time, over all seeds.
    pub measured: u64,
    /// The time in which processes ran that had had a token since they started.
    pub holding: u64,
    /// What of it they had no token that the server would still have taken.
    pub without: u64,
    /// The longest such time in a row.
    pub longest_without: u64,
    /// The time in which processes ran that had not had one yet.
    pub starting: u64,
    /// Starts of processes that got their first token.
    pub starts: u64,
    /// The longest time from a process's start to its first token, the warm-up included.
    pub longest_start: u64,
    /// How long after the first process started the last one got its first token, the warm-up included; `None` when one got
    /// none, in any seed.
    pub last_served_after: Option<u64>,
    /// Token requests that were sent.
    pub token_requests: u64,
    /// Those that the limiter refused.
    pub rejects: u64,
    /// Tokens that were issued.
    pub issued: u64,
    /// Calls that were given a token which the server took no more.
    pub expired_handed_out: u64,
}

impl Figures {
    /// The share of time without a token, of processes that had one, in percent.
    pub fn without_token_percent(&self) -> f64 {
        100.0 * self.without as f64 / (self.holding as f64).max(1.0)
    }

    /// The share of time without a token, of all processes, those that had not had one yet included, in percent.
    pub fn without_or_starting_percent(&self) -> f64 {
        100.0 * (self.without + self.starting) as f64 / ((self.holding + self.starting) as f64).max(1.0)
    }

    /// Requests an hour that the limiter refused.
    pub fn rejects_per_hour(&self) -> f64 {
        self.rejects as f64 / (self.measured as f64 / 3_600_000.0).max(f64::MIN_POSITIVE)
    }

    /// How long after the first process started the last one had its first token, in seconds.
    pub fn last_served_after_s(&self) -> Option<f64> {
        self.last_served_after.map(|millis| millis as f64 / 1_000.0)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.measured += other.measured;
        self.holding += other.holding;
        self.without += other.without;
        self.longest_without = self.longest_without.max(other.longest_without);
        self.starting += other.starting;
        self.starts += other.starts;
        self.longest_start = self.longest_start.max(other.longest_start);
        self.last_served_after = self.last_served_after.zip(other.last_served_after).map(|(one, other)| one.max(other));
        self.token_requests += other.token_requests;
        self.rejects += other.rejects;
        self.issued += other.issued;
        self.expired_handed_out += other.expired_handed_out;
    }
}

/// How one seed went, minute by minute, the warm-up included.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Course {
    /// Token requests that were sent in each minute.
    pub requests: Vec<u32>,
    /// Those that the limiter let pass.
    pub passed: Vec<u32>,
    /// The share of the processes that had a valid token, on the average of each minute.
    pub share: Vec<f64>,
}

impl Course {
    pub(super) fn new(end: u64) -> Self {
        let columns = (end.div_ceil(COLUMN)) as usize;
        Self { requests: vec![0; columns], passed: vec![0; columns], share: vec![0.0; columns] }
    }

    pub(super) fn sent(&mut self, at: u64) {
        count(&mut self.requests, at);
    }

    pub(super) fn let_pass(&mut self, at: u64) {
        count(&mut self.passed, at);
    }

    /// One of so many processes had a token from one time to another.
    pub(super) fn held(&mut self, from: u64, to: u64, processes: usize) {
        let whole = COLUMN as f64 * processes as f64;
        let mut at = from;
        while at < to {
            let column = at / COLUMN;
            let until = to.min((column + 1) * COLUMN);
            if let Some(share) = self.share.get_mut(column as usize) {
                *share += (until - at) as f64 / whole;
            }
            at = until;
        }
    }
}

fn count(columns: &mut [u32], at: u64) {
    if let Some(column) = columns.get_mut((at / COLUMN) as usize) {
        *column += 1;
    }
}
