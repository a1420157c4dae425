//! Both adapters under one face: what differs between them (await, types, how a body is given) ends here.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use storm_auth_core::driver::PerProcess;
use storm_auth_core::store::TokenStore;
use storm_auth_core::{
    AcquireError, Counters, Credentials, Event, FileSettings, Invalidated, KeyStatus, Scope, Settings, Status, Token,
    TokenId,
};
use storm_auth_tests::emulator::Emulator;
use tokio::runtime::Runtime;

/// Long enough that only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What an adapter is, to a test.
pub(crate) trait Adapter: 'static {
    type Clock: Clone + fmt::Debug + Send + Sync;
    type Builder: Clone + fmt::Debug;
    type Client: Clone + fmt::Debug + Send + Sync + 'static;
    type Tokens: Clone + fmt::Debug + Send + Sync + 'static;
    type Warm: fmt::Debug + Send;

    fn movable_clock() -> Self::Clock;
    fn advance(clock: &Self::Clock, span: Duration);
    /// Sets the wall clock alone, by so many seconds.
    fn step_wall(clock: &Self::Clock, seconds: i64);

    fn builder(setup: Setup<Self>) -> Self::Builder
    where
        Self: Sized;
    fn build(setup: Setup<Self>) -> Result<Self::Client, Failed>
    where
        Self: Sized;
    fn build_tokens(setup: Setup<Self>) -> Result<Self::Tokens, Failed>
    where
        Self: Sized;

    /// From a configuration file alone.
    fn configured(config: &FileSettings) -> Result<Self::Client, Failed>;
    /// The same, but with these credentials.
    fn configured_with(config: &FileSettings, credentials: Credentials) -> Result<Self::Client, Failed>;
    /// From a configuration file under the variables of this process.
    fn configured_under_variables(config: &FileSettings) -> Result<Self::Client, Failed>;
    /// By the variables of the environment.
    fn tokens_from_env(clock: &Self::Clock) -> Self::Tokens;

    fn tokens(client: &Self::Client) -> Self::Tokens;
    fn call(client: &Self::Client, call: Call) -> Result<Answer, Failed>;
    /// As many callers at once, each on a thread or in a task of its own.
    fn calls_at_once(client: &Self::Client, calls: Vec<Call>) -> Vec<Result<Answer, Failed>>;
    fn authorize_call(client: &Self::Client, headers: &mut HeaderMap) -> Result<TokenId, Failed>;

    fn token(tokens: &Self::Tokens) -> Result<Token, Failed>;
    fn token_within(tokens: &Self::Tokens, deadline: Duration) -> Result<Token, Failed>;
    /// As many callers at once, each on a thread or in a task of its own.
    fn tokens_at_once(tokens: &Self::Tokens, callers: usize) -> Vec<Result<Token, Failed>>;
    /// Through the `TokenSource` trait.
    fn source_token(tokens: &Self::Tokens) -> Result<Token, Failed>;
    fn header(tokens: &Self::Tokens) -> Result<HeaderValue, Failed>;
    fn authorize(tokens: &Self::Tokens, headers: &mut HeaderMap) -> Result<TokenId, Failed>;
    fn invalidate(tokens: &Self::Tokens, token: TokenId) -> Invalidated;
    fn for_credentials(tokens: &Self::Tokens, credentials: Credentials) -> Self::Tokens;
    fn for_scope(tokens: &Self::Tokens, scope: Scope) -> Self::Tokens;
    fn set_credentials(tokens: &Self::Tokens, credentials: Credentials) -> Result<(), Failed>;
    fn ready(tokens: &Self::Tokens, deadline: Duration) -> Result<(), Failed>;
    fn close(tokens: &Self::Tokens, deadline: Duration) -> Result<(), Failed>;
    fn keep_warm(tokens: &Self::Tokens) -> Self::Warm;
    fn status(tokens: &Self::Tokens) -> Status;
    fn key_status(tokens: &Self::Tokens) -> Option<KeyStatus>;
    fn counters(tokens: &Self::Tokens) -> Counters;
}

/// The adapter over reqwest, each call on a runtime of the suite's.
#[derive(Debug)]
pub(crate) struct OverReqwest;

