//! An emulator of the token endpoint and of an API, on loopback sockets.
//!
//! - **Token endpoint** ([`Emulator::token_url`]): the client-credentials grant with the service's error table. Every
//!   protocol error is a 400 with `{"error":"…"}` alone.
//! - **Limiter** ([`Limiter`]): stands before it, per IP address, in nginx's arithmetic or another one's. nginx's 429 is an HTML
//!   page without `Retry-After`, on a connection that stays open; each kind answers in its own way.
//! - **Tokens**: JWTs in the recorded shape with a true RS256 signature. A client treats them as opaque. No two are the same.
//! - **API** ([`Emulator::api_url`]): checks the signature, the times, the issuer and whether the token was revoked
//!   (401 with a challenge), then the `ApplicationId` header (500 without one, as the live services answer), and
//!   echoes the request as JSON.
//! - **Faults** ([`Fault`]): what proxies, networks and servers do when they are not well.
//! - **Clock** ([`Clock`]): everything above goes by it, and it can be moved.
//!
//! An emulator is a thread of its own with two sockets on 127.0.0.1, one for each endpoint, so that a bearer sent to the
//! wrong origin is seen. It works from inside and outside any async runtime. Dropped, it leaves neither thread nor socket.
//!
//! Memory is bounded: a fixed number of connections, addresses, recorded requests and revocations is kept.

mod api;
mod body;
mod clock;
mod fault;
mod jwt;
mod limiter;
mod server;
mod token;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use tokio::sync::{Notify, oneshot};

pub use self::{
    clock::Clock,
    fault::{At, Endpoint, Fault},
    jwt::KeySize,
    limiter::{AspNet, Limiter, LimiterKind, Lump, Nginx, Quota, RetryAfter, Verdict, Window},
};
use self::{
    fault::Faults,
    jwt::{Claims, Key},
    token::{Client, Grant},
};

/// The id of the client that an emulator knows when it is told of none.
pub const CLIENT_ID: &str = "storm-auth";
/// The secret of that client.
pub const CLIENT_SECRET: &str = "emulated-secret";
/// The scope that this client may have.
pub const SCOPE: &str = "playground";
/// The application id that [`Emulator::application_id`] names, unless the builder was told another.
pub const APPLICATION_ID: u64 = 1042;

const TOKEN_PATH: &str = "/identity/1.0/connect/token";
/// Requests that are remembered, per endpoint, and the bytes of their headers and bodies together.
const RECORDED: usize = 4_096;
const RECORDED_BYTES: usize = 16 * 1_024 * 1_024;
/// Tokens whose revocation is remembered one by one.
const REVOKED: usize = 65_536;

/// A running emulator. Dropping it stops it: its connections are closed, its thread has ended.
///
/// ```
/// use storm_auth_tests::emulator::{CLIENT_ID, Emulator};
///
/// let emulator = Emulator::start();
/// assert!(emulator.token_url().ends_with("/identity/1.0/connect/token"));
/// assert_eq!(emulator.client_id(), CLIENT_ID);
/// ```
pub struct Emulator {
    shared: Arc<Shared>,
    client_id: String,
    application_id: u64,
    token_address: SocketAddr,
    api_address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    /// Starts one with the defaults of [`Builder`].
    ///
    /// # Panics
    /// As [`Builder::start`].
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Starts one that differs from the defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Waits until the key that signs its tokens is made, so that the first token request does not: seconds, for a large one in a debug
    /// build.
    pub fn prepare(&self) {
        Key::make(self.shared.key_size);
    }

    // Where it is and whom it knows.

    /// The token endpoint's URL.
    pub fn token_url(&self) -> String {
        format!("http://{}{TOKEN_PATH}", self.token_address)
    }

    /// The API's base, without a slash at its end. Every path under it is answered.
    pub fn api_url(&self) -> String {
        format!("http://{}", self.api_address)
    }

    /// The first client's id.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The first client's secret, as it is now.
    pub fn client_secret(&self) -> String {
        self.shared.state().clients[&self.client_id].secret.clone()
    }

