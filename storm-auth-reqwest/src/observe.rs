//! What happens, told to `tracing` (target `storm_auth`) and to `metrics`, where these features are on.

use std::future::Future;
#[cfg(any(feature = "metrics", feature = "tracing"))]
use std::panic::{self, AssertUnwindSafe};

use http::StatusCode;
use storm_auth_core::Event;
use storm_auth_core::driver::{Board, Landing, Measurement};
use storm_auth_core::machine::TokenRequest;

#[cfg(feature = "tracing")]
pub(crate) fn observe(event: &Event) {
    use storm_auth_core::KeyId;
    use storm_auth_core::machine::{OpId, Severity};

    let facts = event.facts();
    macro_rules! tell {
        ($level:ident) => {
            tracing::$level!(
                target: "storm_auth",
                event = event.name(),
                key = facts.key.map(KeyId::index),
                op = facts.op.map(OpId::index),
                reason = facts.reason,
                cause = facts.cause,
                expires_at = facts.expires_at.map(tracing::field::display),
                refresh_at = facts.refresh_at.map(tracing::field::display),
                retry_at = facts.retry_at.map(tracing::field::display),
                "{event}"
            )
        };
    }
    match event.severity() {
        Severity::Debug => tell!(debug),
        Severity::Info => tell!(info),
        Severity::Warn => tell!(warn),
        Severity::Error => tell!(error),
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

/// The span of a token request. It is nobody's child, since it serves many callers and may outlive the one that started it; it follows
/// from that one's span. A panic in a subscriber is its own here too.
#[derive(Clone)]
pub(crate) struct Span(#[cfg(feature = "tracing")] tracing::Span);

impl Span {
    #[cfg_attr(not(feature = "tracing"), allow(unused_variables, reason = "there is no span"))]
    pub(crate) fn of(send: &TokenRequest) -> Self {
        #[cfg(feature = "tracing")]
        {
            let begin = || {
                let span = tracing::info_span!(
                    target: "storm_auth",
                    parent: None,
                    "storm_auth.token_request",
                    key = send.key.index(),
                    op = send.op.index(),
                    reason = send.reason.name(),
                    outcome = tracing::field::Empty,
                    status = tracing::field::Empty,
                );
                span.follows_from(tracing::Span::current());
                span
            };
            Self(panic::catch_unwind(AssertUnwindSafe(begin)).unwrap_or_else(|_| tracing::Span::none()))
        }
        #[cfg(not(feature = "tracing"))]
        Self()
    }

    pub(crate) fn enter<T>(&self, act: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        return self.0.in_scope(act);
        #[cfg(not(feature = "tracing"))]
        act()
    }

    /// The future, inside of the span.
    pub(crate) fn around<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        #[cfg(feature = "tracing")]
        return tracing::Instrument::instrument(future, self.0.clone());
        #[cfg(not(feature = "tracing"))]
        future
    }

    #[cfg_attr(not(feature = "tracing"), allow(unused_variables, reason = "there is no span"))]
    pub(crate) fn land(&self, landing: Landing, status: Option<StatusCode>) {
        #[cfg(feature = "tracing")]
        {
            let _ = panic::catch_unwind(AssertUnwindSafe(|| {
                self.0.record("outcome", landing.name());
                if let Some(status) = status {
                    self.0.record("status", status.as_u16());
                }
            }));
        }
    }
}

/// What is measured of a limiter group, and handed to `metrics`.
#[derive(Debug, Default)]
pub(crate) struct Meter(#[cfg(feature = "metrics")] storm_auth_core::driver::Served);

#[cfg(feature = "metrics")]
impl Meter {
    /// A board that is measured, and what its measurements are called.
    pub(crate) fn measure<W>(board: Board<W>) -> Board<W> {
        use storm_auth_core::driver::{Metric, MetricKind};

        metrics::with_recorder(|recorder| {
            for Metric { name, kind, description, .. } in Metric::ALL {
                let unit = if name.ends_with("_seconds") { metrics::Unit::Seconds } else { metrics::Unit::Count };
                match kind {
                    MetricKind::Counter => recorder.describe_counter(name.into(), Some(unit), description.into()),
                    MetricKind::Gauge => recorder.describe_gauge(name.into(), Some(unit), description.into()),
                    MetricKind::Histogram => recorder.describe_histogram(name.into(), Some(unit), description.into()),
                }
            }
        });
        board.measured()
    }

    /// A call was served from the cell.
    #[inline]
    pub(crate) fn served(&self, lane: usize) {
        let count = self.0.count(lane);
        if count > 0 {
            emit(&Measurement::cached_calls(count));
        }
    }

    /// How many calls were served from the cells.
    pub(crate) fn total(&self) -> u64 {
        self.0.total()
    }

    pub(crate) fn tell(&self, measurements: &[Measurement]) {
        let served = self.0.take();
        if served > 0 {
            emit(&Measurement::cached_calls(served));
        }
        measurements.iter().for_each(emit);
    }
}

/// Hands it on. A panic in a recorder is its own.
#[cfg(feature = "metrics")]
#[cold]
fn emit(measurement: &Measurement) {
    use storm_auth_core::driver::Reading;

    static METADATA: metrics::Metadata<'_> =
        metrics::Metadata::new("storm_auth", metrics::Level::INFO, Some(module_path!()));

    let metric = &measurement.metric;
    let labels = metric.label.zip(measurement.label.clone()).map(|(name, value)| metrics::Label::new(name, value));
    let key = metrics::Key::from_parts(metric.name, labels.into_iter().collect::<Vec<_>>());
    let _ = panic::catch_unwind(AssertUnwindSafe(|| {
        metrics::with_recorder(|recorder| match measurement.value {
            Reading::Add(count) => recorder.register_counter(&key, &METADATA).increment(count),
            Reading::Set(value) => recorder.register_gauge(&key, &METADATA).set(value),
            Reading::Record(value) => recorder.register_histogram(&key, &METADATA).record(value),
        });
    }));
}

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(crate) fn measure<W>(board: Board<W>) -> Board<W> {
        board
    }

    #[inline]
    pub(crate) fn served(&self, _lane: usize) {}

    pub(crate) fn tell(&self, _measurements: &[Measurement]) {}
}
