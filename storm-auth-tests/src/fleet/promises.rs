//! What a fleet is promised, as plans and bounds: `fleet --promises` runs the list.

use core::time::Duration;

use super::course::Figures;
use super::plan::{Outage, OutageKind, Plan, Policy, Shared};
use crate::emulator::Limiter;

/// A plan, and what its figures must not exceed.
#[derive(Clone, Debug)]
pub struct Promise {
    /// What is promised, in a line.
    pub text: String,
    /// What is run.
    pub plan: Plan,
    /// The most that processes which had a token may be without one, in percent.
    pub without_token_percent: f64,
    /// Whether that holds for those that had none yet as well.
    pub starting_too: bool,
    /// The most requests an hour that the limiter may refuse.
    pub rejects_per_hour: Option<f64>,
    /// When the last process must have had its first token.
    pub last_served_after_s: Option<f64>,
    /// The most token requests, of one seed.
    pub token_requests: Option<u64>,
    /// Why it is known to be missed by the library's own policy; `None` where it is to be kept.
    pub known: Option<Known>,
}

/// What is known of a promise that is missed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Known {
    /// Why it is missed.
    pub why: &'static str,
    /// How long processes that had a token are without one at the most, in percent: more is not what is known.
    pub without_token_percent: f64,
}

/// What is printed as 0.000 %.
pub(super) const NONE: f64 = 0.000_5;

impl Promise {
    fn new(text: &str, plan: Plan, without_token_percent: f64) -> Self {
        let text = format!("{} processes, {} s: {text}", plan.processes, plan.lifetime.as_secs());
        Self {
            text,
            plan,
            without_token_percent,
            starting_too: false,
            rejects_per_hour: None,
            last_served_after_s: None,
            token_requests: None,
            known: None,
        }
    }

    /// What of it is broken; empty when it is kept.
    pub fn broken_by(&self, figures: &Figures) -> Vec<&'static str> {
        let late = |most: f64| figures.last_served_after_s().is_none_or(|after| after > most);
        let without = match self.starting_too {
            true => figures.without_or_starting_percent(),
            false => figures.without_token_percent(),
        };
        let mut broken = Vec::new();
        if without >= self.without_token_percent {
            broken.push("without a token for too long");
        }
        if self.rejects_per_hour.is_some_and(|most| figures.rejects_per_hour() > most) {
            broken.push("too many rejects");
        }
        if self.last_served_after_s.is_some_and(late) {
            broken.push("the last process was served too late");
        }
        if self.token_requests.is_some_and(|most| figures.token_requests > most * figures.seeds) {
            broken.push("too many token requests");
        }
        if figures.expired_handed_out > 0 {
            broken.push("an expired token was handed out");
        }
        broken
    }

    /// What is known of it, when it is broken by no more than that.
    pub fn known_by(&self, figures: &Figures) -> Option<Known> {
        let known = self.known.filter(|_| matches!(self.plan.policy, Policy::Storm(_)))?;
        let missed = Self { without_token_percent: known.without_token_percent, ..self.clone() };
        (!self.broken_by(figures).is_empty() && missed.broken_by(figures).is_empty()).then_some(known)
    }
}

/// All promises, each over 24 hours after two of warm-up where it does not say otherwise.
pub fn promises() -> Vec<Promise> {
    let mut all = unshared();
    all.extend(shared());
    all
}

