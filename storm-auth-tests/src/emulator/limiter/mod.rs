//! The limiters that stand in front of such token endpoints, each in its own arithmetic, as pure machines.

mod aspnet;
mod lump;
mod nginx;
mod refusal;
mod window;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};

pub use self::{
    aspnet::{AspNet, Quota},
    lump::Lump,
    nginx::Nginx,
    refusal::RetryAfter,
    window::Window,
};

/// How many addresses a limiter remembers. Past it, the one whose last accepted request is the oldest is forgotten.
const ADDRESSES: usize = 4_096;

/// What a limiter says about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes through at once.
    Pass,
    /// It goes through after this long; its slot is spent already, even if its client does not wait.
    Hold(Duration),
    /// It is refused; [`Limiter::refusal`] is its answer.
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
    /// Azure API Management's `rate-limit`.
    Window(Window),
    /// The middleware AspNetCoreRateLimit.
    AspNet(AspNet),
    /// A bucket that is refilled in lumps.
    Lump(Lump),
}

/// A limiter per IP address, as a pure machine: it is told the time and touches no clock or socket.
///
/// The emulator puts one before its token endpoint; the simulator asks one in virtual time. How a refusal is answered
/// belongs to the kind: [`refusal`](Self::refusal).
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
    /// In place of the kind's own.
    reject_status: Option<StatusCode>,
    retry_after: RetryAfter,
    addresses: BTreeMap<IpAddr, State>,
}

/// What is remembered of one address.
#[derive(Clone, Debug)]
enum State {
    Nginx(nginx::Bucket),
    Window(window::Log),
    AspNet(aspnet::Counters),
    Lump(lump::Bucket),
}

impl Limiter {
    /// The names that [`named`](Self::named) knows.
    pub const NAMES: [&str; 8] = ["none", "nginx", "nginx-delay", "nginx-503", "nginx-date", "apim", "aspnet", "lump"];

    /// A limiter of this kind that has seen nothing yet.
    pub fn new(kind: LimiterKind) -> Self {
        let retry_after = match kind {
            LimiterKind::Window(_) | LimiterKind::AspNet(_) => RetryAfter::Seconds,
            LimiterKind::None | LimiterKind::Nginx(_) | LimiterKind::Lump(_) => RetryAfter::None,
        };
        Self { kind, reject_status: None, retry_after, addresses: BTreeMap::new() }
    }

