//! Random stories against what must hold in each of them.
//!
//! The judge knows nothing of the machine but its outputs: it has clocks of its own, knows which tokens the server issued and
//! when they die, and counts requests with the limiter's own arithmetic.

use std::collections::{BTreeMap, BTreeSet};

use http::Response;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use storm_auth_core::machine::{Acquire, OpId, WaiterId};
use storm_auth_core::wire::response::ResponseBody;
use storm_auth_core::{Credentials, FailureKind, Invalidated, KeyId, Policy, Token, TokenId};

use crate::harness::{Lab, granted, json, millis, oauth_error, retry_after, secs, status};

/// The limiter in front of the server: `limit_req rate=3r/m burst=20 nodelay`, in nginx's integers.
#[derive(Debug, Default)]
struct Nginx {
    accepted: Option<(i64, i64)>,
}

impl Nginx {
    fn admits(&mut self, at: u64) -> bool {
        let at = at as i64;
        let Some((excess, last)) = self.accepted else {
            self.accepted = Some((0, at));
            return true;
        };
        let new = (excess - 50 * (at - last) / 1000 + 1000).max(0);
        if new <= 20_000 {
            self.accepted = Some((new, at));
        }
        new <= 20_000
    }
}

#[derive(Clone, Debug)]
enum Step {
    Acquire { key: usize, patience: Option<u64> },
    Cancel { waiter: usize },
    Reject { key: usize },
    RejectOld,
    Rotate { key: usize },
    Warm { key: usize, on: bool },
    Answer { which: usize, kind: Answer },
    AnswerLate { kind: Answer },
    Advance { span: u64 },
    Sleep { span: u64 },
    WallForward { span: u64 },
    WallBack { span: u64 },
}

#[derive(Clone, Debug)]
enum Answer {
    Token(u64),
    SameToken(u64),
    Status(u16),
    Oauth(&'static str),
    RetryAfter(u16, u64),
    Malformed,
    Failure(FailureKind),
}

fn answer() -> impl Strategy<Value = Answer> {
    let lifetime = || prop_oneof![Just(0), 1..20_u64, 20..120_u64, Just(600), Just(3_600), Just(1_000_000)];
    prop_oneof![
        6 => lifetime().prop_map(Answer::Token),
        1 => lifetime().prop_map(Answer::SameToken),
        2 => proptest::sample::select(vec![400_u16, 401, 404, 429, 500, 502, 503]).prop_map(Answer::Status),
        2 => proptest::sample::select(vec!["invalid_client", "invalid_scope", "server_error"]).prop_map(Answer::Oauth),
        2 => (proptest::sample::select(vec![200_u16, 429, 500, 503]), prop_oneof![0..5_u64, 5..100_u64, Just(9_999)])
            .prop_map(|(status, wait)| Answer::RetryAfter(status, wait)),
        1 => Just(Answer::Malformed),
        2 => proptest::sample::select(vec![
            FailureKind::Connect, FailureKind::Timeout, FailureKind::Io, FailureKind::Aborted,
        ]).prop_map(Answer::Failure),
    ]
}

fn span() -> impl Strategy<Value = u64> {
    prop_oneof![0..5_u64, 5..2_000_u64, 2_000..30_000_u64, 30_000..700_000_u64]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => steady_step(),
        1 => span().prop_map(|span| Step::WallForward { span }),
        1 => span().prop_map(|span| Step::WallBack { span }),
    ]
}

/// A step by which no clock jumps.
fn steady_step() -> impl Strategy<Value = Step> {
    const KEYS: usize = 4;
    let patience = prop_oneof![Just(None), Just(Some(0)), (1..200_000_u64).prop_map(Some)];
    prop_oneof![
        10 => (0..KEYS, patience).prop_map(|(key, patience)| Step::Acquire { key, patience }),
        2 => (0..8_usize).prop_map(|waiter| Step::Cancel { waiter }),
        2 => (0..KEYS).prop_map(|key| Step::Reject { key }),
        1 => Just(Step::RejectOld),
        1 => (0..KEYS).prop_map(|key| Step::Rotate { key }),
        1 => (0..KEYS, any::<bool>()).prop_map(|(key, on)| Step::Warm { key, on }),
        10 => (0..4_usize, answer()).prop_map(|(which, kind)| Step::Answer { which, kind }),
        1 => answer().prop_map(|kind| Step::AnswerLate { kind }),
        8 => span().prop_map(|span| Step::Advance { span }),
        2 => span().prop_map(|span| Step::Sleep { span }),
    ]
}

