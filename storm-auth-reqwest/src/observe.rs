//! What happens, told to `tracing` (target `storm_auth`) and to `metrics`, where these features are on.

use std::future::{Future, poll_fn};
use std::pin::pin;

storm_auth_core::observe!("reqwest");

impl Span {
    /// The future, inside of the span.
    pub(crate) fn around<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        let span = self.clone();
        async move {
            let mut future = pin!(future);
            poll_fn(|context| span.enter(|| future.as_mut().poll(context))).await
        }
    }
}