/// The adapter over ureq.
#[derive(Debug)]
pub(crate) struct OverUreq;

/// What a provider or a client is built from.
pub(crate) struct Setup<A: Adapter> {
    pub(crate) settings: Settings,
    pub(crate) clock: Option<A::Clock>,
    pub(crate) events: Option<Events>,
    pub(crate) share: Option<A::Tokens>,
    pub(crate) store: Option<Arc<dyn TokenStore>>,
    pub(crate) source: Option<Arc<Source>>,
    /// A client id, and the file that its secret is in.
    pub(crate) file: Option<(String, PathBuf)>,
    /// What tells processes apart.
    pub(crate) seed: u64,
    pub(crate) token_client: TokenClient,
    /// An API client of the caller's, with its own settings, in place of the adapter's.
    pub(crate) own_api_client: bool,
}

/// Where credentials come from.
pub(crate) type Source = dyn Fn() -> Result<Credentials, String> + Send + Sync;

/// What the caller says about the token client.
#[derive(Clone, Copy)]
pub(crate) enum TokenClient {
    Default,
    /// As permissive and as hasty as its settings can be: redirects, a pool, decompression, timeouts.
    Loose,
    /// Its name resolution panics as soon as this is set, and so a flight does. For a URL with a name in it.
    Panicking(&'static AtomicBool),
}

/// The settings that fit an emulator's first client.
pub(crate) fn settings(emulator: &Emulator) -> Settings {
    Settings::new()
        .token_url(emulator.token_url())
        .api_url(emulator.api_url())
        .scope(Scope::new(emulator.scope()).unwrap())
        .credentials(credentials(emulator))
        .application_id(emulator.application_id())
}

/// The token URL with a name in place of the address.
pub(crate) fn named_url(emulator: &Emulator) -> String {
    emulator.token_url().replace("127.0.0.1", "localhost")
}

pub(crate) fn credentials(emulator: &Emulator) -> Credentials {
    Credentials::new(emulator.client_id(), emulator.client_secret()).unwrap()
}

impl<A: Adapter> Setup<A> {
    pub(crate) fn at(emulator: &Emulator) -> Self {
        Self::new(settings(emulator))
    }

    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            clock: None,
            events: None,
            share: None,
            store: None,
            source: None,
            file: None,
            // No test rests on a draw.
            seed: 7,
            token_client: TokenClient::Default,
            own_api_client: false,
        }
    }

    pub(crate) fn set(mut self, set: impl FnOnce(Settings) -> Settings) -> Self {
        self.settings = set(self.settings);
        self
    }

    pub(crate) fn clock(mut self, clock: &A::Clock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    pub(crate) fn events(mut self, events: &Events) -> Self {
        self.events = Some(events.clone());
        self
    }

    pub(crate) fn share(mut self, tokens: &A::Tokens) -> Self {
        self.share = Some(tokens.clone());
        self
    }

    pub(crate) fn store(mut self, store: &Arc<impl TokenStore + 'static>, seed: u64) -> Self {
        let store: Arc<dyn TokenStore> = store.clone();
        (self.store, self.seed) = (Some(store), seed);
        self
    }

    pub(crate) fn source(mut self, source: impl Fn() -> Result<Credentials, String> + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The secret of the emulator's first client is in this file.
    pub(crate) fn file(mut self, emulator: &Emulator, path: &Path) -> Self {
        self.file = Some((emulator.client_id().to_owned(), path.to_owned()));
        self
    }

    pub(crate) fn token_client(mut self, client: TokenClient) -> Self {
        self.token_client = client;
        self
    }

    pub(crate) fn own_api_client(mut self) -> Self {
        self.own_api_client = true;
        self
    }

    pub(crate) fn client(self) -> A::Client {
        A::build(self).unwrap()
    }

    pub(crate) fn tokens(self) -> A::Tokens {
        A::build_tokens(self).unwrap()
    }

    /// What the builder says against it.
    pub(crate) fn refused(self) -> Failed {
        A::build_tokens(self).expect_err("it is refused")
    }
}

/// What a provider told its `on_event`.
#[derive(Clone, Default)]
pub(crate) struct Events {
    seen: Arc<Mutex<Vec<Event>>>,
    act: Arc<Mutex<Option<Arc<Act>>>>,
    /// Whether being told panics, too.
    panics: bool,
}

type Act = dyn Fn(&Event) + Send + Sync;

impl Events {
    pub(crate) fn panicking() -> Self {
        Self { panics: true, ..Self::default() }
    }

    pub(crate) fn seen(&self) -> Vec<Event> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn any(&self, fits: impl Fn(&Event) -> bool) -> bool {
        self.seen.lock().unwrap().iter().any(fits)
    }

    /// Does this besides, from now on.
    pub(crate) fn act(&self, act: impl Fn(&Event) + Send + Sync + 'static) {
        *self.act.lock().unwrap() = Some(Arc::new(act));
    }

    pub(crate) fn tell(&self, event: &Event) {
        self.seen.lock().unwrap().push(event.clone());
        let act = self.act.lock().unwrap().clone();
        if let Some(act) = act {
            act(event);
        }
        assert!(!self.panics, "the caller's own panic");
    }
}

/// One API call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) application_id: Option<u64>,
    pub(crate) body: Payload,
}