/// One token as the server issued it: when its request went out, by both clocks, and how long it lives.
#[derive(Clone, Copy, Debug)]
struct Issued {
    sent: (u64, u64),
    lifetime: u64,
}

struct Story {
    lab: Lab,
    keys: Vec<KeyId>,
    under_way: BTreeMap<OpId, (KeyId, (u64, u64))>,
    over: Vec<(OpId, KeyId)>,
    seen: usize,
    /// By key and text; the same text may be issued again, with another life.
    issued: BTreeMap<(KeyId, String), Vec<Issued>>,
    last_text: BTreeMap<KeyId, String>,
    waiting: BTreeMap<WaiterId, u64>,
    rejected: BTreeSet<TokenId>,
    group: Nginx,
    per_key: BTreeMap<KeyId, Vec<u64>>,
    number: u64,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut lab = Lab::seeded(Policy::default(), seed);
        let keys = ["a", "b", "c", "d"].map(|client| lab.key(client)).to_vec();
        Self {
            lab,
            keys,
            under_way: BTreeMap::new(),
            over: Vec::new(),
            seen: 0,
            issued: BTreeMap::new(),
            last_text: BTreeMap::new(),
            waiting: BTreeMap::new(),
            rejected: BTreeSet::new(),
            group: Nginx::default(),
            per_key: BTreeMap::new(),
            number: 0,
        }
    }

    fn clocks(&self) -> (u64, u64) {
        (self.lab.now().mono.as_millis(), self.lab.now().unix.as_millis())
    }

    /// R20, R22: what is handed out lives, by both clocks. A lifetime of 0 is only for who already waited.
    fn judge_token(&self, token: &Token, waited: bool) {
        assert!(!self.rejected.contains(&token.id()), "a rejected token was handed out");
        let now = self.clocks();
        let issued = &self.issued[&(token.id().key(), token.expose().to_owned())];
        let lives = |issued: &Issued| {
            let lifetime = issued.lifetime.min(86_400) * 1000;
            let skew = (lifetime / 50).min(10_000);
            now.0 < issued.sent.0 + lifetime - skew && now.1 < issued.sent.1 + lifetime - skew
        };
        let once = |issued: &Issued| waited && issued.lifetime == 0;
        assert!(issued.iter().any(|issued| lives(issued) || once(issued)), "expired at {now:?}: {issued:?}");
    }

    /// Everything that came out since the last look.
    fn judge(&mut self) {
        let clocks = self.clocks();
        for (at, key) in self.lab.wire[self.seen..].iter().copied() {
            // R29: the group, by the limiter's arithmetic; the key, three at once and then one per 20 s.
            assert!(self.group.admits(at), "the limiter refused a request at {at}");
            let sent = self.per_key.entry(key).or_default();
            sent.push(at);
            // After n requests in a window there were at most 3 and one per 20 s of it.
            for (number, first) in sent.iter().rev().enumerate().skip(3) {
                let least = (number as u64 - 2) * 20_000;
                assert!(at - first >= least, "{} requests of one key in {} ms", number + 1, at - first);
            }
        }
        self.seen = self.lab.wire.len();
        // Ops that the machine gave up on by itself are over; it says so by its activity.
        let given_up: Vec<_> = (self.under_way.iter())
            .filter(|(op, (key, _))| {
                let activity = self.lab.status(*key).activity;
                let newer = self.lab.sends.iter().any(|send| send.key == *key && send.op != **op);
                activity != storm_auth_core::machine::Activity::Requesting || newer
            })
            .map(|(op, _)| *op)
            .collect();
        for op in given_up {
            let (key, _) = self.under_way.remove(&op).unwrap();
            self.over.push((op, key));
            self.lab.sends.retain(|send| send.op != op);
        }
        for send in &self.lab.sends {
            self.under_way.entry(send.op).or_insert((send.key, clocks));
        }
        // R25: one request per key.
        let keys: Vec<_> = self.under_way.values().map(|(key, _)| *key).collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "two requests of one key: {keys:?}");
        for (waiter, result) in self.lab.take_results() {
            // The harness refuses a second result of one waiter.
            self.waiting.remove(&waiter).expect("only who waits is resolved, and once");
            if let Ok(token) = &result {
                self.judge_token(token, true);
            }
        }
        // R25: nobody waits past its deadline.
        for (waiter, deadline) in &self.waiting {
            assert!(clocks.0 <= *deadline, "{waiter:?} waits past its deadline");
        }
        // A machine that somebody waits for has a next deadline, and none that is later than the waiter's.
        if let Some(first) = self.waiting.values().min() {
            let timeout = self.lab.machine.poll_timeout().expect("somebody waits");
            assert!(timeout.at.as_millis() <= *first, "{timeout:?} comes after the deadline {first}");
            assert!(!self.lab.machine.is_idle());
        }
        for key in &self.keys {
            if let Some(peek) = self.lab.machine.peek(*key, self.lab.now()) {
                self.judge_token(&peek.token, false);
            }
        }
    }

    fn issue(&mut self, key: KeyId, text: String, lifetime: u64, sent: (u64, u64)) -> Response<ResponseBody> {
        self.issued.entry((key, text.clone())).or_default().push(Issued { sent, lifetime });
        let response = granted(&text, lifetime);
        self.last_text.insert(key, text);
        response
    }

    fn issue_new(&mut self, key: KeyId, lifetime: u64, sent: (u64, u64)) -> Response<ResponseBody> {
        self.number += 1;
        self.issue(key, format!("t{}", self.number), lifetime, sent)
    }

    fn response(&mut self, key: KeyId, kind: &Answer, sent: (u64, u64)) -> Response<ResponseBody> {
        match kind {
            Answer::Token(lifetime) => self.issue_new(key, *lifetime, sent),
            Answer::SameToken(lifetime) => {
                let text = self.last_text.get(&key).cloned().unwrap_or_else(|| "t0".to_owned());
                self.issue(key, text, *lifetime, sent)
            }
            Answer::Status(code) => status(*code),
            Answer::Oauth(error) => oauth_error(if *error == "server_error" { 500 } else { 400 }, error),
            Answer::RetryAfter(200, wait) => retry_after(self.issue_new(key, 600, sent), &wait.to_string()),
            Answer::RetryAfter(code, wait) => retry_after(status(*code), &wait.to_string()),
            Answer::Malformed => json(200, r#"{"access_token":"two words"}"#),
            Answer::Failure(_) => unreachable!("is no response"),
        }
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::Acquire { key, patience } => {
                let key = self.keys[*key];
                let patience = patience.map(millis);
                let acquire = match patience {
                    Some(patience) => self.lab.acquire_within(key, patience),
                    None => self.lab.acquire(key),
                };
                match acquire {
                    Acquire::Ready(token) => self.judge_token(&token, false),
                    Acquire::Wait(waiter) => {
                        let deadline = self.lab.now().mono + patience.unwrap_or(secs(30));
                        self.waiting.insert(waiter, deadline.as_millis());
                    }
                    Acquire::Failed(error) => {
                        // R27, R36: it says when, and not in the past.
                        if let Some(retry_at) = error.retry_at() {
                            assert!(retry_at >= self.lab.now().unix, "{error:?}");
                        }
                    }
                }
            }
            Step::Cancel { waiter } => {
                if let Some(waiter) = self.waiting.keys().nth(*waiter).copied() {
                    self.waiting.remove(&waiter);
                    self.lab.cancel(waiter);
                }
            }
            Step::Reject { key } => {
                if let Some(peek) = self.lab.machine.peek(self.keys[*key], self.lab.now()) {
                    let became = self.lab.machine.invalidate(peek.token.id(), self.lab.now());
                    assert_ne!(became, Invalidated::NotCurrent);
                    self.rejected.insert(peek.token.id());
                    self.lab.drain();
                    assert!(self.lab.machine.peek(self.keys[*key], self.lab.now()).is_none());
                }
            }
            Step::RejectOld => {
                let valid = |story: &Self| {
                    let held = story.keys.iter().map(|key| story.lab.machine.peek(*key, story.lab.now()));
                    held.map(|peek| peek.map(|peek| peek.token.id())).collect::<Vec<_>>()
                };
                if let Some(old) = self.rejected.first().copied() {
                    let before = valid(self);
                    assert_eq!(self.lab.machine.invalidate(old, self.lab.now()), Invalidated::NotCurrent);
                    self.lab.drain();
                    assert_eq!(valid(self), before);
                }
            }
            Step::Rotate { key } => {
                self.number += 1;
                let client = ["a", "b", "c", "d"][*key];
                let credentials = Credentials::new(client, format!("secret-{}", self.number)).unwrap();
                self.lab.machine.set_credentials(self.keys[*key], credentials, self.lab.now()).unwrap();
                self.lab.drain();
            }
            Step::Warm { key, on: true } => {
                self.lab.machine.keep_warm(self.keys[*key], self.lab.now());
                self.lab.drain();
            }
            Step::Warm { key, on: false } => {
                self.lab.machine.keep_cold(self.keys[*key], self.lab.now());
                self.lab.drain();
            }
            Step::Answer { which, kind } => {
                if self.lab.sends.is_empty() {
                    return;
                }
                let which = which % self.lab.sends.len();
                let op = self.lab.sends.remove(which).unwrap().op;
                let (key, sent) = self.under_way.remove(&op).expect("it was under way");
                self.over.push((op, key));
                self.report(op, key, kind, sent);
            }
            Step::AnswerLate { kind } => {
                let Some((op, key)) = self.over.last().copied() else { return };
                let before = self.lab.machine.counters();
                // A token that nobody may ever get.
                let kind = if matches!(kind, Answer::SameToken(_)) { &Answer::Malformed } else { kind };
                self.report(op, key, kind, (0, 0));
                let after = self.lab.machine.counters();
                assert_eq!(
                    (before.granted, before.refused, before.throttled),
                    (after.granted, after.refused, after.throttled)
                );
            }
            Step::Advance { span } => self.advance(*span),
            // Nobody tells the machine: no timers, no threads. Whoever waits is served late, so nobody may.
            Step::Sleep { span } => {
                if self.waiting.is_empty() {
                    self.lab.advance(millis(*span));
                } else {
                    self.advance(*span);
                }
            }
            Step::WallForward { span } => self.lab.wall_forward(millis(*span)),
            Step::WallBack { span } => self.lab.wall_back(millis(*span)),
        }
    }

    fn report(&mut self, op: OpId, key: KeyId, kind: &Answer, sent: (u64, u64)) {
        if let Answer::Failure(kind) = kind {
            self.lab.machine.handle_failure(op, crate::harness::failure(*kind), self.lab.now());
            self.lab.drain();
        } else {
            let response = self.response(key, kind, sent);
            self.lab.answer_op(op, response);
        }
    }

    /// From one timeout to the next; the judge looks at each.
    fn advance(&mut self, span: u64) {
        let end = self.lab.elapsed() + span;
        while let Some(timeout) = self.lab.machine.poll_timeout()
            && timeout.at <= self.lab.mono(end)
        {
            let at = timeout.at.max(self.lab.now().mono).since(self.lab.mono(0)).as_millis() as u64;
            self.lab.drive_to(at);
            self.judge();
        }
        self.lab.advance_to(end);
    }

    /// The same in small ticks, which tell the machine the time far more often than it asked for.
    fn creep(&mut self, span: u64) {
        let end = self.lab.elapsed() + span;
        let tick = (span / 50).max(1);
        self.advance(0);
        while self.lab.elapsed() < end {
            let next = (self.lab.elapsed() + tick).min(end);
            self.advance(next - self.lab.elapsed());
            self.lab.tick();
            self.lab.tick();
        }
    }

    fn run(&mut self, steps: &[Step], creeping: bool) {
        for step in steps {
            match step {
                Step::Advance { span } if creeping => self.creep(*span),
                _ => self.play(step),
            }
            // A driver looks after every input.
            self.judge();
        }
    }

    /// All that was seen from outside: each output with its time, the bytes that were sent, and what the getters say at the end.
    fn told(&self) -> (Vec<String>, Vec<Vec<u8>>, String) {
        let Lab { machine, transcript, bodies, .. } = &self.lab;
        let getters =
            format!("{:?} {:?} {:?}", machine.status(self.lab.now()), machine.counters(), machine.poll_timeout());
        (transcript.clone(), bodies.clone(), getters)
    }
}

