//! What `--verbose` says.

use std::cell::RefCell;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use storm_auth_blocking::Event;

use crate::output;

/// How long a thread that tells an event is waited for.
const LONGEST: Duration = Duration::from_secs(1);

/// Tells events on standard error. The library tells them on threads of its own, after what they tell of, so the process has to
/// [hear it out](Self::hear_out) before it ends.
#[derive(Default, Debug)]
pub(crate) struct Voice(RefCell<Option<Receiver<()>>>);

impl Voice {
    pub(crate) fn on_event(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let (alive, gone) = mpsc::channel();
        self.0.replace(Some(gone));
        move |event| {
            // It goes with the last thread that may tell something.
            let _ = &alive;
            output::tell(&format!("storm-token: {event}"));
        }
    }

    /// Waits until nobody can say anything more. Whoever could has to have been dropped.
    pub(crate) fn hear_out(&self) {
        if let Some(gone) = self.0.take() {
            let _: Result<(), _> = gone.recv_timeout(LONGEST);
        }
    }
}
