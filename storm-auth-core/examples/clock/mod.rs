//! The clocks of a driver on std. A test moves them; nobody moves the system's.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime};

use storm_auth_core::driver::{self, SystemClocks};
use storm_auth_core::{Now, Unix};

/// Both clocks, as the machine is told them.
pub(crate) type Clock = driver::Clock<System>;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct System;

impl SystemClocks for System {
    fn fine() -> Now {
        /// One for the process, so that what two drivers read can be compared.
        static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let unix = Unix::from(SystemTime::now());
        Now::from_millis(ORIGIN.elapsed().as_millis() as u64, unix.as_millis())
    }

    fn coarse() -> Now {
        Self::fine()
    }
}