/// One whole story, with a limiter that sees its requests `delays` later, and what comes after its last step.
fn judge(seed: u64, steps: &[Step], delays: &[u64]) {
    let mut story = Story::new(seed);
    story.run(steps, false);

    // Nothing is forgotten: left alone, with every request unanswered, all are resolved and the machine comes to rest.
    for key in &story.keys.clone() {
        (0..steps.len()).for_each(|_| story.lab.machine.keep_cold(*key, story.lab.now()));
    }
    story.lab.drain();
    story.advance(200_000 + 420_000);
    story.judge();
    assert!(story.waiting.is_empty());

    // R29: the same requests pass when the network delays each of them by up to half a second.
    let mut arrivals: Vec<_> =
        (story.lab.times().iter().enumerate()).map(|(number, sent)| sent + delays[number % delays.len()]).collect();
    arrivals.sort_unstable();
    let mut limiter = Nginx::default();
    assert!(arrivals.iter().all(|at| limiter.admits(*at)), "{:?}", arrivals);

    // R79: each request has one outcome.
    let counters = story.lab.machine.counters();
    let outcomes = counters.granted
        + counters.throttled
        + counters.refused
        + counters.unusable
        + counters.unconnected
        + counters.timed_out
        + counters.broken
        + counters.aborted;
    assert_eq!(counters.requests, story.lab.requests() as u64);
    assert_eq!(counters.requests, outcomes + story.under_way.len() as u64);

    // R28: then each key gets a token within the hour that a gate may be closed for.
    for key in story.keys.clone() {
        story.lab.sends.clear();
        let waiter = story.lab.acquire_within(key, secs(7_200));
        let waiter = match waiter {
            Acquire::Wait(waiter) => waiter,
            Acquire::Ready(_) => continue,
            Acquire::Failed(error) => {
                let retry_at = error.retry_at().expect("it is known when");
                let wait = retry_at.since(story.lab.now().unix);
                assert!(wait <= secs(3_700), "{:?}", error);
                story.lab.drive(wait);
                story.lab.wait_within(key, secs(7_200))
            }
        };
        while story.lab.sends.is_empty() {
            let at = story.lab.machine.poll_timeout().expect("somebody waits").at;
            story.lab.drive_to(at.max(story.lab.now().mono).since(story.lab.mono(0)).as_millis() as u64);
            assert!(!story.lab.is_resolved(waiter));
        }
        story.lab.answer_key(key, granted("the-last", 3_600));
        assert!(story.lab.result(waiter).is_ok());
    }
}