/// Those of processes that share a store.
fn shared() -> Vec<Promise> {
    let plan = |processes, seconds| Plan {
        store: Some(Shared::default()),
        ..Plan::new(processes, Duration::from_secs(seconds))
    };
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
    let mut all = Vec::new();
    let cold = Plan { warmup: Duration::ZERO, hours: 5 * minute, ..plan(1_000, 600) };
    let first = Promise::new("all start at once with a store: one request, all served within 2 s of it", cold, NONE);
    // They start within the first second.
    all.push(Promise { last_served_after_s: Some(3.0), token_requests: Some(1), ..first });
    for (seconds, period) in [(600, 450), (3_600, 2_700)] {
        let plan = Plan { restart_every: Some(24 * hour), pause: Some((6 * hour, minute / 2)), ..plan(1_000, seconds) };
        let most = 24 * 3_600 / period * 11 / 10;
        let text = format!("a store, and each crashes once and stands still four times: at most {most} requests");
        all.push(Promise {
            token_requests: Some(most),
            rejects_per_hour: Some(0.0),
            ..Promise::new(&text, plan, NONE)
        });
    }
    // Each of them has a token of its own in the end, and they begin with one that all share: 20 fit into a burst.
    let lost = Plan { store: Some(Shared { outage: Some((2 * hour, hour)) }), ..plan(20, 600) };
    all.push(Promise::new("their store is lost for every other hour: nobody is without", lost, NONE));
    // Far more than one address carries, so most are without; each asks for a token some fifteen times in that hour.
    let lost = Plan { store: Some(Shared { outage: Some((4 * hour, hour)) }), ..plan(1_000, 600) };
    let calm =
        Promise::new("their store is lost for an hour in four: at most 15 rejects for each in that hour", lost, 100.0);
    all.push(Promise { rejects_per_hour: Some(15_000.0 / 4.0), ..calm });
    all
}

/// Those of processes that share nothing but the address.
fn unshared() -> Vec<Promise> {
    let plan = |processes, seconds| Plan::new(processes, Duration::from_secs(seconds));
    let mut all = Vec::new();
    for (processes, seconds) in [(28, 600), (165, 3_600)] {
        let calm = Promise::new("nobody is without, at most 5 rejects an hour", plan(processes, seconds), NONE);
        all.push(Promise { rejects_per_hour: Some(5.0), ..calm });
    }
    all.push(Promise::new("one more than fits with ease: at most 1 % without", plan(29, 600), 1.0));
    let crowded = Known {
        why: "restarted processes refresh early until a throttle tells them that the address is crowded, which takes them hours; \
              that is more than the address carries, and who then meets an empty bucket late in its token's life may try again \
              but once per slot (R29); a `refresh_early` of 0.86 keeps it, and breaks those in outages",
        without_token_percent: 0.02,
    };
    for (processes, seconds, known) in [(27, 600, Some(crowded)), (150, 3_600, None)] {
        let restarts = Some(Duration::from_secs(24 * 3_600));
        let plan = Plan { restart_every: restarts, ..plan(processes, seconds) };
        // 0.001 %, as it is printed.
        let restarted = Promise::new("each restarts once a day: at most 0.001 % without", plan, 0.001_5);
        all.push(Promise { known, ..restarted });
    }
    for (processes, seconds) in [(15, 600), (100, 3_600)] {
        let plan = Plan {
            limiter: Limiter::nginx_delay(),
            warmup: Duration::from_secs(3_600),
            hours: Duration::from_secs(25 * 3_600),
            ..plan(processes, seconds)
        };
        let held = Promise::new("requests are held: nobody is without from the second hour on", plan, NONE);
        all.push(Promise { starting_too: true, ..held });
    }
    for (kind, what) in [(OutageKind::Status, "502"), (OutageKind::Refused, "no connection")] {
        for (processes, seconds, length) in [(10, 600, 120), (50, 3_600, 600)] {
            let outage = Outage { every: Duration::from_secs(3_600), length: Duration::from_secs(length), kind };
            let plan = Plan { outage: Some(outage), ..plan(processes, seconds) };
            all.push(Promise::new(&format!("{what} for {length} s in every hour: nobody is without"), plan, NONE));
        }
    }
    for (processes, seconds) in [(28, 600), (50, 3_600), (165, 3_600)] {
        let bound = (processes as f64 - 21.0) * 20.0;
        let plan = Plan {
            warmup: Duration::ZERO,
            hours: Duration::from_secs_f64(bound * 2.0 + 60.0),
            ..plan(processes, seconds)
        };
        let cold =
            Promise::new(&format!("all start at once: the last is served within {bound} s and 10 %"), plan, 100.0);
        all.push(Promise { last_served_after_s: Some(bound * 1.1), ..cold });
    }
    all
}
