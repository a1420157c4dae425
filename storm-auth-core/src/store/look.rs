//! What a store has for a key, for people: nothing is requested, and nothing is changed in it.

use crate::config::Config;
use crate::machine::{Action, Event, KeyStatus, Machine, Output, RecordFault};
use crate::store::{Lease, StoreCommand, StoreFailure, TokenStore};
use crate::time::{Now, Unix};

/// What a store has for a key, as a process that starts now would find it.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Seen {
    /// The key, with the token that would be served.
    pub key: KeyStatus,
    /// Until when the gate is closed; `None` when it is open.
    pub gate_closed_until: Option<Unix>,
    /// Who has the lease; of two secrets', the one that a process that starts now would go by.
    pub lease: Lease,
    /// How many requests in a row have failed, as stands beside that lease.
    pub failures: u32,
    /// What is wrong with the record that is there.
    pub fault: Option<RecordFault>,
}

impl Seen {
    /// Looks into a store, and does nothing else: no token is requested and no lease taken.
    ///
    /// ```
    /// use storm_auth_core::store::{Lease, Seen, StoreFailure, StoreOp, StoreReply, TokenStore};
    /// use storm_auth_core::{Credentials, Environment, Now, Settings};
    ///
    /// #[derive(Debug)]
    /// struct Empty;
    ///
    /// impl TokenStore for Empty {
    ///     fn perform(&self, _op: &StoreOp) -> Result<StoreReply, StoreFailure> {
    ///         Ok(StoreReply::default())
    ///     }
    /// }
    ///
    /// let config = Settings::new()
    ///     .environment(Environment::storm_lab())
    ///     .credentials(Credentials::new("shop", "S3cret")?)
    ///     .check()?;
    /// let seen = Seen::in_store(&config, &Empty, Now::from_millis(0, 1_700_000_000_000))?;
    /// assert_eq!((seen.key.token_until, seen.gate_closed_until, seen.lease), (None, None, Lease::Free));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The store cannot be used.
    pub fn in_store(config: &Config, store: &dyn TokenStore, now: Now) -> Result<Self, StoreFailure> {
        // A machine that is asked for a token reads first; what it wants after that is not done.
        let mut machine = Machine::new(config.policy.clone(), 0);
        machine.share();
        let key = machine.add_key(config.key.clone(), now);
        let _ = machine.acquire(key, None, now);
        // Two secrets have a record each. What stands beside the first counts, but where the machine goes by the other.
        let (mut last, mut counts, mut fault) = ((Lease::Free, 0), None, None);
        while let Some(output) = machine.poll_output() {
            match output {
                Output::Perform(Action::Store(request)) if matches!(request.store_op.command, StoreCommand::Read) => {
                    let reply = store.perform(&request.store_op)?;
                    last = (reply.lease, reply.failures);
                    if counts.is_none() || reply.lease == Lease::Taken {
                        counts = Some(last);
                    }
                    machine.handle_store(request.op, Ok(reply), now);
                }
                Output::Event(Event::RecordIgnored { fault: found, .. }) => fault = Some(found),
                Output::Event(Event::SecretSwapped { .. }) => counts = None,
                Output::Event(Event::Adopted { .. }) => counts = Some(last),
                Output::Perform(_) | Output::Resolve(..) | Output::Event(_) => {}
            }
        }
        let status = machine.status(now);
        let (lease, failures) = counts.unwrap_or((Lease::Free, 0));
        Ok(Self {
            key: machine.key_status(key, now).expect("the key was added"),
            gate_closed_until: status.gate_closed_until,
            lease,
            failures,
            fault,
        })
    }

    /// Whether the lease rests because the endpoint refused the configuration, and not after a request that failed.
    pub fn is_refused(&self) -> bool {
        matches!(self.lease, Lease::Resting(_)) && self.failures == 0
    }
}