#[derive(Clone, Debug)]
pub(crate) enum Payload {
    None,
    Bytes(Vec<u8>),
    Json(BTreeMap<String, u64>),
    /// Bytes that can be read only once.
    Once(Vec<u8>),
}

pub(crate) fn get(path: &str) -> Call {
    request(Method::GET, path)
}

pub(crate) fn request(method: Method, path: &str) -> Call {
    Call {
        method,
        path: path.to_owned(),
        query: Vec::new(),
        headers: Vec::new(),
        application_id: None,
        body: Payload::None,
    }
}

impl Call {
    pub(crate) fn body(mut self, body: Payload) -> Self {
        self.body = body;
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn application_id(mut self, id: u64) -> Self {
        self.application_id = Some(id);
        self
    }
}

/// An API's answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// An adapter's error, with all that it tells.
#[derive(Debug)]
pub(crate) struct Failed {
    /// `Display`, and that of each source.
    pub(crate) text: String,
    /// `Debug`.
    pub(crate) debug: String,
    pub(crate) is_configuration: bool,
    pub(crate) is_rate_limited: bool,
    pub(crate) is_token: bool,
    pub(crate) is_api: bool,
    pub(crate) retry_at: Option<SystemTime>,
    pub(crate) acquire: Option<AcquireError>,
}

fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// Lets a time pass that somebody sleeps through. A clock that is moved wakes nobody; a call that changes nothing does.
pub(crate) fn pass<A: Adapter>(clock: &A::Clock, tokens: &A::Tokens, span: Duration) {
    A::advance(clock, span);
    A::invalidate(tokens, Token::fake("nobody's").id());
}

/// Waits until a token request is there whose answer waits for the emulator's clock.
pub(crate) fn arrived(emulator: &Emulator) {
    assert!(emulator.wait_for(PATIENCE, |counts| counts.token_in_flight == 1), "no token request came");
}

/// Looks again and again until it is so. Fails the test when it never is.
pub(crate) fn until(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "it never came about: {what}");
        // What is looked for tells nobody when it comes.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn panic_when(set: &AtomicBool) -> ! {
    until("the panic's time", || set.load(Ordering::Relaxed));
    panic!("the caller's own panic");
}

/// The runtime of the suite. A forked child has not its parent's threads, so it has one of its own.
fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<PerProcess<&'static Runtime>> =
        LazyLock::new(|| PerProcess::new(new_runtime(), std::process::id()));
    RUNTIME.get(std::process::id(), |_| new_runtime())
}

