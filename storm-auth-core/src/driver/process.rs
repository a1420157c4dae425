//! What a forked child must not share with its parent.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Something that each process has to have for itself, like a pool of connections: a child that went on with its parent's
/// would read the parent's answers.
///
/// ```
/// use storm_auth_core::driver::PerProcess;
///
/// let pool = PerProcess::new("of the parent", 17);
/// assert_eq!(pool.get(17, |_| unreachable!()), "of the parent");
/// assert_eq!(pool.own(18), None);
/// assert_eq!(pool.latest(), "of the parent");
/// assert_eq!(pool.get(18, |_| "of the child"), "of the child");
/// assert_eq!(pool.get(18, |_| unreachable!()), "of the child");
/// ```
pub struct PerProcess<T>(Mutex<(u32, T)>);

impl<T: Clone> PerProcess<T> {
    /// What `process` has made.
    pub fn new(value: T, process: u32) -> Self {
        Self(Mutex::new((process, value)))
    }

    /// What `process` has; a child makes its own of its parent's the first time. The parent's is then left as it is and never
    /// dropped here: its threads are gone, with what they had locked and what lay on their stacks.
    pub fn get(&self, process: u32, make: impl FnOnce(&T) -> T) -> T {
        // Both parts are set together, so a panic of `make` leaves what was there.
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.0 != process {
            let own = make(&made.1);
            core::mem::forget(core::mem::replace(&mut *made, (process, own)));
        }
        made.1.clone()
    }

    /// What was made last, by whichever process: to copy settings from, not to use.
    pub fn latest(&self) -> T {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// What `process` has, if it has its own already.
    pub fn own(&self, process: u32) -> Option<T> {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (made.0 == process).then(|| made.1.clone())
    }
}

impl<T> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerProcess").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r54_each_process_makes_its_own_once() {
        let pool = PerProcess::new("of the parent", 17);
        assert_eq!((pool.get(17, |_| "made again"), pool.own(17)), ("of the parent", Some("of the parent")));
        assert_eq!((pool.own(18), pool.latest()), (None, "of the parent"));
        assert_eq!(pool.get(18, |_| "of the child"), "of the child");
        assert_eq!(pool.latest(), "of the child");
        assert_eq!((pool.get(18, |_| "made again"), pool.own(18)), ("of the child", Some("of the child")));
        assert_eq!(format!("{pool:?}"), "PerProcess { .. }");
    }
}