    /// The limiter that a command line calls by this name, one of [`NAMES`](Self::NAMES).
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::none(),
            "nginx" => Self::nginx(),
            "nginx-delay" => Self::nginx_delay(),
            "nginx-503" => Self::nginx_503(),
            "nginx-date" => Self::nginx_date(),
            "apim" => Self::new(LimiterKind::Window(Window::LIKE_DOCUMENTED)),
            "aspnet" => Self::new(LimiterKind::AspNet(AspNet::LIKE_DOCUMENTED)),
            "lump" => Self::new(LimiterKind::Lump(Lump::LIKE_DOCUMENTED)),
            _ => return None,
        })
    }

    /// The documented limit with `nodelay`: 21 requests pass at once, then one every 20 s, and the rest is refused.
    pub fn nginx() -> Self {
        Self::new(LimiterKind::Nginx(Nginx::DOCUMENTED))
    }

    /// The documented limit without `nodelay`: the k-th early request is held for k × 20 s, up to 400 s.
    pub fn nginx_delay() -> Self {
        Self::new(LimiterKind::Nginx(Nginx { nodelay: false, ..Nginx::DOCUMENTED }))
    }

    /// The documented limit, refusing with nginx's own default status.
    pub fn nginx_503() -> Self {
        Self::nginx().rejecting_with(StatusCode::SERVICE_UNAVAILABLE)
    }

    /// The documented limit, whose refusals name the HTTP date of the next free slot.
    pub fn nginx_date() -> Self {
        Self::nginx().telling(RetryAfter::Date)
    }

    /// No limit.
    pub fn none() -> Self {
        Self::new(LimiterKind::None)
    }

    /// The status of a refusal, in place of the kind's own 429.
    pub fn rejecting_with(mut self, status: StatusCode) -> Self {
        self.reject_status = Some(status);
        self
    }

    /// The form of a refusal's `Retry-After`, in place of the kind's own.
    pub fn telling(mut self, retry_after: RetryAfter) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// The rule.
    pub fn kind(&self) -> LimiterKind {
        self.kind
    }

    /// Decides about a request of `address` at `now_ms`, milliseconds from any origin, and counts it.
    pub fn admit(&mut self, address: IpAddr, now_ms: u64) -> Verdict {
        match (self.kind, self.addresses.get_mut(&address)) {
            (LimiterKind::None, _) => Verdict::Pass,
            (LimiterKind::Nginx(nginx), Some(State::Nginx(bucket))) => nginx.admit(bucket, now_ms),
            (LimiterKind::Window(window), Some(State::Window(log))) => window.admit(log, now_ms),
            (LimiterKind::AspNet(aspnet), Some(State::AspNet(counters))) => aspnet.admit(counters, now_ms),
            (LimiterKind::Lump(lump), Some(State::Lump(bucket))) => lump.admit(bucket, now_ms),
            (kind, _) => {
                let (state, verdict) = match kind {
                    LimiterKind::None => return Verdict::Pass,
                    LimiterKind::Nginx(_) => (State::Nginx(nginx::Bucket::first(now_ms)), Verdict::Pass),
                    LimiterKind::Window(window) => {
                        let mut log = window::Log::default();
                        let verdict = window.admit(&mut log, now_ms);
                        (State::Window(log), verdict)
                    }
                    LimiterKind::AspNet(aspnet) => {
                        let mut counters = aspnet::Counters::default();
                        let verdict = aspnet.admit(&mut counters, now_ms);
                        (State::AspNet(counters), verdict)
                    }
                    LimiterKind::Lump(lump) => {
                        let mut bucket = lump.full(now_ms);
                        let verdict = lump.admit(&mut bucket, now_ms);
                        (State::Lump(bucket), verdict)
                    }
                };
                self.remember(address, state);
                verdict
            }
        }
    }

    /// How long after `now_ms` a request of `address` would pass, if none came before it.
    pub fn wait(&self, address: IpAddr, now_ms: u64) -> Duration {
        Duration::from_millis(match (self.kind, self.addresses.get(&address)) {
            (LimiterKind::Nginx(nginx), Some(State::Nginx(bucket))) => nginx.wait_ms(bucket, now_ms),
            (LimiterKind::Window(window), Some(State::Window(log))) => window.wait_ms(log, now_ms),
            (LimiterKind::AspNet(aspnet), Some(State::AspNet(counters))) => aspnet.wait_ms(counters, now_ms),
            (LimiterKind::Lump(lump), Some(State::Lump(bucket))) => lump.wait_ms(bucket, now_ms),
            _ => 0,
        })
    }

    /// The answer to a request of `address` that was refused at `now_ms`; to be asked for right after
    /// [`admit`](Self::admit). Where it names a date, `now_ms` has to count from the Unix epoch.
    ///
    /// ```
    /// use std::net::{IpAddr, Ipv4Addr};
    /// use storm_auth_tests::emulator::{Limiter, Verdict};
    ///
    /// let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    /// let mut limiter = Limiter::named("apim").expect("it is one of `Limiter::NAMES`");
    /// while limiter.admit(address, 0) != Verdict::Reject {}
    /// let refusal = limiter.refusal(address, 0);
    /// assert_eq!((refusal.status().as_u16(), &refusal.headers()["retry-after"]), (429, &"300".parse()?));
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
    pub fn refusal(&self, address: IpAddr, now_ms: u64) -> Response<Bytes> {
        let status = self.reject_status.unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        let wait_ms = self.wait(address, now_ms).as_millis() as u64;
        let (body, seconds) = match (self.kind, self.addresses.get(&address)) {
            (LimiterKind::None | LimiterKind::Nginx(_), _) => (refusal::nginx(status), None),
            (LimiterKind::Window(_), _) => (refusal::apim(status, wait_ms.div_ceil(1_000)), None),
            (LimiterKind::AspNet(aspnet), Some(State::AspNet(counters))) => {
                let (quota, seconds) = aspnet.exceeded(counters, now_ms);
                (refusal::aspnet(status, quota), Some(seconds))
            }
            (LimiterKind::AspNet(_) | LimiterKind::Lump(_), _) => (refusal::bare(status), None),
        };
        refusal::with_retry_after(body, self.retry_after, seconds.unwrap_or(wait_ms.div_ceil(1_000)), now_ms)
    }

    fn remember(&mut self, address: IpAddr, state: State) {
        if self.addresses.len() >= ADDRESSES {
            let oldest = self.addresses.iter().min_by_key(|(_, state)| state.last_ms()).map(|(address, _)| *address);
            oldest.and_then(|address| self.addresses.remove(&address));
        }
        self.addresses.insert(address, state);
    }
}

