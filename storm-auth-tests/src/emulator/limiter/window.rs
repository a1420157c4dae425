use std::collections::VecDeque;

use super::Verdict;

/// Azure API Management's `<rate-limit calls="…" renewal-period="…" />`: so many calls in any span of this length. What it
/// refuses does not count. Its 429 has a `Retry-After` in seconds and a JSON body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Calls that pass in each span.
    pub calls: u32,
    /// The span, in seconds; the product takes 300 at the most.
    pub renewal_period: u32,
}

/// When the calls came that passed in the last span, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(VecDeque<u64>);

impl Log {
    pub(super) fn last_ms(&self) -> u64 {
        self.0.back().copied().unwrap_or(0)
    }
}

impl Window {
    /// As many requests in the long run as the documented limit lets pass: 15 in five minutes.
    pub const LIKE_DOCUMENTED: Self = Self { calls: 15, renewal_period: 300 };

    pub(super) fn admit(self, log: &mut Log, now_ms: u64) -> Verdict {
        let now_ms = now_ms.max(log.last_ms());
        while log.0.front().is_some_and(|first| now_ms - first >= self.span_ms()) {
            log.0.pop_front();
        }
        if log.0.len() >= self.calls as usize {
            return Verdict::Reject;
        }
        log.0.push_back(now_ms);
        Verdict::Pass
    }

    pub(super) fn wait_ms(self, log: &Log, now_ms: u64) -> u64 {
        if log.0.len() < self.calls as usize {
            return 0;
        }
        log.0.front().map_or(self.span_ms(), |first| first.saturating_add(self.span_ms()).saturating_sub(now_ms))
    }

    fn span_ms(self) -> u64 {
        u64::from(self.renewal_period) * 1_000
    }
}
