//! The string by which a running task is held: a flag that stops it, a figure that it reports, and, while
//! its gang forms, what it and the coordinator have to say to each other.

use longtake_common::FencingToken;
use longtake_common::Hash;
use longtake_common::telemetry::TaskLog;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// Steps into which a task's progress is divided.
const PROGRESS_SCALE: f64 = 10_000.0;

/// How often a task that waits for the coordinator looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// What a task says to the coordinator while its gang forms.
#[derive(Clone, Debug, PartialEq)]
pub enum GangWord {
    /// Our ranks have loaded, and are reached there; rank 0's worker adds what links the ranks.
    Seated {
        /// In the order of our ranks.
        seats: Vec<SocketAddr>,
        /// Empty but of rank 0's worker.
        key: Vec<u8>,
    },
    /// Our ranks have joined the others.
    Joined,
}

/// What the coordinator says to a task while its gang forms.
#[derive(Clone, Debug, PartialEq)]
pub enum GangOrder {
    /// Join the ranks there.
    Roster {
        /// By rank.
        seats: Vec<SocketAddr>,
        /// From rank 0's worker.
        key: Vec<u8>,
    },
    /// All have joined.
    Go,
    /// The connection has broken: nothing that was said before holds.
    Broken,
}

/// Words under way to the coordinator, each with the gang that it is about.
pub type GangWords = UnboundedSender<(FencingToken, GangWord)>;

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
    kept: OnceLock<Hash>,
    words: OnceLock<(FencingToken, GangWords)>,
    orders: Mutex<VecDeque<GangOrder>>,
    ordered: Condvar,
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

    /// Lets the task speak to the coordinator, of the gang `gang`.
    pub fn connect(&self, gang: FencingToken, words: GangWords) {
        // A task has one gang.
        let _ = self.shared.words.set((gang, words));
    }

    /// Says something to the coordinator. It is lost when there is no connection, and so is the gang.
    pub fn say(&self, word: GangWord) {
        if let Some((gang, words)) = self.shared.words.get() {
            let _ = words.send((*gang, word));
        }
    }

    /// Passes on what the coordinator says.
    pub fn order(&self, order: GangOrder) {
        let orders = self.shared.orders.lock();
        orders
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(order);
        self.shared.ordered.notify_all();
    }

    /// What the coordinator says next; waits for it. `None` when the task is taken back.
    pub fn next_order(&self) -> Option<GangOrder> {
        let mut orders = self
            .shared
            .orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.is_cancelled() {
                return None;
            }
            if let Some(order) = orders.pop_front() {
                return Some(order);
            }
            let waited = self.shared.ordered.wait_timeout(orders, LOOK);
            orders = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes that all steps are done and where their result is stored, though the task is not.
    pub fn keep(&self, stored: Hash) {
        // A task samples one window once.
        let _ = self.shared.kept.set(stored);
    }

    /// What another worker can go on with, if this one has to leave now.
    pub fn kept(&self) -> Option<Hash> {
        self.shared.kept.get().copied()
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
