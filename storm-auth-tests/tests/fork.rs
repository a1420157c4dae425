//! R54: what a forked child does with its parent's providers and clients, in both adapters.
//!
//! Each adapter plays its scenes in a process of its own, whose test is the only one there, so that no other test's threads are
//! copied in the middle of something. A child that hangs is ended by its alarm.
#![cfg(unix)]
#![allow(
    unsafe_code,
    reason = "fork has no safe form: the child goes on with a copy of memory that other threads used"
)]
#![allow(clippy::unwrap_used, reason = "what the tests share stands outside of their functions")]

#[allow(dead_code, reason = "this suite needs a part of it")]
#[path = "adapters/face.rs"]
mod face;
#[allow(dead_code, reason = "this suite needs a part of it")]
#[path = "adapters/peers.rs"]
mod peers;

use std::{
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use face::{Adapter, Events, OverReqwest, OverUreq, PATIENCE, Setup, get, pass, until};
use http::StatusCode;
use peers::{answer, granting, hear};
use storm_auth_core::{AcquireError, Credentials, Event, Scope, Settings, machine::Activity};

/// The scenes that a process plays, by the name of their adapter.
const SCENE: &str = "STORM_AUTH_FORK_SCENE";

#[test]
fn r54_a_forked_child_has_a_token_and_leaves_its_parent_alone_over_reqwest() {
    assert_plays("reqwest");
}

#[test]
fn r54_a_forked_child_has_a_token_and_leaves_its_parent_alone_over_ureq() {
    assert_plays("ureq");
}

fn assert_plays(adapter: &str) {
    let scenes = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scenes_for_the_other_tests", "--nocapture"])
        .env(SCENE, adapter)
        .output()
        .unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&scenes.stdout), String::from_utf8_lossy(&scenes.stderr));
    assert!(scenes.status.success() && told.contains("1 passed"), "{told}");
}

/// Does nothing by itself.
#[test]
fn scenes_for_the_other_tests() {
    match std::env::var(SCENE).as_deref() {
        Ok("reqwest") => {
            play::<OverReqwest>();
            a_runtime_that_carries_the_parents_requests();
        }
        Ok(_) => play::<OverUreq>(),
        Err(_) => {}
    }
}

fn play<A: Adapter>() {
    // A scene that fails may wait for a thread that serves nobody.
    end_after(4 * PATIENCE);
    a_provider_that_was_never_used::<A>();
    a_token_that_the_parent_holds::<A>();
    // Again and again: threads of the child lie where threads of the parent lay, now and then to the byte.
    (0..10).for_each(|_| a_request_that_the_parent_has_under_way::<A>());
    a_child_that_closes_and_drops_what_it_got::<A>();
    a_key_that_the_parent_keeps_warm::<A>();
    a_gate_that_the_parent_felt::<A>();
    a_source_that_the_parent_is_at::<A>();
    a_connection_to_the_api_that_the_parent_keeps::<A>();
    a_child_of_a_child::<A>();
}

/// Ends this process, not its children, once it has hung so long.
fn end_after(span: Duration) {
    // SAFETY: it only takes a number, and its signal ends the process.
    unsafe { libc::alarm(u32::try_from(span.as_secs()).unwrap()) };
}

/// Runs `child` in a forked child, and fails when it panics or hangs.
fn in_a_child(child: impl FnOnce()) {
    // SAFETY: nothing that the child uses is held by another thread at this point: the scenes' other threads wait on sockets or
    // for their time, and the allocator, the one lock that any of them may hold, is made whole by the C library.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            end_after(PATIENCE);
            let panicked = catch_unwind(AssertUnwindSafe(child)).is_err();
            // SAFETY: it only takes a number. What the parent has at its exit, buffers and destructors, is not the child's.
            unsafe { libc::_exit(i32::from(panicked)) }
        }
        process => {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            assert_eq!(unsafe { libc::waitpid(process, &raw mut status, 0) }, process);
            assert_eq!(status, 0, "the child panicked, or hung and was ended by signal {}", libc::WTERMSIG(status));
        }
    }
}

