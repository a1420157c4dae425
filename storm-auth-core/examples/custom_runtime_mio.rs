//! The machine driven by an event loop on mio: one thread, sockets that do not block, and callers that are state.
//!
//! ```text
//! cargo run -p storm-auth-core --example custom_runtime_mio                   # the show, in five scenes
//! cargo run -p storm-auth-core --example custom_runtime_mio -- --once /path   # one authorised GET: its status and body
//! ```
//!
//! [`Driver`] is what to copy, by the guide in `storm_auth_core::driver_guide`; what stands behind it lets the suite of
//! `storm_auth_tests::driver_conformance` check it, and `show` put it on. It asks the server that the STORM_* variables name, and an
//! emulator of its own when none of them is set. The HTTP client is a few lines over a socket that speak plain http, to loopback
//! only: a program of yours brings its own, and TLS with it.

#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "clocks, sockets and entropy are what a runtime brings"
)]

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::Duration;

use http::Response;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll};
use storm_auth_core::machine::{Acquire, Action, OpId, Output, TokenRequest, WaiterId};
use storm_auth_core::wire::request::FormBody;
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{AcquireError, Failure, FailureKind, KeyId, Machine, Mono, Now, Settings, Token};
use storm_auth_tests::driver_conformance::Subject;

mod clock;
mod plain_http;
mod show;

use clock::Clock;

/// Drives one machine from the thread that owns it. The loop is [`turn`](Self::turn).
struct Driver {
    machine: Machine,
    clock: Clock,
    poll: Poll,
    /// Token requests that are under way, by the number that their socket was registered with.
    flights: BTreeMap<usize, Flight>,
    next_flight: usize,
    /// Waiters that were resolved, until somebody fetches the result.
    resolved: BTreeMap<WaiterId, Result<Token, AcquireError>>,
}

impl Driver {
    fn new(machine: Machine, clock: Clock) -> io::Result<Self> {
        let (flights, resolved) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { machine, clock, poll: Poll::new()?, flights, next_flight: 0, resolved })
    }

    /// Asks for a token, to be had within `deadline` or the policy's. What it returns is to be [looked after](Self::result).
    fn acquire(&mut self, key: KeyId, deadline: Option<Duration>) -> Acquire {
        let acquired = self.with(|machine, now| machine.acquire(key, deadline, now));
        if let Acquire::Wait(waiter) = acquired {
            return self.result(waiter).unwrap_or(Acquire::Wait(waiter));
        }
        acquired
    }

    /// What became of a waiter, once it is there.
    fn result(&mut self, waiter: WaiterId) -> Option<Acquire> {
        Some(match self.resolved.remove(&waiter)? {
            Ok(token) => Acquire::Ready(token),
            Err(error) => Acquire::Failed(error),
        })
    }

    /// The caller has gone.
    fn cancel(&mut self, waiter: WaiterId) {
        if self.resolved.remove(&waiter).is_none() {
            self.with(|machine, now| machine.cancel(waiter, now));
        }
    }

    /// Rests until a socket is ready, a deadline comes or `at_most` is over, and does what is to be done then. A loop of yours
    /// has sockets of its own in the same poll.
    fn turn(&mut self, at_most: Duration) -> io::Result<()> {
        let flights = self.flights.values().map(|flight| flight.ends);
        let due = flights.chain(self.machine.poll_timeout().map(|due| due.at)).min();
        // A millisecond more than the clock says, or a timer fires a tick early and spins.
        let rest = due.map_or(at_most, |due| due.since(self.clock.now().mono) + Duration::from_millis(1));
        let mut events = Events::with_capacity(64);
        match self.poll.poll(&mut events, Some(rest.min(at_most))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            polled => polled?,
        }
        let mut ready: Vec<_> = events.iter().map(|event| event.token().0).collect();
        let now = self.clock.now();
        ready.extend(self.flights.iter().filter(|(_, flight)| flight.ends <= now.mono).map(|(number, _)| *number));
        for number in ready {
            self.go_on(number);
        }
        self.with(|machine, now| machine.handle_timeout(now));
        Ok(())
    }

    /// Lets the machine act, and does what it then wants.
    fn with<T>(&mut self, act: impl FnOnce(&mut Machine, Now) -> T) -> T {
        let result = act(&mut self.machine, self.clock.now());
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Perform(Action::Send(send)) => self.launch(send),
                Output::Perform(Action::Store(_) | Action::Credentials(_)) => unreachable!("neither was announced"),
                Output::Resolve(waiter, result) => drop(self.resolved.insert(waiter, result)),
                Output::Event(_) => {} // log it: each has a text and a severity
            }
        }
        result
    }

    fn launch(&mut self, send: TokenRequest) {
        let (op, number) = (send.op, self.next_flight);
        self.next_flight += 1;
        let flight = Flight::start(send, self.clock.now().mono).and_then(|mut flight| {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut flight.stream, mio::Token(number), both)?;
            Ok(flight)
        });
        match flight {
            Ok(flight) => drop(self.flights.insert(number, flight)),
            // Not by `with`, which is what called this.
            Err(error) => self.machine.handle_failure(op, plain_http::failure(false, &error), self.clock.now()),
        }
    }

    /// A socket is ready, or its time is over. Whatever comes of it is reported, once.
    fn go_on(&mut self, number: usize) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let Some(outcome) = flight.go_on(self.clock.now().mono) else { return };
        let Some(flight) = self.flights.remove(&number) else { return }; // closes its socket
        self.with(|machine, now| match outcome {
            Ok(response) => machine.handle_response(flight.op, &response, now),
            Err(failure) => machine.handle_failure(flight.op, failure, now),
        });
    }
}

