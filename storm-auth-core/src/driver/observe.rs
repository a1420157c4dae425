//! What drivers tell to `tracing` and to `metrics`, written once: both are the process's own, so it is the driver's crate that speaks to
//! them, and this one has neither below it.

/// The module `observe` of an adapter, for a crate with the features `tracing` and `metrics` and the crates of these names: `observe` for
/// an event, `Observer`, `Span` and `Meter`; each does nothing where its feature is off. `$adapter` begins the names of limiter groups that
/// nobody has named.
#[doc(hidden)]
#[macro_export]
macro_rules! observe {
    ($adapter:literal) => {
        #[cfg(any(feature = "metrics", feature = "tracing"))]
        use std::panic::{self, AssertUnwindSafe};
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU64, Ordering};

        use http::StatusCode;
        use $crate::Event;
        use $crate::driver::{Board, Landing, Measurement};
        use $crate::machine::TokenRequest;

        /// The name of the next limiter group that nobody has named. It tells the adapters apart, since a process may have both.
        pub(crate) fn next_group() -> String {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            format!(concat!($adapter, "-{}"), NEXT.fetch_add(1, Ordering::Relaxed))
        }

        /// Runs what is foreign: a panic in it is its own. The panic hook has told it, and nothing here depends on it.
        #[cfg(any(feature = "metrics", feature = "tracing"))]
        fn contained<T>(act: impl FnOnce() -> T) -> Option<T> {
            panic::catch_unwind(AssertUnwindSafe(act)).ok()
        }

        #[cfg(feature = "tracing")]
        pub(crate) fn observe(event: &Event, group: &str) {
            use $crate::machine::Severity;

            match event.severity() {
                Severity::Debug => $crate::tell_event!(debug, event, group),
                Severity::Info => $crate::tell_event!(info, event, group),
                Severity::Warn => $crate::tell_event!(warn, event, group),
                Severity::Error => $crate::tell_event!(error, event, group),
            }
        }

        #[cfg(not(feature = "tracing"))]
        pub(crate) fn observe(_event: &Event, _group: &str) {}

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
        pub(crate) struct Span(#[cfg(feature = "tracing")] Arc<Told>);

        #[cfg(feature = "tracing")]
        struct Told(tracing::Span);

        #[cfg(feature = "tracing")]
        impl Drop for Told {
            /// The subscriber is told of it, on a thread that may be panicking.
            fn drop(&mut self) {
                let span = std::mem::replace(&mut self.0, tracing::Span::none());
                contained(|| drop(span));
            }
        }

        impl Span {
            #[cfg_attr(not(feature = "tracing"), allow(unused_variables, reason = "there is no span"))]
            pub(crate) fn of(send: &TokenRequest, group: &str) -> Self {
                #[cfg(feature = "tracing")]
                {
                    let begin = || {
                        let span = Told(tracing::info_span!(
                            target: "storm_auth",
                            parent: None,
                            "storm_auth.token_request",
                            group = group,
                            key = send.key.index(),
                            op = send.op.index(),
                            reason = send.reason.name(),
                            outcome = tracing::field::Empty,
                            status = tracing::field::Empty,
                        ));
                        span.0.follows_from(tracing::Span::current());
                        span
                    };
                    Self(Arc::new(contained(begin).unwrap_or_else(|| Told(tracing::Span::none()))))
                }
                #[cfg(not(feature = "tracing"))]
                Self()
            }

            pub(crate) fn enter<T>(&self, act: impl FnOnce() -> T) -> T {
                #[cfg(feature = "tracing")]
                {
                    let entered = contained(|| self.0.0.enter());
                    let result = panic::catch_unwind(AssertUnwindSafe(act));
                    contained(|| drop(entered));
                    result.unwrap_or_else(|panic| panic::resume_unwind(panic))
                }
                #[cfg(not(feature = "tracing"))]
                act()
            }

            #[cfg_attr(not(feature = "tracing"), allow(unused_variables, reason = "there is no span"))]
            pub(crate) fn land(&self, landing: Landing, status: Option<StatusCode>) {
                #[cfg(feature = "tracing")]
                {
                    contained(|| {
                        self.0.0.record("outcome", landing.name());
                        if let Some(status) = status {
                            self.0.0.record("status", status.as_u16());
                        }
                    });
                }
            }
        }

        /// What is measured of a limiter group, and handed to `metrics`.
        #[derive(Debug)]
        pub(crate) struct Meter {
            #[cfg(feature = "metrics")]
            served: $crate::driver::Served,
            #[cfg(feature = "metrics")]
            group: Arc<str>,
        }

        #[cfg(feature = "metrics")]
        impl Meter {
            pub(crate) fn new(group: Arc<str>) -> Self {
                Self { served: $crate::driver::Served::default(), group }
            }

            /// A board that is measured, and what its measurements are called.
            pub(crate) fn measure<W>(board: Board<W>) -> Board<W> {
                use $crate::driver::{Metric, MetricKind, MetricUnit};

                let describe = |recorder: &dyn metrics::Recorder| {
                    for Metric { name, kind, unit, description, .. } in Metric::ALL.iter().copied() {
                        let unit = match unit {
                            MetricUnit::Seconds => metrics::Unit::Seconds,
                            _ => metrics::Unit::Count,
                        };
                        match kind {
                            MetricKind::Counter => recorder.describe_counter(name.into(), Some(unit), description.into()),
                            MetricKind::Gauge => recorder.describe_gauge(name.into(), Some(unit), description.into()),
                            MetricKind::Histogram => recorder.describe_histogram(name.into(), Some(unit), description.into()),
                        }
                    }
                };
                contained(|| metrics::with_recorder(describe));
                board.measured()
            }

            /// A call was served from the cell.
            #[inline]
            pub(crate) fn served(&self, lane: usize) {
                let count = self.served.count(lane);
                if count > 0 {
                    self.emit(&Measurement::cached_calls(count));
                }
            }

            /// How many calls were served from the cells.
            pub(crate) fn total(&self) -> u64 {
                self.served.total()
            }

            /// Tells how many calls were served that nobody has told yet.
            pub(crate) fn tell_served(&self) {
                let served = self.served.take();
                if served > 0 {
                    self.emit(&Measurement::cached_calls(served));
                }
            }

            /// Hands measurements on, and what was served meanwhile.
            pub(crate) fn tell(&self, measurements: &[Measurement]) {
                if !measurements.is_empty() {
                    self.tell_served();
                    measurements.iter().for_each(|measurement| self.emit(measurement));
                }
            }

            #[cold]
            fn emit(&self, measurement: &Measurement) {
                use metrics::Label;
                use $crate::driver::{Metric, Reading};

                static METADATA: metrics::Metadata<'_> =
                    metrics::Metadata::new("storm_auth", metrics::Level::INFO, Some(module_path!()));

                let metric = &measurement.metric;
                let own = metric.label.zip(measurement.label.clone()).map(|(name, value)| Label::new(name, value));
                let group = Label::new(Metric::GROUP, self.group.clone());
                let key = metrics::Key::from_parts(metric.name, [group].into_iter().chain(own).collect::<Vec<_>>());
                contained(|| {
                    metrics::with_recorder(|recorder| match measurement.value {
                        Reading::Add(count) => recorder.register_counter(&key, &METADATA).increment(count),
                        Reading::Set(value) => recorder.register_gauge(&key, &METADATA).set(value),
                        Reading::Record(value) => recorder.register_histogram(&key, &METADATA).record(value),
                    });
                });
            }
        }

        #[cfg(not(feature = "metrics"))]
        impl Meter {
            pub(crate) fn new(_group: Arc<str>) -> Self {
                Self {}
            }

            pub(crate) fn measure<W>(board: Board<W>) -> Board<W> {
                board
            }

            #[inline]
            pub(crate) fn served(&self, _lane: usize) {}

            pub(crate) fn tell_served(&self) {}

            pub(crate) fn tell(&self, _measurements: &[Measurement]) {}
        }
    };
}

/// One event at one level, since the level of an event of `tracing` is a constant.
#[doc(hidden)]
#[macro_export]
macro_rules! tell_event {
    ($level:ident, $event:expr, $group:expr) => {{
        let (event, facts) = ($event, $event.facts());
        tracing::$level!(
            target: "storm_auth",
            group = $group,
            event = event.name(),
            key = facts.key.map($crate::KeyId::index),
            op = facts.op.map($crate::machine::OpId::index),
            reason = facts.reason,
            cause = facts.cause,
            expires_at = facts.expires_at.map(tracing::field::display),
            refresh_at = facts.refresh_at.map(tracing::field::display),
            retry_at = facts.retry_at.map(tracing::field::display),
            "{event}"
        )
    }};
}
