//! Response bodies that behave badly.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;

use super::clock::Clock;

/// A response's body: some bytes, and how they come.
#[derive(Debug)]
pub(super) struct Body {
    rest: Bytes,
    course: Course,
}

enum Course {
    /// At once; chunked when the length is not told.
    Whole { length: bool },
    /// Half of it, and then nothing; whoever waits for the notification resets the connection.
    Half { then: Option<Arc<Notify>>, sent: bool, length: u64 },
    /// A byte at a time.
    Drip { every: Duration, clock: Clock, wait: Option<Pin<Box<dyn Future<Output = ()> + Send>>>, length: u64 },
    /// Without end: the bytes, and then their last part over and over.
    Endless { filler: Bytes },
}

impl Body {
    pub(super) fn whole(bytes: Bytes, chunked: bool) -> Self {
        Self { rest: bytes, course: Course::Whole { length: !chunked } }
    }

    /// Half of `bytes`; then the connection stands still, or is reset by whoever listens to `reset`.
    pub(super) fn half(mut bytes: Bytes, reset: Option<Arc<Notify>>) -> Self {
        let length = bytes.len() as u64;
        bytes.truncate(bytes.len() / 2);
        Self { rest: bytes, course: Course::Half { then: reset, sent: false, length } }
    }

    pub(super) fn drip(bytes: Bytes, every: Duration, clock: Clock) -> Self {
        let length = bytes.len() as u64;
        Self { rest: bytes, course: Course::Drip { every, clock, wait: None, length } }
    }

    pub(super) fn endless(start: &'static [u8]) -> Self {
        let filler = Bytes::from(vec![b'A'; 16 * 1_024]);
        Self { rest: Bytes::from_static(start), course: Course::Endless { filler } }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Self { rest, course } = self.get_mut();
        let data = match course {
            Course::Whole { .. } => std::mem::take(rest),
            Course::Half { then, sent, .. } => {
                if *sent || rest.is_empty() {
                    then.as_ref().inspect(|reset| reset.notify_one());
                    return Poll::Pending;
                }
                *sent = true;
                std::mem::take(rest)
            }
            Course::Drip { every, clock, wait, .. } => {
                if let Some(waiting) = wait {
                    std::task::ready!(waiting.as_mut().poll(cx));
                }
                let (clock, every) = (clock.clone(), *every);
                *wait = Some(Box::pin(async move {
                    let mut due_ms = clock.now_ms();
                    clock.wait(&mut due_ms, every).await;
                }));
                rest.split_to(rest.len().min(1))
            }
            Course::Endless { filler } if rest.is_empty() => filler.clone(),
            Course::Endless { .. } => std::mem::take(rest),
        };
        Poll::Ready((!data.is_empty()).then(|| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.course, Course::Whole { .. }) && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.course {
            Course::Whole { length: true } => SizeHint::with_exact(self.rest.len() as u64),
            // An empty body that never ends can only be a chunked one.
            Course::Half { length, .. } if *length > 0 => SizeHint::with_exact(*length),
            Course::Drip { length, .. } => SizeHint::with_exact(*length),
            Course::Whole { .. } | Course::Half { .. } | Course::Endless { .. } => SizeHint::default(),
        }
    }
}

impl fmt::Debug for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole { .. } => "Whole",
            Self::Half { .. } => "Half",
            Self::Drip { .. } => "Drip",
            Self::Endless { .. } => "Endless",
        })
    }
}