/// One token request, as far as it has come.
struct Flight {
    op: OpId,
    stream: TcpStream,
    connected: bool,
    head: Vec<u8>,
    body: FormBody,
    /// Bytes of head and body that were sent.
    sent: usize,
    heard: Vec<u8>,
    /// When its patience ends: that of connecting at first, and then its own.
    ends: Mono,
    patience_ends: Mono,
}

impl Flight {
    /// Begins to connect. A name is looked up here, which may block, and one address is tried: a loop of yours has a resolver, or
    /// knows the address.
    fn start(send: TokenRequest, now: Mono) -> io::Result<Self> {
        let (head, body) = send.request.into_parts();
        let address = plain_http::peer(&head.uri)?.to_socket_addrs()?.min_by_key(SocketAddr::is_ipv6);
        let stream = TcpStream::connect(address.ok_or_else(|| io::Error::other("the name has no address"))?)?;
        Ok(Self {
            op: send.op,
            stream,
            connected: false,
            head: plain_http::head(&head, body.as_ref().len()),
            body,
            sent: 0,
            heard: Vec::new(),
            ends: now + TokenRequest::CONNECT_PATIENCE,
            patience_ends: now + send.patience,
        })
    }

    /// Goes on as far as the socket lets it; `None` while there is more to come.
    fn go_on(&mut self, now: Mono) -> Option<Result<Response<ResponseBody>, Failure>> {
        match self.talk() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let kind = if self.connected { FailureKind::Timeout } else { FailureKind::Connect };
                (self.ends <= now).then(|| Err(Failure::new(kind, "its time is over")))
            }
            Err(error) => Some(Err(plain_http::failure(self.connected, &error))),
            Ok(answer) => Some(Ok(answer)),
        }
    }

    fn talk(&mut self) -> io::Result<Response<ResponseBody>> {
        if !self.connected {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            match self.stream.peer_addr() {
                Err(error) if error.kind() == ErrorKind::NotConnected => return Err(ErrorKind::WouldBlock.into()),
                peer => drop(peer?),
            }
            (self.connected, self.ends) = (true, self.patience_ends);
        }
        loop {
            let (head, body) = (&self.head, self.body.as_bytes());
            let rest = if self.sent < head.len() { &head[self.sent..] } else { &body[self.sent - head.len()..] };
            match self.stream.write(rest) {
                _ if rest.is_empty() => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => self.sent += written?,
            }
        }
        let mut chunk = [0; 8 * 1024];
        loop {
            let read = match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read?,
            };
            self.heard.extend_from_slice(&chunk[..read]);
            if let Some(answer) = plain_http::token_answer(&self.heard, read == 0)? {
                return Ok(answer);
            }
        }
    }
}

/// What callers hold: a driver, and the key of their token.
pub(crate) struct Tokens {
    driver: Driver,
    key: KeyId,
}

impl Tokens {
    fn new(settings: Settings) -> Self {
        let config = settings.check().expect("the settings were checked");
        // Every process another seed, or processes that collide keep colliding.
        let mut machine = Machine::new(config.policy, RandomState::new().build_hasher().finish());
        let clock = Clock::movable(); // `Clock::system()` where nobody plays with it
        let key = machine.add_key(config.key, clock.now());
        Self { driver: Driver::new(machine, clock).expect("the system has an event queue"), key }
    }
}

impl Subject for Tokens {
    type Caller = Acquire;
    type Error = AcquireError;

    fn start(settings: Settings) -> Self {
        Self::new(settings)
    }

    fn call(&mut self, deadline: Duration) -> Acquire {
        self.driver.acquire(self.key, Some(deadline))
    }

    fn poll(&mut self, caller: &mut Acquire) -> Option<Result<Token, AcquireError>> {
        if let Acquire::Wait(waiter) = *caller {
            *caller = self.driver.result(waiter)?;
        }
        match caller {
            Acquire::Ready(token) => Some(Ok(token.clone())),
            Acquire::Failed(error) => Some(Err(error.clone())),
            Acquire::Wait(_) => None,
        }
    }

    fn rest(&mut self) {
        self.driver.turn(Duration::from_millis(2)).expect("the event queue can be read");
    }

    fn leave(&mut self, caller: Acquire) -> bool {
        if let Acquire::Wait(waiter) = caller {
            self.driver.cancel(waiter);
        }
        true
    }

    show::asks_its_machine!(with);
}

impl show::Shown for Tokens {
    const NAME: &str = "custom_runtime_mio";
    const WHAT: &str = "an event loop on mio, one thread for everything";
    const CALLERS: &str = "each a number in one thread";

    fn token(&mut self) -> Result<Token, AcquireError> {
        let mut caller = self.driver.acquire(self.key, None);
        loop {
            match self.poll(&mut caller) {
                Some(result) => return result,
                None => self.driver.turn(Duration::MAX).expect("the event queue can be read"),
            }
        }
    }

    fn clock(&self) -> &Clock {
        &self.driver.clock
    }
}

fn main() -> ExitCode {
    show::main::<Tokens>()
}