/// A token endpoint whose socket a child inherits: whichever process serves it answers.
struct Endpoint(TcpListener);

impl Endpoint {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn settings(&self) -> Settings {
        let url = format!("http://{}", self.0.local_addr().unwrap());
        Settings::new()
            .token_url(format!("{url}/token"))
            .api_url(url)
            .scope(Scope::server_default())
            .credentials(Credentials::new("shop", "S3cret").unwrap())
    }

    /// Takes a request, and leaves its connection to the caller.
    fn take(&self) -> TcpStream {
        let (mut stream, _) = self.0.accept().unwrap();
        assert!(!hear(&mut stream).is_empty());
        stream
    }

    /// Runs `ask` while this process answers so many requests with these tokens, and returns what it returns.
    fn serve<T: Send>(&self, tokens: &[&str], ask: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope.spawn(|| {
                for token in tokens {
                    answer(&mut self.take(), "200 OK", "", &granting(token));
                }
            });
            ask()
        })
    }
}

fn token<A: Adapter>(tokens: &A::Tokens) -> String {
    A::token(tokens).unwrap().expose().to_owned()
}

fn requests<A: Adapter>(tokens: &A::Tokens) -> u64 {
    A::counters(tokens).requests
}

fn a_provider_that_was_never_used<A: Adapter>() {
    let endpoint = Endpoint::new();
    let tokens = Setup::<A>::new(endpoint.settings()).tokens();
    in_a_child(|| {
        assert_eq!(endpoint.serve(&["child"], || token::<A>(&tokens)), "child");
        assert_eq!(requests::<A>(&tokens), 1);
    });
    assert_eq!(requests::<A>(&tokens), 0);
    assert_eq!(endpoint.serve(&["parent"], || token::<A>(&tokens)), "parent");
}

fn a_token_that_the_parent_holds<A: Adapter>() {
    let endpoint = Endpoint::new();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::new(endpoint.settings()).clock(&clock).tokens();
    endpoint.serve(&["held"], || token::<A>(&tokens));
    in_a_child(|| {
        // It is as good here, and costs no request.
        assert_eq!(token::<A>(&tokens), "held");
        assert_eq!(requests::<A>(&tokens), 0);
        // Nobody waits in its refresh window either.
        A::advance(&clock, Duration::from_secs(3_000));
        let (refreshing, refreshed) = (&tokens, || token::<A>(&tokens) == "refreshed");
        endpoint.serve(&["refreshed"], || {
            assert_eq!(token::<A>(refreshing), "held");
            until("the refresh", refreshed);
        });
        // And what the child rejects is its own matter.
        A::invalidate(&tokens, A::token(&tokens).unwrap().id());
        assert_eq!(endpoint.serve(&["other"], || token::<A>(&tokens)), "other");
        assert_eq!(requests::<A>(&tokens), 2);
    });
    assert_eq!(token::<A>(&tokens), "held");
    assert_eq!(requests::<A>(&tokens), 1);
    // The parent's own budget knows its own request alone.
    assert_eq!(A::status(&tokens).budget_left, 20);
}

/// A provider whose first request is under way, its caller gone, and the request's connection.
fn stalled<A: Adapter>(endpoint: &Endpoint) -> (A::Tokens, TcpStream) {
    let tokens = Setup::<A>::new(endpoint.settings()).tokens();
    let error = A::token_within(&tokens, Duration::ZERO).unwrap_err();
    assert_eq!(error.acquire, Some(AcquireError::DeadlineExceeded));
    // From here on its thread waits for the answer.
    let stream = endpoint.take();
    (tokens, stream)
}

fn a_request_that_the_parent_has_under_way<A: Adapter>() {
    let endpoint = Endpoint::new();
    let (tokens, mut stream) = stalled::<A>(&endpoint);
    in_a_child(|| {
        // Nobody here would ever hear its answer.
        let status = A::key_status(&tokens).unwrap();
        assert_eq!((status.activity, A::status(&tokens).waiters), (Activity::Idle, 0));
        assert_eq!(endpoint.serve(&["child"], || token::<A>(&tokens)), "child");
        // The parent's request has spent a slot of the address that both have.
        assert_eq!((requests::<A>(&tokens), A::status(&tokens).budget_left), (1, 19));
    });
    answer(&mut stream, "200 OK", "", &granting("parent"));
    assert_eq!(token::<A>(&tokens), "parent");
    assert_eq!(requests::<A>(&tokens), 1);
}

