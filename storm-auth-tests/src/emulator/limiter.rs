use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// How many addresses a limiter remembers. Past it, the one whose last accepted request is the oldest is forgotten.
const ADDRESSES: usize = 4_096;

/// What a limiter says about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes through at once.
    Pass,
    /// It goes through after this long; its slot is spent already, even if its client does not wait.
    Hold(Duration),
    /// It is refused.
    Reject,
}

/// The rule of a [`Limiter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimiterKind {
    /// Lets everything pass.
    None,
    /// nginx's `limit_req`.
    Nginx(Nginx),
}

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

impl Nginx {
    /// The documented limit of the token endpoint: three requests a minute with a burst of twenty, per IP address.
    /// The service does not name its limiter; the wording is that of `limit_req … rate=3r/m burst=20 nodelay`.
    pub const DOCUMENTED: Self = Self { per_minute: 3, burst: 20, nodelay: true };
}

/// A limiter per IP address, as a pure machine: it is told the time and touches no clock or socket.
///
/// The emulator puts one before its token endpoint; a simulation can ask one in virtual time.
///
/// ```
/// use std::net::{IpAddr, Ipv4Addr};
/// use storm_auth_tests::emulator::{Limiter, Verdict};
///
/// let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// let mut limiter = Limiter::nginx();
/// let passed = (0..23).filter(|_| limiter.admit(address, 0) == Verdict::Pass).count();
/// assert_eq!(passed, 21);
/// assert_eq!(limiter.admit(address, 19_999), Verdict::Reject);
/// assert_eq!(limiter.admit(address, 20_000), Verdict::Pass);
/// ```
#[derive(Clone, Debug)]
pub struct Limiter {
    kind: LimiterKind,
    buckets: BTreeMap<IpAddr, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Thousandths of a request above the rate.
    excess: u64,
    /// When the last accepted request came.
    last_ms: u64,
}

impl Limiter {
    /// A limiter of this kind that has seen nothing yet.
    pub fn new(kind: LimiterKind) -> Self {
        Self { kind, buckets: BTreeMap::new() }
    }

    /// The documented limit with `nodelay`: 21 requests pass at once, then one every 20 s, and the rest is refused.
    pub fn nginx() -> Self {
        Self::new(LimiterKind::Nginx(Nginx::DOCUMENTED))
    }

    /// The documented limit without `nodelay`: the k-th early request is held for k × 20 s, up to 400 s.
    pub fn nginx_delay() -> Self {
        Self::new(LimiterKind::Nginx(Nginx { nodelay: false, ..Nginx::DOCUMENTED }))
    }

    /// No limit.
    pub fn none() -> Self {
        Self::new(LimiterKind::None)
    }

    /// The rule.
    pub fn kind(&self) -> LimiterKind {
        self.kind
    }

    /// Decides about a request of `address` at `now_ms`, milliseconds from any origin, and counts it.
    pub fn admit(&mut self, address: IpAddr, now_ms: u64) -> Verdict {
        match self.kind {
            LimiterKind::None => Verdict::Pass,
            LimiterKind::Nginx(nginx) => self.admit_nginx(nginx, address, now_ms),
        }
    }

    /// The arithmetic of `ngx_http_limit_req_module`, in integers. A refused request changes nothing.
    fn admit_nginx(&mut self, nginx: Nginx, address: IpAddr, now_ms: u64) -> Verdict {
        // nginx divides by it only where there is an excess to wait out; 0 r/m is not a rate that it takes.
        let rate = (u64::from(nginx.per_minute) * 1_000 / 60).max(1);
        let Some(bucket) = self.buckets.get_mut(&address) else {
            self.remember(address, now_ms);
            return Verdict::Pass;
        };
        let ms = elapsed(bucket.last_ms, now_ms);
        let drained = rate.saturating_mul(ms) / 1_000;
        let excess = (bucket.excess + 1_000).saturating_sub(drained);
        if excess > u64::from(nginx.burst) * 1_000 {
            return Verdict::Reject;
        }
        bucket.excess = excess;
        if ms != 0 {
            bucket.last_ms = now_ms;
        }
        match excess * 1_000 / rate {
            0 => Verdict::Pass,
            _ if nginx.nodelay => Verdict::Pass,
            hold_ms => Verdict::Hold(Duration::from_millis(hold_ms)),
        }
    }

    fn remember(&mut self, address: IpAddr, now_ms: u64) {
        if self.buckets.len() >= ADDRESSES {
            let oldest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.last_ms).map(|(address, _)| *address);
            oldest.and_then(|address| self.buckets.remove(&address));
        }
        self.buckets.insert(address, Bucket { excess: 0, last_ms: now_ms });
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn addresses_are_counted_apart_and_their_number_is_bounded() {
        let mut limiter = Limiter::nginx();
        for n in 0..ADDRESSES as u32 + 10 {
            assert_eq!(limiter.admit(IpAddr::V4(Ipv4Addr::from(n)), u64::from(n)), Verdict::Pass);
        }
        assert_eq!(limiter.buckets.len(), ADDRESSES);
        assert!(!limiter.buckets.contains_key(&IpAddr::V4(Ipv4Addr::from(9))));
        assert!(limiter.buckets.contains_key(&IpAddr::V4(Ipv4Addr::from(10))));
    }

    #[test]
    fn the_far_ends_of_time_do_not_overflow() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut limiter =
            Limiter::new(LimiterKind::Nginx(Nginx { per_minute: u32::MAX, burst: u32::MAX, nodelay: false }));
        for now in [0, u64::MAX, 0, u64::MAX] {
            limiter.admit(address, now);
        }
        let mut still = Limiter::new(LimiterKind::Nginx(Nginx { per_minute: 0, burst: 1, nodelay: false }));
        assert_eq!(still.admit(address, 0), Verdict::Pass);
        assert_eq!(still.admit(address, 0), Verdict::Hold(Duration::from_secs(1_000)));
        assert_eq!(still.admit(address, 0), Verdict::Reject);
    }

    #[test]
    fn a_clock_that_stepped_back_gives_nothing_away() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut limiter = Limiter::nginx();
        for _ in 0..21 {
            assert_eq!(limiter.admit(address, 1_000_000), Verdict::Pass);
        }
        assert_eq!(limiter.admit(address, 950_000), Verdict::Reject);
        assert_eq!(limiter.admit(address, 0), Verdict::Reject);

        // One that is accepted there does not move `last` back: 10 s have drained half a request, not a whole one.
        let mut limiter = Limiter::nginx();
        for at in [[1_000_000; 20].as_slice(), &[990_000]].concat() {
            assert_eq!(limiter.admit(address, at), Verdict::Pass);
        }
        assert_eq!(limiter.admit(address, 1_010_000), Verdict::Reject);
        assert_eq!(limiter.admit(address, 1_020_000), Verdict::Pass);
    }
}
