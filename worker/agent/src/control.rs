//! The string by which a running task is held: a flag that stops it and a figure that it reports.

use longtake_common::Hash;
use longtake_common::telemetry::TaskLog;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// Steps into which a task's progress is divided.
const PROGRESS_SCALE: f64 = 10_000.0;

/// Shared between the connection, which cancels and asks, and the task, which obeys and tells.
#[derive(Clone, Debug, Default)]
pub struct Control {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    cancelled: Arc<AtomicBool>,
    leaving: AtomicBool,
    progress: AtomicU32,
    log: TaskLog,
    stored_log: OnceLock<Hash>,
}

impl Control {
    /// Asks the task to stop at its next check.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the task has been asked to stop. Cheap: checked every denoising step.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Relaxed)
    }

    /// Asks the task to stop where another worker can go on, for this one has to leave.
    pub fn leave(&self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether the worker has to leave.
    pub fn is_leaving(&self) -> bool {
        self.shared.leaving.load(Ordering::Relaxed)
    }

    /// The flag that is raised when the task has been asked to stop.
    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.shared.cancelled
    }

    /// What is said while the task runs.
    pub fn log(&self) -> &TaskLog {
        &self.shared.log
    }

    /// Notes where the log is stored.
    pub fn set_stored_log(&self, log: Hash) {
        // There is one log of a try, so a second name for it would be the same.
        let _ = self.shared.stored_log.set(log);
    }

    /// Where the log is stored, once it is.
    pub fn stored_log(&self) -> Option<Hash> {
        self.shared.stored_log.get().copied()
    }

    /// Notes that `fraction` (0..1) of the work is done.
    pub fn set_progress(&self, fraction: f64) {
        let scaled = (fraction.clamp(0.0, 1.0) * PROGRESS_SCALE) as u32;
        self.shared.progress.store(scaled, Ordering::Relaxed);
    }

    /// The fraction last noted.
    pub fn progress(&self) -> f64 {
        f64::from(self.shared.progress.load(Ordering::Relaxed)) / PROGRESS_SCALE
    }
}
