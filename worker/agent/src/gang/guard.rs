//! Has a gang let go of its work when that is taken back.

use crate::control::Control;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);

/// Watches one task while it is held. A rank that waits for another does not look at its task's flag:
/// the exchange itself has to be ended.
pub struct Guard {
    ended: Arc<AtomicBool>,
    watch: Option<JoinHandle<()>>,
}

impl Guard {
    /// Calls `abort` with the reason once the task of `control` is taken back.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn watch(
        control: &Control,
        abort: impl Fn(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (control, ended) = (control.clone(), Arc::<AtomicBool>::default());
        let is_over = ended.clone();
        let body = move || {
            while !is_over.load(Ordering::Relaxed) {
                if control.is_cancelled() {
                    return abort("its task was taken back");
                }
                std::thread::park_timeout(LOOK);
            }
        };
        let watch = std::thread::Builder::new()
            .name("gang-guard".to_owned())
            .spawn(body)?;
        Ok(Self {
            ended,
            watch: Some(watch),
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            // What it called is the gang's, which reports its own failures.
            let _ = watch.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn only_a_task_that_is_taken_back_ends_its_gang() {
        let (sender, aborted) = mpsc::channel();
        let watched = |control: &Control| {
            let sender = sender.clone();
            Guard::watch(control, move |reason| {
                sender.send(reason.to_owned()).expect("somebody listens");
            })
            .expect("a thread")
        };
        let control = Control::default();
        drop(watched(&control));
        assert!(aborted.try_recv().is_err());
        let guard = watched(&control);
        control.cancel();
        let reason = aborted.recv().expect("a reason");
        assert_eq!(reason, "its task was taken back");
        drop(guard);
    }
}
