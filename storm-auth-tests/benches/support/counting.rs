//! An allocator that counts.

#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

/// The system's allocator, which counts allocations for each thread, and bytes for all while it is told to.
pub(crate) struct Counting;

thread_local!(static ALLOCATIONS: Cell<u64> = const { Cell::new(0) });

/// Counting bytes takes time from whoever is timed.
static COUNTS_BYTES: AtomicBool = AtomicBool::new(false);

static BYTES: AtomicIsize = AtomicIsize::new(0);

/// The allocations of the calling thread so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// Makes something, and tells how many bytes it holds.
pub(crate) fn weighed<T>(make: impl FnOnce() -> T) -> (T, isize) {
    COUNTS_BYTES.store(true, Ordering::SeqCst);
    let before = BYTES.load(Ordering::SeqCst);
    let made = make();
    let weight = BYTES.load(Ordering::SeqCst) - before;
    COUNTS_BYTES.store(false, Ordering::SeqCst);
    (made, weight)
}

fn count_bytes(change: isize) {
    if COUNTS_BYTES.load(Ordering::Relaxed) {
        BYTES.fetch_add(change, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came; the counters are plain numbers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|allocations| allocations.set(allocations.get() + 1));
        count_bytes(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count_bytes(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}
