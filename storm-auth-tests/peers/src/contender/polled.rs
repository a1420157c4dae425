//! Calling async contenders from plain threads.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Builder, EnterGuard, Runtime};
use tokio::time::timeout;

use super::Error;

/// A call that waits longer is given up, as an error: a contender that hangs does not stop the run.
const PATIENCE: Duration = Duration::from_secs(15);

/// A runtime of the contender's own: what it has left running ends with it.
pub struct Polled(Runtime);

impl Polled {
    pub fn new() -> Result<Self, Error> {
        Ok(Self(Builder::new_multi_thread().worker_threads(1).enable_all().build()?))
    }

    /// The output of a future that has to be waited for.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(future)
    }

    pub fn enter(&self) -> EnterGuard<'_> {
        self.0.enter()
    }

    /// What the future comes to: at the first poll, where it is ready then, so that no runtime is measured with a cached token. The
    /// calling thread has [entered](Self::enter) the runtime.
    ///
    /// # Errors
    /// Its own, or that it took longer than [`PATIENCE`].
    #[inline(always)]
    pub fn ready<T, E: Into<Error>>(&self, future: impl Future<Output = Result<T, E>>) -> Result<T, Error> {
        let mut future = pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(value)) => Ok(value),
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Pending => {
                self.0.block_on(async { timeout(PATIENCE, future).await.map_err(Error::from)?.map_err(Into::into) })
            }
        }
    }
}