    /// The scopes that the first client may have, joined by spaces.
    pub fn scope(&self) -> String {
        self.shared.state().clients[&self.client_id].scopes.join(" ")
    }

    /// An application id to send. The API takes any decimal number.
    pub fn application_id(&self) -> u64 {
        self.application_id
    }

    /// The clock that everything here goes by.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    // What goes wrong.

    /// Lets every request of `endpoint` meet `fault` from now on, in place of an earlier one, until it is healed.
    /// Faults that were counted out by [`fail_next`](Self::fail_next) come first.
    pub fn fail(&self, endpoint: Endpoint, fault: Fault) {
        self.shared.side(endpoint, |side| side.faults.stand(fault));
    }

    /// Lets the next `requests` requests of `endpoint` meet `fault`, after those that earlier calls have set aside: in the order in which
    /// they are counted, which is when their heads are there, and not those that the limiter refuses. Past 1,024 such calls that still
    /// have requests to come, further ones are ignored.
    pub fn fail_next(&self, endpoint: Endpoint, requests: u64, fault: Fault) {
        self.shared.side(endpoint, |side| side.faults.queue(requests, fault));
    }

    /// Takes every fault of `endpoint` back. A request that met one already stays with it.
    pub fn heal(&self, endpoint: Endpoint) {
        self.shared.side(endpoint, |side| side.faults.heal());
    }

    /// The API answers 401 to `token` from now on. Returns whether it was a token of this emulator.
    ///
    /// Beyond 65,536 revoked tokens, all that were issued up to the oldest of them are revoked.
    pub fn revoke(&self, token: &str) -> bool {
        let Some(Ok((serial, claims))) = Key::ready(self.shared.key_size).map(|key| key.verify(token)) else {
            return false;
        };
        let ours = claims.iss == self.shared.issuer;
        if ours {
            self.shared.state().revoked.add(serial);
        }
        ours
    }

    /// The API answers 401 to every token that was issued so far.
    pub fn revoke_all(&self) {
        let mut state = self.shared.state();
        let all = state.counts.issued;
        state.revoked.add_up_to(all);
    }

    /// Gives a client another secret; the old one is `invalid_client` from now on. Tokens stay good.
    ///
    /// # Panics
    /// When no client has this id.
    pub fn rotate_secret(&self, client_id: &str, secret: &str) {
        self.with_client(client_id, |client| client.secret = secret.to_owned());
    }

    /// Disables a client, which is `invalid_client` from now on, or enables it again. Tokens stay good.
    ///
    /// # Panics
    /// When no client has this id.
    pub fn set_enabled(&self, client_id: &str, enabled: bool) {
        self.with_client(client_id, |client| client.enabled = enabled);
    }

