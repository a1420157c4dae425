//! Calling async contenders from plain threads.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Builder, EnterGuard, Runtime};

use super::Error;

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

    /// The future's output: at the first poll, where it is ready then, so that no runtime is measured with a cached token. The
    /// calling thread has [entered](Self::enter) the runtime.
    #[inline]
    pub fn ready<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => output,
            Poll::Pending => self.0.block_on(future),
        }
    }
}
