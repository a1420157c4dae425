use super::Verdict;

/// A bucket that gets several tokens at once, at fixed points of the limiter's own clock. Its 429 says nothing more: no
/// `Retry-After`, no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lump {
    /// Tokens in each lump.
    pub tokens: u32,
    /// Seconds from one lump to the next.
    pub every: u32,
    /// Tokens that the bucket holds.
    pub bucket: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    tokens: u64,
    pub(super) last_ms: u64,
}

impl Lump {
    /// As many requests as the documented limit lets pass: three tokens each minute, and 21 at once.
    pub const LIKE_DOCUMENTED: Self = Self { tokens: 3, every: 60, bucket: 21 };

    pub(super) fn full(self, now_ms: u64) -> Bucket {
        Bucket { tokens: u64::from(self.bucket), last_ms: now_ms }
    }

    pub(super) fn admit(self, bucket: &mut Bucket, now_ms: u64) -> Verdict {
        let now_ms = now_ms.max(bucket.last_ms);
        let lumps = now_ms / self.every_ms() - bucket.last_ms / self.every_ms();
        let tokens = bucket.tokens.saturating_add(lumps.saturating_mul(u64::from(self.tokens)));
        *bucket = Bucket { tokens: tokens.min(u64::from(self.bucket)), last_ms: now_ms };
        match bucket.tokens.checked_sub(1) {
            None => Verdict::Reject,
            Some(left) => {
                bucket.tokens = left;
                Verdict::Pass
            }
        }
    }

    pub(super) fn wait_ms(self, bucket: &Bucket, now_ms: u64) -> u64 {
        if bucket.tokens > 0 { 0 } else { self.every_ms() - now_ms % self.every_ms() }
    }

    fn every_ms(self) -> u64 {
        u64::from(self.every.max(1)) * 1_000
    }
}