fn a_child_that_closes_and_drops_what_it_got<A: Adapter>() {
    for close in [true, false] {
        let endpoint = Endpoint::new();
        let (tokens, mut stream) = stalled::<A>(&endpoint);
        // The last handle; what the child takes is its own copy.
        let mut last = Some(tokens);
        in_a_child(|| {
            let tokens = last.take().unwrap();
            if close {
                // There is nothing to wait for.
                A::close(&tokens, PATIENCE).unwrap();
            }
            drop(tokens);
        });
        // The parent's connection was not cut.
        answer(&mut stream, "200 OK", "", &granting("parent"));
        let tokens = last.unwrap();
        assert_eq!(token::<A>(&tokens), "parent");
        assert_eq!(requests::<A>(&tokens), 1);
    }
}

fn a_key_that_the_parent_keeps_warm<A: Adapter>() {
    let endpoint = Endpoint::new();
    let clock = A::movable_clock();
    let tokens = Setup::<A>::new(endpoint.settings()).clock(&clock).tokens();
    let warm = endpoint.serve(&["first"], || {
        let warm = A::keep_warm(&tokens);
        until("the first token", || A::key_status(&tokens).unwrap().token_until.is_some());
        warm
    });
    let mut warm = Some(warm);
    in_a_child(|| {
        // The thread of the parent's guard is not here, and neither has it a say.
        let own = A::keep_warm(&tokens);
        drop(warm.take());
        A::advance(&clock, Duration::from_secs(3_000));
        endpoint.serve(&["child"], || {
            pass::<A>(&clock, &tokens, Duration::ZERO);
            until("the refresh", || token::<A>(&tokens) == "child");
        });
        drop(own);
    });
    A::advance(&clock, Duration::from_secs(3_000));
    endpoint.serve(&["second"], || {
        pass::<A>(&clock, &tokens, Duration::ZERO);
        until("the refresh", || token::<A>(&tokens) == "second");
    });
}

fn a_gate_that_the_parent_felt<A: Adapter>() {
    let endpoint = Endpoint::new();
    let tokens = Setup::<A>::new(endpoint.settings()).tokens();
    thread::scope(|scope| {
        scope.spawn(|| answer(&mut endpoint.take(), "429 Too Many Requests", "retry-after: 600\r\n", ""));
        assert!(A::token(&tokens).unwrap_err().is_rate_limited);
    });
    in_a_child(|| {
        // Both have one address: nothing is sent.
        let error = A::token(&tokens).unwrap_err();
        assert!(error.is_rate_limited && error.retry_at.is_some(), "{error:?}");
        assert_eq!(requests::<A>(&tokens), 0);
    });
}

/// Whoever the parent has sent to look for credentials comes back to the parent; the child sends somebody of its own.
fn a_source_that_the_parent_is_at<A: Adapter>() {
    let endpoint = Endpoint::new();
    let (asked, released) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, go_on, parent) = (asked.clone(), released.clone(), std::process::id());
    let source = move || {
        count.fetch_add(1, Ordering::Relaxed);
        until("the end of the scene", || std::process::id() != parent || go_on.load(Ordering::Relaxed));
        Err("nothing is there".to_owned())
    };
    let events = Events::default();
    let tokens = Setup::<A>::new(endpoint.settings()).events(&events).source(source).tokens();
    endpoint.serve(&["held"], || token::<A>(&tokens));
    until("somebody is there", || asked.load(Ordering::Relaxed) == 1);
    let failures =
        |events: &Events| events.seen().iter().filter(|event| matches!(event, Event::CredentialsFailed { .. })).count();
    in_a_child(|| {
        A::invalidate(&tokens, A::token(&tokens).unwrap().id());
        assert_eq!(endpoint.serve(&["child"], || token::<A>(&tokens)), "child");
        until("its own has come back", || failures(&events) == 1);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    });
    assert_eq!(failures(&events), 0);
    released.store(true, Ordering::Relaxed);
    until("the parent's has come back", || failures(&events) == 1);
}

