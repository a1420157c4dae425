//! How to write a driver of one's own: what it does, in which order, and why.
//!
//! A driver owns what the machine may not touch: clocks, sockets, threads or tasks, and the callers. It decides nothing. All of it is
//! the loop in the [crate's docs](crate#how-to-run-it) and the points below; four drivers to copy from stand in this crate's
//! `examples`: `custom_runtime` (threads, std alone), `custom_runtime_smol` (tasks), `custom_runtime_mio` (an event loop, one thread),
//! and `custom_runtime_virtual` (no IO at all, for tests). A driver of several threads with a fast path finds its parts in the module
//! `driver`, behind the feature of that name.
//!
//! `storm_auth_tests::driver_conformance` checks a driver from outside, against an emulator; each point has the names of the checks
//! that find a driver which does not keep to it.
//!
//! # The list
//!
//! 1. **Read both clocks for every call, and hand them over as one [`Now`](crate::Now).** A monotonic clock does not count a suspend,
//!    and a wall clock is set back; a token that either calls expired is expired. A clock that was read before a lock was waited for,
//!    or before an answer was read, is an old one. Round down to milliseconds, and do not cap or repair what a clock says.
//!    *Found by `a_clock_that_is_set_back_prolongs_nothing`, `a_suspend_is_felt`.*
//! 2. **Drain [`poll_output`](crate::Machine::poll_output) after every command and every input, until it is `None`.** Also after an
//!    [`acquire`](crate::Machine::acquire) that is [`Ready`](crate::machine::Acquire::Ready): the refresh starts behind it. What is not
//!    drained is not lost, but nobody is served by it. *Found by `a_refresh_starts_behind_a_token_that_is_served`.*
//! 3. **Send each request once, to the URL that it names, over a connection of its own.** No redirect, no retry of the HTTP client's
//!    own, no pool: a redirected POST takes the secret along, and a request that was sent again behind the machine's back is a slot of
//!    the limiter that it does not know of. Over plain http take no proxy that only the environment names.
//!    *Found by `a_request_is_sent_once`, `no_redirect_is_followed`.*
//! 4. **Report each operation once, whatever became of it.** Any status is an answer and goes to
//!    [`handle_response`](crate::Machine::handle_response) with its headers, whatever the HTTP client thinks of it; no answer goes to
//!    [`handle_failure`](crate::Machine::handle_failure), with the [kind](crate::FailureKind) that it is. So does a thread that could
//!    not be started, a task that was dropped and a panic, as [`Aborted`](crate::FailureKind::Aborted): give a flight a guard that
//!    reports it. What is not reported keeps its callers until its patience ends.
//!    *Found by `every_answer_is_reported`, `a_request_without_an_answer_is_reported`.*
//! 5. **Collect the body in a [`ResponseBody`](crate::wire::response::ResponseBody), as it came, and stop reading when it says so.** A
//!    body that never ends costs 64 KiB then, and the status beside it still counts: hand over what there is. Decode nothing, since an
//!    encoded answer is refused; and a connection that ends before its answer does is a failure, not a short answer.
//!    *Found by `a_body_past_64_kib_fails`, `an_encoded_body_fails`, `half_an_answer_fails`.*
//! 6. **The request's [`patience`](crate::machine::TokenRequest::patience) is its IO timeout, and the only one but
//!    [`CONNECT_PATIENCE`](crate::machine::TokenRequest::CONNECT_PATIENCE).** A caller's deadline ends the caller's wait, and never the
//!    request: it was sent, it is counted, and its token is for later callers. A limiter may hold a request for minutes, and who gives
//!    up on it pays again. The machine gives up by itself; the timeout is what frees the socket.
//!    *Found by `a_request_outlives_the_deadline_of_its_caller`, `a_silent_request_is_given_up`.*
//! 7. **Somebody sleeps until [`poll_timeout`](crate::Machine::poll_timeout), at the longest, and calls
//!    [`handle_timeout`](crate::Machine::handle_timeout) then.** Either each caller that waits, or one timer; nobody has to while nobody
//!    waits, unless a key is [kept warm](crate::Machine::keep_warm) or a request is [`leased`](crate::machine::TokenRequest::leased).
//!    Ask again after everything that went in: the point comes forward when somebody with an earlier deadline joins, or a gate closes.
//!    Sleep by the clock that the machine is told, and a millisecond longer than it says, or a timer that fires a tick early spins.
//!    *Found by `a_deadline_comes_though_nothing_happens`, `a_deadline_that_comes_forward_is_kept`,
//!    `a_throttle_ends_though_nothing_happens`.*
//! 8. **Hand each [result](crate::machine::Output::Resolve) to its waiter, and wake it after unlocking.** There is one for each, and it
//!    comes once: keep it until it is fetched. Whoever wakes up may come straight back to the lock, on the same thread too.
//!    *Found by `a_caller_gets_a_token`, `one_request_serves_all_who_wait`.*
//! 9. **[Cancel](crate::Machine::cancel) a waiter whose caller goes away, and nothing else.** A future that is dropped is such a caller.
//!    A request belongs to no caller: it goes on in a thread or task of its own, also when the caller that started it takes its
//!    runtime along. *Found by `a_caller_that_goes_leaves_the_others_served`, `a_caller_that_goes_leaves_its_request`.*
//! 10. **Keep no token but as [`peek`](crate::Machine::peek) says.** Up to `look` a copy may be served without asking; from `look` on one
//!     caller asks the machine, while the others are served; from `hard` on nobody is. Both are points on both clocks. Take
//!     [`poll_change`](crate::Machine::poll_change) after every call, and publish what it names anew. A driver without a fast path asks
//!     the machine each time, which is a map's look-up. *Found by `a_cached_token_costs_no_request`,
//!     `an_expired_token_is_never_handed_out`.*
//! 11. **Name a rejected token by its [id](crate::Token::id), the one that the call was sent with.** After a 401 that
//!     [rejects the token](crate::wire::challenge::rejects_token) call [`invalidate`](crate::Machine::invalidate), acquire once more, and
//!     send the call again at most once, with another token than before. "The current one" may be its successor already.
//!     *Found by `a_rejected_token_is_replaced_once`.*
//! 12. **Decide nothing.** No retry, no sleep of one's own, no look at a status, no request because a caller is in a hurry. The machine
//!     knows what was sent, what the limiter has left, and who can still be served.
//!     *Found by `a_throttle_is_felt_once`, `a_failure_is_not_retried_by_the_driver`.*
//! 13. **Show no secret, no token and no body.** Requests, tokens and bodies are redacted in `Debug`; what the HTTP client logs is the
//!     driver's to look after, and so is what it adds to an error. [`Failure::detail`](crate::Failure::detail) is cleared of secrets and
//!     cut. Copy the request's body nowhere, or wipe the copy: no check sees that. *Found by
//!     `no_error_shows_the_secret`.*
//! 14. **End well.** [`shut_down`](crate::Machine::shut_down) starts nothing more; wait until
//!     [`is_idle`](crate::Machine::is_idle), so that what was sent is not wasted, and go on serving what is held. When the last handle
//!     goes, close the sockets that are still open, or let them end by the requests' patience: nothing lives for ever.
//!     *Found by `a_closed_driver_starts_nothing`.*
//!
//! What no check can see from outside:
//!
//! 15. **Give each machine a seed of its own,** from the system's entropy, or processes that collide keep colliding. In a test, give it
//!     a fixed one: equal seeds and inputs give equal outputs.
//! 16. **Perform the operations of a [store](crate::store) one after the other, in the order they come,** on a thread that may block, and
//!     report each; only a machine that was told to [`share`](crate::Machine::share) has any. Go on with them when no caller waits: what
//!     was fetched is to be published, and a lease given back. Before the last handle goes, perform those that are queued. While a
//!     request is `leased`, somebody sleeps as in 7, or the lease lapses.
//!     A store is checked by `storm_auth_tests::store_conformance`.
//! 17. **Look where credentials come from when the machine [asks for it](crate::machine::Action::Credentials), beside everything else,** and
//!     [report](crate::Machine::handle_credentials) what was found, a panic and a thread that could not be had too; only keys that were
//!     [announced](crate::Machine::renew_credentials) ask. On a thread that may block, or as a task of its own: nothing waits for it, so
//!     requests go out before it is done. One that is not reported within ten minutes is given up, and another one asked for.
//! 18. **After a fork call [`start_anew`](crate::Machine::start_anew) in the child, before anything else,** and use no connection, timer,
//!     waiter or thread of the parent's. Two processes that go on with one request are both told of one answer.
//! 19. **Report the [events](crate::machine::Output::Event)** by their [severity](crate::Event::severity), outside of the lock: a logger is
//!     somebody else's code. They may be dropped, but then nobody learns why tokens are late.
//!
//! # What never to do
//!
//! - Call the machine with the same moment again to "retry": time is what it waits for.
//! - Hold the lock while something is sent, slept or awaited.
//! - Cut a request short because its caller left, or start another one because it is late.
//! - Serve a token because a refresh failed. Where that is wanted, it is a [policy](crate::Policy), and it has a bound.
//! - Take a panic of one's own out on others: a poisoned lock holds a machine that is whole.
