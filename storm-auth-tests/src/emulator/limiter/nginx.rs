use std::time::Duration;

use super::Verdict;

/// The numbers of nginx's `limit_req zone=… rate=…r/m burst=… [nodelay]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nginx {
    /// Requests a minute, as in `rate=3r/m`. nginx cuts it to thousandths of a request a second: 3 r/m are 50.
    pub per_minute: u32,
    /// Requests that may come early, as in `burst=20`.
    pub burst: u32,
    /// Whether early requests pass at once (`nodelay`) or are held until their slot has come.
    pub nodelay: bool,
}

/// What is kept of an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Thousandths of a request above the rate.
    excess: u64,
    /// When the last accepted request came.
    pub(super) last_ms: u64,
}

impl Bucket {
    /// After an address's first request, which always passes.
    pub(super) fn first(now_ms: u64) -> Self {
        Self { excess: 0, last_ms: now_ms }
    }
}

impl Nginx {
    /// The documented limit of the token endpoint: three requests a minute with a burst of twenty, per IP address.
    /// The service does not name its limiter; the wording is that of `limit_req … rate=3r/m burst=20 nodelay`.
    pub const DOCUMENTED: Self = Self { per_minute: 3, burst: 20, nodelay: true };

    /// The arithmetic of `ngx_http_limit_req_module`, in integers. A refused request changes nothing.
    pub(super) fn admit(self, bucket: &mut Bucket, now_ms: u64) -> Verdict {
        let rate = self.rate();
        let ms = elapsed(bucket.last_ms, now_ms);
        let drained = rate.saturating_mul(ms) / 1_000;
        let excess = (bucket.excess + 1_000).saturating_sub(drained);
        if excess > self.deepest() {
            return Verdict::Reject;
        }
        bucket.excess = excess;
        if ms != 0 {
            bucket.last_ms = now_ms;
        }
        match excess * 1_000 / rate {
            0 => Verdict::Pass,
            _ if self.nodelay => Verdict::Pass,
            hold_ms => Verdict::Hold(Duration::from_millis(hold_ms)),
        }
    }

    pub(super) fn wait_ms(self, bucket: &Bucket, now_ms: u64) -> u64 {
        let over = (bucket.excess + 1_000).saturating_sub(self.deepest());
        (over * 1_000).div_ceil(self.rate()).saturating_sub(elapsed(bucket.last_ms, now_ms))
    }

    /// Thousandths of a request a second. nginx divides by it only where there is an excess to wait out; 0 r/m is not a rate
    /// that it takes.
    fn rate(self) -> u64 {
        (u64::from(self.per_minute) * 1_000 / 60).max(1)
    }

    fn deepest(self) -> u64 {
        u64::from(self.burst) * 1_000
    }
}

/// Time since the last accepted request. nginx takes a clock that stepped back for one that stands still, and one
/// that stepped back by more than a minute for a millisecond, which moves `last` to the new time.
fn elapsed(last_ms: u64, now_ms: u64) -> u64 {
    match now_ms.checked_sub(last_ms) {
        Some(ms) => ms,
        None if last_ms - now_ms > 60_000 => 1,
        None => 0,
    }
}
