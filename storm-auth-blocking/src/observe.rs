//! Events of the machine as `tracing` events, target `storm_auth`.

use storm_auth_core::Event;

#[cfg(feature = "tracing")]
pub(crate) fn observe(event: &Event) {
    use storm_auth_core::machine::Severity;

    match event.severity() {
        Severity::Debug => tracing::debug!(target: "storm_auth", "{event}"),
        Severity::Info => tracing::info!(target: "storm_auth", "{event}"),
        Severity::Warn => tracing::warn!(target: "storm_auth", "{event}"),
        Severity::Error => tracing::error!(target: "storm_auth", "{event}"),
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn observe(_event: &Event) {}

/// The subscriber of the thread that starts a flight, so that the flight's events reach it too.
pub(crate) struct Observer(#[cfg(feature = "tracing")] tracing::Dispatch);

impl Observer {
    pub(crate) fn current() -> Self {
        Self(
            #[cfg(feature = "tracing")]
            tracing::dispatcher::get_default(tracing::Dispatch::clone),
        )
    }

    pub(crate) fn carry<T>(self, act: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        return tracing::dispatcher::with_default(&self.0, act);
        #[cfg(not(feature = "tracing"))]
        act()
    }
}