/// It is never dropped, since it would wait for threads that a child has not.
fn new_runtime() -> &'static Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Box::leak(Box::new(runtime.expect("threads can be had")))
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// What both adapters have in the same words. `$wait` brings a call of the adapter to its end.
macro_rules! same_words {
    ($adapter:ident, $wait:ident) => {
        type Clock = $adapter::Clock;
        type Builder = $adapter::Builder;
        type Client = $adapter::StormClient;
        type Tokens = $adapter::TokenProvider;
        type Warm = $adapter::KeepWarm;

        fn movable_clock() -> Self::Clock {
            Self::Clock::movable()
        }

        fn advance(clock: &Self::Clock, span: Duration) {
            clock.advance(span);
        }

        fn step_wall(clock: &Self::Clock, seconds: i64) {
            let span = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { clock.step_wall_back(span) } else { clock.step_wall_forward(span) }
        }

        fn builder(setup: Setup<Self>) -> Self::Builder {
            let mut builder = Self::Builder::from(setup.settings).seed(setup.seed);
            if let Some(store) = setup.store {
                builder = builder.store(store);
            }
            if let Some(clock) = setup.clock {
                builder = builder.clock(clock);
            }
            if let Some(events) = setup.events {
                builder = builder.on_event(move |event| events.tell(event));
            }
            if let Some(tokens) = setup.share {
                builder = builder.share_limiter(&tokens);
            }
            if let Some(source) = setup.source {
                builder = with_source(builder, source);
            }
            if let Some((client_id, path)) = setup.file {
                builder = builder.credentials_file(client_id, path);
            }
            let builder = match setup.token_client {
                TokenClient::Default => builder,
                TokenClient::Loose => loose(builder),
                TokenClient::Panicking(when) => panicking(builder, when),
            };
            if setup.own_api_client { own_api_client(builder) } else { builder }
        }

        fn build(setup: Setup<Self>) -> Result<Self::Client, Failed> {
            Self::builder(setup).build().map_err(failed)
        }

        fn build_tokens(setup: Setup<Self>) -> Result<Self::Tokens, Failed> {
            Self::builder(setup).build_tokens().map_err(failed)
        }

        fn configured(config: &FileSettings) -> Result<Self::Client, Failed> {
            let builder = Self::Builder::from_config(config).map_err(|error| failed(error.into()))?;
            builder.build().map_err(failed)
        }

        fn configured_with(config: &FileSettings, credentials: Credentials) -> Result<Self::Client, Failed> {
            let builder = Self::Builder::from_config(config).map_err(|error| failed(error.into()))?;
            builder.credentials(credentials).build().map_err(failed)
        }

        fn configured_under_variables(config: &FileSettings) -> Result<Self::Client, Failed> {
            let builder = $adapter::env::builder_over(config).map_err(|error| failed(error.into()))?;
            builder.build().map_err(failed)
        }

        fn tokens_from_env(clock: &Self::Clock) -> Self::Tokens {
            $adapter::env::builder().unwrap().clock(clock.clone()).build_tokens().unwrap()
        }

        fn tokens(client: &Self::Client) -> Self::Tokens {
            client.tokens().clone()
        }

        fn authorize_call(client: &Self::Client, headers: &mut HeaderMap) -> Result<TokenId, Failed> {
            $wait!(client.authorize(headers)).map_err(failed)
        }

        fn token(tokens: &Self::Tokens) -> Result<Token, Failed> {
            $wait!(tokens.token()).map_err(failed)
        }

        fn token_within(tokens: &Self::Tokens, deadline: Duration) -> Result<Token, Failed> {
            $wait!(tokens.token_within(deadline)).map_err(failed)
        }

        fn source_token(tokens: &Self::Tokens) -> Result<Token, Failed> {
            let source: &dyn $adapter::TokenSource = tokens;
            $wait!(source.token()).map_err(failed)
        }

        fn header(tokens: &Self::Tokens) -> Result<HeaderValue, Failed> {
            $wait!(tokens.header()).map_err(failed)
        }

        fn authorize(tokens: &Self::Tokens, headers: &mut HeaderMap) -> Result<TokenId, Failed> {
            $wait!(tokens.authorize(headers)).map_err(failed)
        }

        fn invalidate(tokens: &Self::Tokens, token: TokenId) -> Invalidated {
            tokens.invalidate(token)
        }

        fn for_credentials(tokens: &Self::Tokens, credentials: Credentials) -> Self::Tokens {
            tokens.for_credentials(credentials)
        }

        fn for_scope(tokens: &Self::Tokens, scope: Scope) -> Self::Tokens {
            tokens.for_scope(scope)
        }

        fn set_credentials(tokens: &Self::Tokens, credentials: Credentials) -> Result<(), Failed> {
            tokens.set_credentials(credentials).map_err(failed)
        }

        fn ready(tokens: &Self::Tokens, deadline: Duration) -> Result<(), Failed> {
            $wait!(tokens.ready(deadline)).map_err(failed)
        }

        fn close(tokens: &Self::Tokens, deadline: Duration) -> Result<(), Failed> {
            $wait!(tokens.close(deadline)).map_err(failed)
        }

        fn keep_warm(tokens: &Self::Tokens) -> Self::Warm {
            tokens.keep_warm()
        }

        fn status(tokens: &Self::Tokens) -> Status {
            tokens.status()
        }

        fn key_status(tokens: &Self::Tokens) -> Option<KeyStatus> {
            tokens.key_status()
        }

        fn counters(tokens: &Self::Tokens) -> Counters {
            tokens.counters()
        }
    };
}

