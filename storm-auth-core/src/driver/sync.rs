//! What the [`Cell`](super::Cell) shares between threads, in one place: a model checker puts its own in their stead, to try every
//! interleaving of the very file that runs.

pub(super) use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) use arc_swap::ArcSwapOption;
