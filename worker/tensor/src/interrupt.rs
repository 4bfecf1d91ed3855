//! Stopping what takes long from outside.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Watches a flag for a backend. Clones watch the same one; none is raised at first.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<RwLock<Arc<AtomicBool>>>);

impl Interrupt {
    /// Watches `stop` from now on, and no other flag.
    pub fn watch(&self, stop: &Arc<AtomicBool>) {
        // Nothing can be half done in there, so a panic elsewhere changes nothing.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = stop.clone();
    }

    /// Fails with [`Error::Interrupted`] once the flag is raised.
    pub fn check(&self) -> Result<()> {
        let stop = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if stop.load(Ordering::Relaxed) {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flag_that_is_watched_counts() {
        let interrupt = Interrupt::default();
        let (first, second) = (Arc::default(), Arc::default());
        interrupt.check().expect("nobody interrupts");
        interrupt.watch(&first);
        first.store(true, Ordering::Relaxed);
        let clone = interrupt.clone();
        assert!(matches!(clone.check(), Err(Error::Interrupted)));
        clone.watch(&second);
        interrupt.check().expect("the first is over");
    }
}
