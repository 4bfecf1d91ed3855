//! Where the time of a join goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Part of the work of a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinPart {
    /// Motion between the windows, and along the right one where that fades out.
    Flow,
    /// The difference in exposure.
    Exposure,
    /// Moving and mixing pictures.
    Blend,
    /// Evening out the change from picture to picture.
    Steady,
}

impl JoinPart {
    /// All parts.
    pub const ALL: [Self; 4] = [Self::Flow, Self::Exposure, Self::Blend, Self::Steady];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Exposure => "exposure",
            Self::Blend => "blend",
            Self::Steady => "steady",
        }
    }
}

/// Time of joins by part, added up over threads. On a pool of one thread it is the wall time; on
/// larger ones a thread that waits may take up other work, whose time then counts twice. Nothing
/// that is computed depends on it.
#[derive(Debug, Default)]
pub struct JoinTimes([AtomicU64; JoinPart::ALL.len()]);

impl JoinTimes {
    /// Does some work of a part.
    pub(super) fn time<T>(&self, part: JoinPart, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0[part as usize].fetch_add(nanos, Ordering::Relaxed);
        done
    }

    /// Milliseconds of a part so far.
    pub fn ms(&self, part: JoinPart) -> f64 {
        self.0[part as usize].load(Ordering::Relaxed) as f64 / 1e6
    }
}