/// A story that breaks a promise is kept in `proptest-regressions`, to be committed, and is told again first.
/// `PROPTEST_CASES` tells more of them.
fn stories() -> ProptestConfig {
    const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/machine.txt");
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(KEPT))),
        max_shrink_iters: 1_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(stories())]

    #[test]
    fn r20_r25_r29_no_story_breaks_a_promise(
        seed in 0..4_u64,
        steps in proptest::collection::vec(step(), 1..120),
        delays in proptest::collection::vec(0..=500_u64, 1..30),
    ) {
        judge(seed, &steps, &delays);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: stories().cases / 4, ..stories() })]

    #[test]
    fn r63_equal_seed_and_inputs_give_equal_outputs(seed in any::<u64>(), steps in proptest::collection::vec(step(), 1..60)) {
        let tell = |seed| {
            let mut story = Story::new(seed);
            story.run(&steps, false);
            story.told()
        };
        prop_assert_eq!(tell(seed), tell(seed));
    }

    #[test]
    fn telling_the_time_more_often_than_asked_changes_nothing(steps in proptest::collection::vec(steady_step(), 1..60)) {
        let tell = |creeping| {
            let mut story = Story::new(7);
            story.run(&steps, creeping);
            story.told()
        };
        prop_assert_eq!(tell(false), tell(true));
    }
}

#[test]
fn the_judges_limiter_is_the_documented_one() {
    let mut limiter = Nginx::default();
    assert_eq!((0..23).filter(|_| limiter.admits(0)).count(), 21);
    let passes = [19_980, 19_999, 20_000, 20_001, 39_999, 40_000].map(|at| limiter.admits(at));
    assert_eq!(passes, [false, false, true, false, false, true]);
    let mut steady = Nginx::default();
    assert_eq!((0..200).position(|number| !steady.admits(number * 15_000)), Some(81));
}

/// Stories that once broke a promise.
#[test]
fn r20_r25_r29_no_story_that_once_did_breaks_a_promise_again() {
    let stories: [(u64, &[Step]); 1] = [(
        0,
        &[
            Step::Warm { key: 3, on: true },
            Step::Advance { span: 265_253 },
            Step::Answer { which: 0, kind: Answer::RetryAfter(200, 9_999) },
            Step::Advance { span: 261_774 },
            Step::WallForward { span: 246_035 },
            Step::Acquire { key: 3, patience: None },
            Step::WallBack { span: 1 },
        ],
    )];
    for (seed, steps) in stories {
        judge(seed, steps, &[0]);
    }
}