    /// The lifetime of tokens that are issued from now on, cut to whole seconds.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.shared.state().lifetime = lifetime;
    }

    /// Puts another limiter, or the same one afresh, before the token endpoint.
    pub fn set_limiter(&self, limiter: Limiter) {
        self.shared.state().limiter = rejecting(limiter, self.shared.reject_status);
    }

    // What was seen.

    /// All counts at one moment.
    pub fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// Requests whose head reached the token endpoint's socket, whatever became of them.
    pub fn token_requests(&self) -> u64 {
        self.counts().token_requests
    }

    /// Tokens issued.
    pub fn issued(&self) -> u64 {
        self.counts().issued
    }

    /// Requests whose head reached the API's socket, whatever became of them.
    pub fn api_requests(&self) -> u64 {
        self.counts().api_requests
    }

    /// That so many token requests came since the emulator started, and no other.
    ///
    /// ```
    /// use storm_auth_tests::emulator::Emulator;
    ///
    /// let emulator = Emulator::start();
    /// // Here the client under test makes its calls.
    /// emulator.assert_token_requests(0);
    /// ```
    ///
    /// # Panics
    /// There were more, or fewer; the message lists those that were recorded, without secrets.
    #[track_caller]
    pub fn assert_token_requests(&self, requests: u64) {
        self.assert_requests(Endpoint::Token, requests);
    }

    /// That so many API requests came since the emulator started, and no other.
    ///
    /// # Panics
    /// As [`assert_token_requests`](Self::assert_token_requests).
    #[track_caller]
    pub fn assert_api_requests(&self, requests: u64) {
        self.assert_requests(Endpoint::Api, requests);
    }

    #[track_caller]
    fn assert_requests(&self, endpoint: Endpoint, requests: u64) {
        let (name, seen) = match endpoint {
            Endpoint::Token => ("token", self.token_requests()),
            Endpoint::Api => ("API", self.api_requests()),
        };
        if seen != requests {
            let recorded = self.recorded(endpoint);
            let start = recorded.first().map_or(0, |first| first.at_ms);
            let lines: Vec<_> = recorded.iter().zip(1..).map(|(request, number)| request.line(number, start)).collect();
            let none = if lines.is_empty() { "\nnone was recorded: a body has to be read to its end" } else { "" };
            panic!("{requests} {name} requests were expected, and {seen} came{none}{}", lines.concat());
        }
    }

    /// The last requests of `endpoint` whose bodies were read to their end, oldest first: at most 4,096, and 16 MiB.
    pub fn recorded(&self, endpoint: Endpoint) -> Vec<Recorded> {
        self.shared.side(endpoint, |side| side.recorded.iter().cloned().collect())
    }

    /// Connections that `endpoint` accepted.
    pub fn connections(&self, endpoint: Endpoint) -> u64 {
        let counts = self.counts();
        match endpoint {
            Endpoint::Token => counts.token_connections,
            Endpoint::Api => counts.api_connections,
        }
    }

    /// Connections of `endpoint` that are open now, as far as the emulator has noticed.
    pub fn open_connections(&self, endpoint: Endpoint) -> u64 {
        let counts = self.counts();
        match endpoint {
            Endpoint::Token => counts.token_open,
            Endpoint::Api => counts.api_open,
        }
    }

    /// Requests of `endpoint` whose response has not begun: held, delayed or stalled ones.
    pub fn in_flight(&self, endpoint: Endpoint) -> u64 {
        let counts = self.counts();
        match endpoint {
            Endpoint::Token => counts.token_in_flight,
            Endpoint::Api => counts.api_in_flight,
        }
    }

    /// Blocks until the counts fit or `patience`, in real time, is over; returns whether they do.
    ///
    /// ```
    /// use std::{io::Write, net::TcpStream, time::Duration};
    /// use storm_auth_tests::emulator::Emulator;
    ///
    /// let emulator = Emulator::start();
    /// let mut socket = TcpStream::connect(emulator.api_url().trim_start_matches("http://"))?;
    /// socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    /// assert!(emulator.wait_for(Duration::from_secs(10), |counts| counts.api_requests == 1));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn wait_for(&self, patience: Duration, fits: impl Fn(&Counts) -> bool) -> bool {
        let start = Instant::now();
        let mut state = self.shared.state();
        while !fits(&state.counts) {
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits, in any runtime, until the counts fit. [`wait_for`](Self::wait_for) would block the runtime's thread.
    pub async fn when(&self, fits: impl Fn(&Counts) -> bool) {
        loop {
            let mut changed = pin!(self.shared.changed_async.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if fits(&self.counts()) {
                return;
            }
            changed.await;
        }
    }

    fn with_client(&self, client_id: &str, change: impl FnOnce(&mut Client)) {
        let mut state = self.shared.state();
        match state.clients.get_mut(client_id) {
            Some(client) => change(client),
            None => panic!("the emulator has no client {client_id:?}"),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the emulator was printed by its thread; there is nothing to add to it here.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator")
            .field("token_url", &self.token_url())
            .field("api_url", &self.api_url())
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// What an [`Emulator`] is to be. The defaults: the client [`CLIENT_ID`], tokens of 600 s, the documented limiter
/// ([`Limiter::nginx`]), the system's clock, no leeway, free ports.
#[derive(Clone)]
#[must_use = "a builder starts nothing until it is told to"]
pub struct Builder {
    clients: Vec<(String, Client)>,
    lifetime: Duration,
    limiter: Limiter,
    clock: Clock,
    leeway: Duration,
    reject_status: Option<StatusCode>,
    chunked: bool,
    key_size: KeySize,
    application_id: u64,
    token_port: u16,
    api_port: u16,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            clients: Vec::new(),
            lifetime: Duration::from_secs(600),
            limiter: Limiter::nginx(),
            clock: Clock::system(),
            leeway: Duration::ZERO,
            reject_status: None,
            chunked: false,
            key_size: KeySize::default(),
            application_id: APPLICATION_ID,
            token_port: 0,
            api_port: 0,
        }
    }
}

impl Builder {
    /// Adds a client with the scopes it may have. The first one takes the default client's place.
    pub fn client(self, id: &str, secret: &str, scopes: &[&str]) -> Self {
        self.add(id, secret, scopes, true)
    }

    /// Adds a client that may not use the client-credentials grant: `unauthorized_client`.
    pub fn client_without_grant(self, id: &str, secret: &str) -> Self {
        self.add(id, secret, &[], false)
    }

    /// How long tokens live, cut to whole seconds. The documentation says 3600 s in one place and 600 s in another.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// What stands before the token endpoint.
    pub fn limiter(mut self, limiter: Limiter) -> Self {
        self.limiter = limiter;
        self
    }

    /// The status of a request that the limiter refuses, whichever it is. nginx's own default is 503; the service is documented
    /// to send 429.
    ///
    /// # Panics
    /// When it is not a status of HTTP.
    pub fn reject_status(mut self, status: u16) -> Self {
        self.reject_status = Some(StatusCode::from_u16(status).expect("a status is between 100 and 999"));
        self
    }

    /// The clock to go by.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How long past its expiry the API takes a token, at most 300 s. Servers usually take all of that.
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway.min(Duration::from_secs(300));
        self
    }

    /// Sends responses with `Transfer-Encoding: chunked` in place of a `Content-Length`.
    pub fn chunked(mut self, chunked: bool) -> Self {
        self.chunked = chunked;
        self
    }

    /// The size of the key that signs tokens: [`KeySize::Rsa4096`] for tokens as long as the recorded ones.
    pub fn key_size(mut self, size: KeySize) -> Self {
        self.key_size = size;
        self
    }

    /// What [`Emulator::application_id`] names.
    pub fn application_id(mut self, id: u64) -> Self {
        self.application_id = id;
        self
    }

    /// The token endpoint's port; 0 is any free one.
    pub fn token_port(mut self, port: u16) -> Self {
        self.token_port = port;
        self
    }

    /// The API's port; 0 is any free one.
    pub fn api_port(mut self, port: u16) -> Self {
        self.api_port = port;
        self
    }

    /// Starts the emulator. When this returns, its sockets take connections.
    ///
    /// # Panics
    /// Where [`try_start`](Self::try_start) fails.
    pub fn start(self) -> Emulator {
        match self.try_start() {
            Ok(emulator) => emulator,
            Err(error) => panic!("the emulator cannot start: {error}"),
        }
    }

    /// Starts the emulator. When this returns, its sockets take connections.
    ///
    /// # Errors
    /// When a port on 127.0.0.1 is taken, or the process may have no further socket or thread.
    pub fn try_start(mut self) -> io::Result<Emulator> {
        if self.clients.is_empty() {
            self = self.client(CLIENT_ID, CLIENT_SECRET, &[SCOPE]);
        }
        let bind = |port| -> io::Result<_> {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (token, token_address) = bind(self.token_port)?;
        let (api, api_address) = bind(self.api_port)?;
        let client_id = self.clients[0].0.clone();
        let shared = Arc::new(Shared {
            clock: self.clock,
            issuer: format!("http://{token_address}/identity/1.0"),
            leeway: self.leeway,
            reject_status: self.reject_status,
            chunked: self.chunked,
            key_size: self.key_size,
            state: Mutex::new(State {
                clients: self.clients.into_iter().collect(),
                lifetime: self.lifetime,
                limiter: rejecting(self.limiter, self.reject_status),
                revoked: Revoked::default(),
                counts: Counts::default(),
                token: Side::default(),
                api: Side::default(),
            }),
            changed: Condvar::new(),
            changed_async: Notify::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (token, api) = {
            let _guard = runtime.enter();
            (tokio::net::TcpListener::from_std(token)?, tokio::net::TcpListener::from_std(api)?)
        };
        let (stop, stopped) = oneshot::channel();
        let serving = server::serve(Arc::clone(&shared), token, api, stopped);
        let thread =
            std::thread::Builder::new().name("storm-emulator".into()).spawn(move || runtime.block_on(serving))?;
        Ok(Emulator {
            shared,
            client_id,
            application_id: self.application_id,
            token_address,
            api_address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn add(mut self, id: &str, secret: &str, scopes: &[&str], granted: bool) -> Self {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        self.clients.push((id.to_owned(), Client { secret: secret.to_owned(), scopes, enabled: true, granted }));
        self
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("lifetime", &self.lifetime)
            .field("limiter", &self.limiter.kind())
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

/// What an [`Emulator`] has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Requests whose head reached the token endpoint's socket.
    pub token_requests: u64,
    /// Those of them that the limiter let through, at once or later.
    pub admitted: u64,
    /// Those of the admitted ones that the limiter held.
    pub held: u64,
    /// Those that the limiter refused.
    pub throttled: u64,
    /// Token requests that were answered with an error of the protocol.
    pub refused: u64,
    /// Tokens issued.
    pub issued: u64,
    /// Requests whose head reached the API's socket.
    pub api_requests: u64,
    /// Those of them whose token was good.
    pub authenticated: u64,
    /// Those of them whose token was missing or not good.
    pub unauthenticated: u64,
    /// Connections that the token endpoint accepted.
    pub token_connections: u64,
    /// Those of them that are open now, as far as the emulator has noticed.
    pub token_open: u64,
    /// Token requests whose response has not begun now.
    pub token_in_flight: u64,
    /// Connections that the API accepted.
    pub api_connections: u64,
    /// Those of them that are open now, as far as the emulator has noticed.
    pub api_open: u64,
    /// API requests whose response has not begun now.
    pub api_in_flight: u64,
}

/// A request as it came over the wire. `Debug` shows neither its credentials nor its body.
#[derive(Clone)]
#[non_exhaustive]
pub struct Recorded {
    /// The method.
    pub method: Method,
    /// The request's target: path and query.
    pub uri: Uri,
    /// Every header field.
    pub headers: HeaderMap,
    /// The body, or its first 64 KiB.
    pub body: Bytes,
    /// The length of the whole body.
    pub body_length: u64,
    /// When the request's head was there, on the emulator's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What the limiter said. The API has none: it says [`Verdict::Pass`].
    pub verdict: Verdict,
}

impl Recorded {
    /// A line about it, for people. It shows no secret and no token.
    fn line(&self, number: usize, start_ms: u64) -> String {
        let passed = self.at_ms.saturating_sub(start_ms);
        let mut line = format!("\n{number}. at {} ms: {} {}", passed, self.method, self.uri.path());
        let form = serde_urlencoded::from_bytes::<Vec<(String, String)>>(&self.body).unwrap_or_default();
        for (name, value) in form.iter().filter(|(name, _)| matches!(name.as_str(), "client_id" | "scope")) {
            line += &format!(", {name} {value:?}");
        }
        line += match self.verdict {
            Verdict::Pass => "",
            Verdict::Hold(_) => ", held by the limiter",
            Verdict::Reject => ", refused by the limiter",
        };
        line
    }

    fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        self.body.len() + headers.sum::<usize>()
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded")
            .field("method", &self.method)
            .field("path", &self.uri.path())
            .field("headers", &self.headers)
            .field("at_ms", &self.at_ms)
            .field("verdict", &self.verdict)
            .finish_non_exhaustive()
    }
}

/// What the emulator's thread and its owner share.
struct Shared {
    clock: Clock,
    issuer: String,
    leeway: Duration,
    reject_status: Option<StatusCode>,
    chunked: bool,
    key_size: KeySize,
    state: Mutex<State>,
    /// Both are notified when a count has changed.
    changed: Condvar,
    changed_async: Notify,
}

struct State {
    clients: BTreeMap<String, Client>,
    lifetime: Duration,
    limiter: Limiter,
    revoked: Revoked,
    counts: Counts,
    token: Side,
    api: Side,
}

/// One endpoint's share of the state.
#[derive(Default)]
struct Side {
    faults: Faults,
    recorded: VecDeque<Recorded>,
    recorded_bytes: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn side<R>(&self, endpoint: Endpoint, with: impl FnOnce(&mut Side) -> R) -> R {
        with(self.state().side(endpoint))
    }

    fn count<R>(&self, with: impl FnOnce(&mut Counts) -> R) -> R {
        let result = with(&mut self.state().counts);
        self.changed.notify_all();
        self.changed_async.notify_waiters();
        result
    }

    fn opened(&self, endpoint: Endpoint) -> Held<'_> {
        let gauge: Gauge = match endpoint {
            Endpoint::Token => |counts| &mut counts.token_open,
            Endpoint::Api => |counts| &mut counts.api_open,
        };
        self.count(|counts| {
            *gauge(counts) += 1;
            match endpoint {
                Endpoint::Token => counts.token_connections += 1,
                Endpoint::Api => counts.api_connections += 1,
            }
        });
        Held { shared: self, gauge }
    }

    /// Counts a request, asks the limiter about it, and gives it the fault that it is to meet: whoever sees it counted knows that the
    /// next fault is another's.
    fn arrived(&self, endpoint: Endpoint, peer: IpAddr, now_ms: u64) -> Arrival<'_> {
        let (mut verdict, mut refusal) = (Verdict::Pass, None);
        if endpoint == Endpoint::Token {
            let limiter = &mut self.state().limiter;
            verdict = limiter.admit(peer, now_ms);
            refusal = (verdict == Verdict::Reject).then(|| limiter.refusal(peer, now_ms));
        }
        let fault = if refusal.is_none() { self.side(endpoint, |side| side.faults.take()) } else { None };
        let gauge: Gauge = match endpoint {
            Endpoint::Token => |counts| &mut counts.token_in_flight,
            Endpoint::Api => |counts| &mut counts.api_in_flight,
        };
        self.count(|counts| {
            *gauge(counts) += 1;
            match endpoint {
                Endpoint::Api => counts.api_requests += 1,
                Endpoint::Token => {
                    counts.token_requests += 1;
                    counts.admitted += u64::from(verdict != Verdict::Reject);
                    counts.held += u64::from(matches!(verdict, Verdict::Hold(_)));
                    counts.throttled += u64::from(verdict == Verdict::Reject);
                }
            }
        });
        Arrival { in_flight: Held { shared: self, gauge }, verdict, refusal, fault }
    }

    fn record(&self, endpoint: Endpoint, request: Recorded) {
        self.side(endpoint, |side| {
            side.recorded_bytes += request.size();
            side.recorded.push_back(request);
            while side.recorded.len() > RECORDED || side.recorded_bytes > RECORDED_BYTES {
                let Some(oldest) = side.recorded.pop_front() else { break };
                side.recorded_bytes -= oldest.size();
            }
        });
    }

    fn decide(&self, method: &Method, headers: &HeaderMap, body: &[u8]) -> Result<Grant, &'static str> {
        let decision = token::decide(method, headers, body, &self.state().clients);
        self.count(|counts| counts.refused += u64::from(decision.is_err()));
        decision
    }

    fn issue(&self, key: &Key, grant: &Grant) -> (String, Duration) {
        // Before the count: who sees the token counted may move the clock.
        let now_ms = self.clock.now_ms();
        let lifetime = self.state().lifetime;
        let serial = self.count(|counts| {
            counts.issued += 1;
            counts.issued
        });
        // `expires_in` is a promise: in whole seconds, `exp` may come late but not early.
        let exp = now_ms.div_ceil(1_000).saturating_add(lifetime.as_secs());
        let claims = Claims {
            nbf: now_ms / 1_000,
            exp,
            iss: self.issuer.clone(),
            aud: format!("{}/resources", self.issuer),
            client_id: grant.client_id.clone(),
            scope: grant.scopes.clone(),
        };
        (key.sign(serial, &claims), lifetime)
    }

    /// The number of requests that were let through with this one, or what its 401 says.
    fn authenticate(&self, headers: &HeaderMap) -> Result<u64, api::Challenge> {
        let rules = api::Rules {
            key: Key::ready(self.key_size),
            issuer: &self.issuer,
            leeway_ms: self.leeway.as_millis() as u64,
            now_ms: self.clock.now_ms(),
            is_revoked: &|serial| self.state().revoked.contains(serial),
        };
        let decision = api::authenticate(headers, &rules);
        self.count(|counts| {
            counts.authenticated += u64::from(decision.is_ok());
            counts.unauthenticated += u64::from(decision.is_err());
            decision.map(|()| counts.authenticated)
        })
    }
}

impl State {
    fn side(&mut self, endpoint: Endpoint) -> &mut Side {
        match endpoint {
            Endpoint::Token => &mut self.token,
            Endpoint::Api => &mut self.api,
        }
    }
}

/// A request whose head is there.
struct Arrival<'a> {
    in_flight: Held<'a>,
    verdict: Verdict,
    /// The limiter's answer, where it refused.
    refusal: Option<Response<Bytes>>,
    fault: Option<Fault>,
}

/// One of the counts that go down again.
type Gauge = fn(&mut Counts) -> &mut u64;

/// Something that is counted while it lasts, however it ends.
struct Held<'a> {
    shared: &'a Shared,
    gauge: Gauge,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.count(|counts| *(self.gauge)(counts) -= 1);
    }
}

fn rejecting(limiter: Limiter, status: Option<StatusCode>) -> Limiter {
    match status {
        Some(status) => limiter.rejecting_with(status),
        None => limiter,
    }
}

/// Serial numbers of revoked tokens: all up to a bound, and some above it.
#[derive(Default)]
struct Revoked {
    up_to: u64,
    above: BTreeSet<u64>,
}

impl Revoked {
    fn add(&mut self, serial: u64) {
        if serial > self.up_to {
            self.above.insert(serial);
        }
        if self.above.len() > REVOKED {
            self.up_to = self.above.pop_first().unwrap_or(self.up_to);
        }
    }

    fn add_up_to(&mut self, serial: u64) {
        self.up_to = self.up_to.max(serial);
        self.above = self.above.split_off(&(self.up_to.saturating_add(1)));
    }

    fn contains(&self, serial: u64) -> bool {
        serial <= self.up_to || self.above.contains(&serial)
    }
}

/// `unix` seconds as HTTP writes them: `Tue, 14 Nov 2023 22:13:20 GMT`. Ends with the year 9999.
fn http_date(unix: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix.min(LAST)))
}

/// `unix` seconds as .NET writes them: `11/14/2023 22:13:20`.
fn civil(unix: u64) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let date = http_date(unix);
    let month = MONTHS.iter().position(|month| *month == &date[8..11]).map_or(1, |index| index + 1);
    format!("{month:02}/{}/{} {}", &date[5..7], &date[12..16], &date[17..25])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_stand_in_the_words_of_http_and_of_dotnet() {
        assert_eq!(http_date(1_700_000_000), "Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(civil(1_700_000_000), "11/14/2023 22:13:20");
        assert_eq!(civil(u64::MAX), "12/31/9999 23:59:59");
    }

    #[test]
    fn revocations_are_bounded_and_never_forgotten() {
        let mut revoked = Revoked::default();
        revoked.add(7);
        assert!(revoked.contains(7) && !revoked.contains(6));
        for serial in 100..100 + REVOKED as u64 {
            revoked.add(serial);
        }
        assert_eq!(revoked.above.len(), REVOKED);
        assert!(revoked.contains(7) && revoked.contains(6) && revoked.contains(100) && !revoked.contains(99));
        revoked.add_up_to(200);
        assert!(revoked.contains(99) && revoked.contains(201) && revoked.contains(100 + REVOKED as u64 - 1));
    }
}
