//! What the driver's threads share, in one place: a model checker puts its own in their stead, to try the interleavings of the
//! very file that runs.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
pub(crate) use std::thread;