fn a_connection_to_the_api_that_the_parent_keeps<A: Adapter>() {
    let endpoint = Endpoint::new();
    let storm = Setup::<A>::new(endpoint.settings()).client();
    endpoint.serve(&["held"], || token::<A>(&A::tokens(&storm)));
    // Answers so many requests with the process that does, over connections that stay. As a rule it is one, but a client may open another
    // while its last one is on its way back to the pool.
    let keep = |calls: usize, mut streams: Vec<TcpStream>| {
        let listener = endpoint.0.try_clone().unwrap();
        thread::spawn(move || {
            for _ in 0..calls {
                loop {
                    let ready = readable(&listener, &streams);
                    if ready < streams.len() {
                        assert!(!hear(&mut streams[ready]).is_empty());
                        answer(&mut streams[ready], "200 OK", "", &std::process::id().to_string());
                        break;
                    }
                    streams.push(listener.accept().unwrap().0);
                }
            }
            streams
        })
    };
    let call = |storm: &A::Client| {
        for call in [get("/"), get("/").header("x-trace", "abc")] {
            let answer = A::call(storm, call).unwrap();
            assert_eq!(answer.status, StatusCode::OK);
            // The one that answers is the process that asks.
            assert_eq!(String::from_utf8(answer.body).unwrap(), std::process::id().to_string());
        }
    };
    let serving = keep(2, Vec::new());
    call(&storm);
    let kept = serving.join().unwrap();
    in_a_child(|| {
        // Not over the parent's connection: nobody would answer there.
        let serving = keep(4, Vec::new());
        call(&storm);
        call(&storm);
        serving.join().unwrap();
    });
    // The parent's was neither used nor closed.
    for stream in &kept {
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.peek(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
    }
    let serving = keep(4, kept);
    call(&storm);
    call(&storm);
    serving.join().unwrap();
}

/// Waits for a stream that can be read, and returns which one; for another connection, their count.
fn readable(listener: &TcpListener, streams: &[TcpStream]) -> usize {
    let descriptors = streams.iter().map(AsRawFd::as_raw_fd).chain([listener.as_raw_fd()]);
    let mut polled: Vec<_> = descriptors.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the list outlives the call, and its length is the one that is said.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
    assert!(ready > 0, "{}", std::io::Error::last_os_error());
    polled.iter().position(|polled| polled.revents != 0).unwrap()
}

/// `flights_on`, which only one adapter has.
fn a_runtime_that_carries_the_parents_requests() {
    let endpoint = Endpoint::new();
    let carrier = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let builder = OverReqwest::builder(Setup::new(endpoint.settings())).flights_on(carrier.handle().clone());
    let tokens = builder.build_tokens().unwrap();
    endpoint.serve(&["parent"], || token::<OverReqwest>(&tokens));
    in_a_child(|| {
        tokens.invalidate(<OverReqwest as Adapter>::token(&tokens).unwrap().id());
        assert_eq!(endpoint.serve(&["child"], || token::<OverReqwest>(&tokens)), "child");
    });
}

fn a_child_of_a_child<A: Adapter>() {
    let endpoint = Endpoint::new();
    let tokens = Setup::<A>::new(endpoint.settings()).tokens();
    in_a_child(|| {
        endpoint.serve(&["child"], || token::<A>(&tokens));
        in_a_child(|| {
            assert_eq!(token::<A>(&tokens), "child");
            A::invalidate(&tokens, A::token(&tokens).unwrap().id());
            assert_eq!(endpoint.serve(&["grandchild"], || token::<A>(&tokens)), "grandchild");
        });
        // Threads that start in a child use the provider as any do.
        let (tell, told) = mpsc::channel();
        let tokens = tokens.clone();
        thread::spawn(move || tell.send(token::<A>(&tokens)).unwrap());
        assert_eq!(told.recv().unwrap(), "child");
    });
}