macro_rules! failed {
    ($adapter:ident) => {
        pub(super) fn failed(error: $adapter::Error) -> Failed {
            Failed {
                text: text(&error),
                debug: format!("{error:?} {error:#?}"),
                is_configuration: error.is_configuration(),
                is_rate_limited: error.is_rate_limited(),
                is_token: error.is_token(),
                is_api: error.is_api(),
                retry_at: error.retry_at(),
                acquire: error.acquire_error().cloned(),
            }
        }
    };
}

mod over_reqwest {
    use bytes::Bytes;
    use http_body_util::Full;
    use storm_auth_reqwest::{Builder, StormClient};

    use super::*;

    failed!(storm_auth_reqwest);

    macro_rules! wait {
        ($future:expr) => {
            block_on($future)
        };
    }

    impl Adapter for OverReqwest {
        same_words!(storm_auth_reqwest, wait);

        fn call(client: &Self::Client, call: Call) -> Result<Answer, Failed> {
            block_on(send(client.clone(), call))
        }

        fn calls_at_once(client: &Self::Client, calls: Vec<Call>) -> Vec<Result<Answer, Failed>> {
            at_once(calls.into_iter().map(|call| send(client.clone(), call)))
        }

        fn tokens_at_once(tokens: &Self::Tokens, callers: usize) -> Vec<Result<Token, Failed>> {
            at_once((0..callers).map(|_| {
                let tokens = tokens.clone();
                async move { tokens.token().await.map_err(failed) }
            }))
        }
    }

    fn at_once<T: Send + 'static>(futures: impl Iterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
        let tasks: Vec<_> = futures.map(|future| runtime().spawn(future)).collect();
        tasks.into_iter().map(|task| block_on(task).unwrap()).collect()
    }

    async fn send(client: StormClient, call: Call) -> Result<Answer, Failed> {
        let path = &call.path;
        let mut request = match call.method.as_str() {
            "GET" => client.get(path),
            "POST" => client.post(path),
            "PUT" => client.put(path),
            "PATCH" => client.patch(path),
            "DELETE" => client.delete(path),
            _ => client.request(call.method, path),
        };
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        if let Some(id) = call.application_id {
            request = request.application_id(id);
        }
        let request = match call.body {
            Payload::None => request,
            Payload::Bytes(bytes) => request.body(bytes),
            Payload::Json(value) => request.json(&value),
            Payload::Once(bytes) => request.body(reqwest::Body::wrap(Full::new(Bytes::from(bytes)))),
        };
        let response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(|error| failed(error.into()))?.to_vec();
        Ok(Answer { status, headers, body })
    }

    fn with_source(builder: Builder, source: Arc<Source>) -> Builder {
        builder.credentials_source(move || {
            let source = source.clone();
            async move { source() }
        })
    }

    fn loose(builder: Builder) -> Builder {
        let hasty = Duration::from_millis(200);
        builder.token_client(move || {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::limited(10))
                .retry(reqwest::retry::for_host("127.0.0.1").classify_fn(|request| request.retryable()))
                .pool_max_idle_per_host(10)
                .connection_verbose(true)
                .user_agent("acme-shop/1.0")
                .timeout(hasty)
                .read_timeout(hasty)
        })
    }

    fn panicking(builder: Builder, when: &'static AtomicBool) -> Builder {
        struct Panics(&'static AtomicBool);

        impl reqwest::dns::Resolve for Panics {
            fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
                panic_when(self.0);
            }
        }
        builder.token_client(move || reqwest::Client::builder().dns_resolver(Arc::new(Panics(when))))
    }

    fn own_api_client(builder: Builder) -> Builder {
        builder.api_client(reqwest::Client::builder().user_agent("acme-shop/1.0").build().unwrap())
    }
}