impl State {
    fn last_ms(&self) -> u64 {
        match self {
            Self::Nginx(bucket) => bucket.last_ms,
            Self::Window(log) => log.last_ms(),
            Self::AspNet(counters) => counters.last_ms(),
            Self::Lump(bucket) => bucket.last_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// What is in a refusal: status, Retry-After, content type, body.
    fn answer(limiter: &Limiter, now_ms: u64) -> (u16, String, String, String) {
        let refusal = limiter.refusal(HERE, now_ms);
        let field =
            |name: &str| refusal.headers().get(name).map_or("-", |value| value.to_str().unwrap_or("?")).to_owned();
        let body = String::from_utf8(refusal.body().to_vec()).unwrap();
        (refusal.status().as_u16(), field("retry-after"), field("content-type"), body)
    }

    fn passes(limiter: &mut Limiter, times: &[u64]) -> Vec<bool> {
        times.iter().map(|at| limiter.admit(HERE, *at) == Verdict::Pass).collect()
    }

    #[test]
    fn every_name_is_a_limiter() {
        assert!(Limiter::NAMES.iter().all(|name| Limiter::named(name).is_some()));
        assert!(Limiter::named("bucket").is_none());
    }

    #[test]
    fn nginx_says_503_or_a_date_where_it_is_told_to() {
        for (name, status, date) in
            [("nginx", 429, "-"), ("nginx-503", 503, "-"), ("nginx-date", 429, "Tue, 14 Nov 2023 22:13:40 GMT")]
        {
            let mut limiter = Limiter::named(name).unwrap();
            assert_eq!(passes(&mut limiter, &[1_700_000_000_000; 22]), [&[true; 21][..], &[false]].concat());
            let (code, retry_after, kind, body) = answer(&limiter, 1_700_000_000_000);
            assert_eq!((code, retry_after.as_str(), kind.as_str()), (status, date, "text/html"));
            assert!(body.contains(&format!("<title>{status} ")), "{body}");
            assert_eq!(limiter.wait(HERE, 1_700_000_004_000), Duration::from_secs(16));
            assert_eq!(limiter.admit(HERE, 1_700_000_020_000), Verdict::Pass);
        }
        let mut dated = Limiter::nginx_date();
        passes(&mut dated, &[1_700_000_000_000; 22]);
        assert_eq!(dated.refusal(HERE, 1_700_000_000_000).headers()["date"], "Tue, 14 Nov 2023 22:13:20 GMT");
    }

    #[test]
    fn apim_lets_15_pass_in_any_300_s_and_says_how_long_to_wait() {
        let mut limiter = Limiter::named("apim").unwrap();
        assert_eq!(passes(&mut limiter, &[0; 10]), [true; 10]);
        assert_eq!(passes(&mut limiter, &[100_000; 6]), [true, true, true, true, true, false]);
        let message = r#"{ "statusCode": 429, "message": "Rate limit is exceeded. Try again in 200 seconds." }"#;
        assert_eq!(answer(&limiter, 100_000), (429, "200".into(), "application/json".into(), message.into()));
        assert_eq!(answer(&limiter, 100_001).1, "200");
        assert_eq!(answer(&limiter, 299_001).1, "1");
        // What was refused did not count.
        assert_eq!(passes(&mut limiter, &[299_999, 300_000, 399_999]), [false, true, true]);
        assert_eq!(passes(&mut limiter, &[399_999; 9]), [&[true; 8][..], &[false]].concat());
        assert_eq!(passes(&mut limiter, &[400_000; 6]), [true, true, true, true, true, false]);
    }

    #[test]
    fn aspnet_counts_refused_requests_for_the_long_rule_where_they_are_stacked() {
        let rules =
            |stacked| AspNet { short: Quota { limit: 3, minutes: 1 }, long: Quota { limit: 8, minutes: 60 }, stacked };
        for (stacked, later) in [(true, [true, true, false]), (false, [true, true, true])] {
            let mut limiter = Limiter::new(LimiterKind::AspNet(rules(stacked)));
            assert_eq!(passes(&mut limiter, &[0, 0, 0, 1, 2, 60_000]), [true, true, true, false, false, false]);
            let message = "API calls quota exceeded! maximum admitted 3 per 1m.";
            assert_eq!(answer(&limiter, 1_600), (429, "58".into(), "text/plain".into(), message.into()));
            assert_eq!(answer(&limiter, 60_000).1, "1");
            assert_eq!(limiter.wait(HERE, 60_000), Duration::from_millis(1));
            assert_eq!(passes(&mut limiter, &[60_001; 3]), later, "{stacked}");
        }
        let mut locked_out = Limiter::new(LimiterKind::AspNet(rules(true)));
        passes(&mut locked_out, &[0; 9]);
        let message = "API calls quota exceeded! maximum admitted 8 per 60m.";
        assert_eq!(answer(&locked_out, 61_000), (429, "3539".into(), "text/plain".into(), message.into()));
        assert_eq!(passes(&mut locked_out, &[61_000, 3_600_000, 3_600_001]), [false, false, true]);
    }

    #[test]
    fn a_lump_comes_at_fixed_points_and_fills_no_further_than_the_bucket() {
        let mut limiter = Limiter::named("lump").unwrap();
        assert_eq!(passes(&mut limiter, &[59_000; 22]), [&[true; 21][..], &[false]].concat());
        assert_eq!(answer(&limiter, 59_000), (429, "-".into(), "-".into(), String::new()));
        assert_eq!(limiter.wait(HERE, 59_000), Duration::from_secs(1));
        assert_eq!(passes(&mut limiter, &[59_999, 60_000, 60_000, 60_000, 60_000]), [false, true, true, true, false]);
        assert_eq!(passes(&mut limiter, &[119_999, 120_000]), [false, true]);
        assert_eq!(passes(&mut limiter, &[3_600_000; 22]), [&[true; 21][..], &[false]].concat());
    }

    #[test]
    fn addresses_are_counted_apart_and_their_number_is_bounded() {
        let mut limiter = Limiter::nginx();
        for n in 0..ADDRESSES as u32 + 10 {
            assert_eq!(limiter.admit(IpAddr::V4(Ipv4Addr::from(n)), u64::from(n)), Verdict::Pass);
        }
        assert_eq!(limiter.addresses.len(), ADDRESSES);
        assert!(!limiter.addresses.contains_key(&IpAddr::V4(Ipv4Addr::from(9))));
        assert!(limiter.addresses.contains_key(&IpAddr::V4(Ipv4Addr::from(10))));
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
