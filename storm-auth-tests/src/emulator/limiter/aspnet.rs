use super::Verdict;

/// The middleware AspNetCoreRateLimit with two general rules. Each rule counts in a span that begins with its first request and
/// forgets all at its end. Its 429 has a `Retry-After` in seconds, rounded, and a line of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AspNet {
    /// The rule with the shorter period.
    pub short: Quota,
    /// The rule with the longer one.
    pub long: Quota,
    /// `StackBlockedRequests`: what the short rule refuses counts for the long one too, so whoever keeps knocking is
    /// locked out for the rest of the long period.
    pub stacked: bool,
}

/// One rule: so many requests in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests that pass.
    pub limit: u32,
    /// The period, in minutes.
    pub minutes: u32,
}

/// What the two rules have counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    short: Counter,
    long: Counter,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    since_ms: u64,
    count: u32,
}

impl Counters {
    pub(super) fn last_ms(&self) -> u64 {
        self.short.since_ms.max(self.long.since_ms)
    }
}

impl AspNet {
    /// As many requests in the long run as the documented limit lets pass, and a tenth more that may be spent on knocking:
    /// 21 in seven minutes, 200 in an hour, stacked.
    pub const LIKE_DOCUMENTED: Self =
        Self { short: Quota { limit: 21, minutes: 7 }, long: Quota { limit: 200, minutes: 60 }, stacked: true };

    pub(super) fn admit(self, counters: &mut Counters, now_ms: u64) -> Verdict {
        // The rule that refuses ends the round; when refusals are stacked the long rule has counted by then.
        let long = |counters: &mut Counters| self.long.count(&mut counters.long, now_ms);
        let short = |counters: &mut Counters| self.short.count(&mut counters.short, now_ms);
        let passes = match self.stacked {
            true => long(counters) && short(counters),
            false => short(counters) && long(counters),
        };
        if passes { Verdict::Pass } else { Verdict::Reject }
    }

    pub(super) fn wait_ms(self, counters: &Counters, now_ms: u64) -> u64 {
        let of = |quota: Quota, counter: &Counter| match counter.count >= quota.limit {
            true => quota.left_ms(counter, now_ms) + 1,
            false => 0,
        };
        of(self.long, &counters.long).max(of(self.short, &counters.short))
    }

    /// The rule that refused, and its `Retry-After`: the rest of the period, rounded, a second at the least.
    pub(super) fn exceeded(self, counters: &Counters, now_ms: u64) -> (Quota, u64) {
        let short = (self.short, counters.short);
        let long = (self.long, counters.long);
        let [first, second] = if self.stacked { [long, short] } else { [short, long] };
        let (quota, counter) = if first.1.count > first.0.limit { first } else { second };
        (quota, (quota.left_ms(&counter, now_ms).saturating_add(500) / 1_000).max(1))
    }
}

impl Quota {
    /// Counts a request, and says whether it passes.
    fn count(self, counter: &mut Counter, now_ms: u64) -> bool {
        let runs = counter.count > 0 && now_ms <= counter.since_ms.saturating_add(self.period_ms());
        if !runs {
            *counter = Counter { since_ms: now_ms, count: 0 };
        }
        counter.count = counter.count.saturating_add(1);
        counter.count <= self.limit
    }

    fn left_ms(self, counter: &Counter, now_ms: u64) -> u64 {
        counter.since_ms.saturating_add(self.period_ms()).saturating_sub(now_ms)
    }

    fn period_ms(self) -> u64 {
        u64::from(self.minutes) * 60_000
    }
}