mod over_ureq {
    use std::{io::Cursor, sync::Barrier, thread};

    use storm_auth_blocking::{Builder, StormClient};
    use ureq::{
        Agent, SendBody,
        config::Config,
        unversioned::{
            resolver::{ResolvedSocketAddrs, Resolver},
            transport::{DefaultConnector, NextTimeout},
        },
    };

    use super::*;

    failed!(storm_auth_blocking);

    macro_rules! wait {
        ($result:expr) => {
            $result
        };
    }

    impl Adapter for OverUreq {
        same_words!(storm_auth_blocking, wait);

        fn call(client: &Self::Client, call: Call) -> Result<Answer, Failed> {
            send(client, call)
        }

        fn calls_at_once(client: &Self::Client, calls: Vec<Call>) -> Vec<Result<Answer, Failed>> {
            at_once(calls, |call| send(client, call))
        }

        fn tokens_at_once(tokens: &Self::Tokens, callers: usize) -> Vec<Result<Token, Failed>> {
            at_once(vec![(); callers], |()| tokens.token().map_err(failed))
        }
    }

    fn at_once<I: Send, T: Send>(inputs: Vec<I>, act: impl Fn(I) -> T + Sync) -> Vec<T> {
        let (act, barrier) = (&act, &Barrier::new(inputs.len()));
        thread::scope(|scope| {
            let threads: Vec<_> = (inputs.into_iter())
                .map(|input| {
                    let start = move || {
                        barrier.wait();
                        act(input)
                    };
                    thread::Builder::new().stack_size(512 * 1_024).spawn_scoped(scope, start).unwrap()
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn send(client: &StormClient, call: Call) -> Result<Answer, Failed> {
        let path = &call.path;
        let mut request = match call.method.as_str() {
            "GET" => client.get(path),
            "POST" => client.post(path),
            "PUT" => client.put(path),
            "PATCH" => client.patch(path),
            "DELETE" => client.delete(path),
            _ => client.request(call.method, path),
        };
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        for (name, value) in &call.query {
            request = request.query(name, value);
        }
        if let Some(id) = call.application_id {
            request = request.application_id(id);
        }
        let response = match call.body {
            Payload::None => request.call(),
            Payload::Bytes(bytes) => request.send(bytes),
            Payload::Json(value) => request.send_json(&value),
            Payload::Once(bytes) => request.send_once(SendBody::from_owned_reader(Cursor::new(bytes))),
        };
        let (parts, mut body) = response.map_err(failed)?.into_parts();
        let body = body.read_to_vec().map_err(|error| failed(error.into()))?;
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    fn with_source(builder: Builder, source: Arc<Source>) -> Builder {
        builder.credentials_source(move || source())
    }

    fn loose(builder: Builder) -> Builder {
        let hasty = Some(Duration::from_millis(200));
        builder.token_config(move |config| {
            config
                .max_redirects(10)
                .max_idle_connections(10)
                .http_status_as_error(true)
                .accept_encoding("gzip")
                .user_agent("acme-shop/1.0")
                .timeout_global(hasty)
                .timeout_recv_response(hasty)
                .timeout_recv_body(hasty)
        })
    }

    fn panicking(builder: Builder, when: &'static AtomicBool) -> Builder {
        #[derive(Debug)]
        struct Panics(&'static AtomicBool);

        impl Resolver for Panics {
            fn resolve(&self, _: &http::Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
                panic_when(self.0);
            }
        }
        builder.token_agent(move |config| Agent::with_parts(config, DefaultConnector::default(), Panics(when)))
    }

    fn own_api_client(builder: Builder) -> Builder {
        let config = Agent::config_builder().user_agent("acme-shop/1.0").http_status_as_error(true);
        builder.api_agent(config.build().new_agent())
    }
}
