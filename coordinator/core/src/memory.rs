//! What a job needs of a worker's memory, whatever it renders on.

use crate::models::shown_bytes;
use crate::plan::Plan;
use crate::state::{Core, Job};
use crate::workers::Worker;
use longtake_common::spec::JobSpec;

/// Bytes of a decoded pixel: three colours in f32. A worker has all frames of a window in memory at
/// once in this form, so no worker with less can ever decode it. What else it needs depends on the
/// model and the device, and is left to the worker.
const PIXEL_BYTES: u64 = 3 * 4;

/// The memory without which no worker can render the job, in bytes.
pub(crate) fn least_bytes(spec: &JobSpec, plan: &Plan) -> u64 {
    let [height, width] = spec.sampling.last_size(spec.padded()).map(u64::from);
    let frames = plan.windows.iter().map(|window| window.frames).max();
    u64::from(frames.unwrap_or(0)) * height * width * PIXEL_BYTES
}

impl Worker {
    /// Whether its machine has the memory that a job needs at least; one that does not say has.
    pub(crate) fn has_memory(&self, job: &Job) -> bool {
        self.info.memory_bytes == 0 || self.info.memory_bytes >= job.least_bytes
    }
}

impl Core {
    /// Why a job is not taken whose windows do not fit into the memory of any connected worker that
    /// renders on its level. Where there is none, a large one may yet come.
    pub(crate) fn refuse_memory(&self, isa: Option<&str>, job: &Job) -> Option<String> {
        let workers = self.workers.values().map(|worker| &worker.info);
        let meant = workers.filter(|info| isa.is_none_or(|isa| info.isa == isa));
        // One that does not say how much it has may have any.
        let memory = |bytes: u64| if bytes == 0 { u64::MAX } else { bytes };
        let largest = meant.max_by_key(|info| memory(info.memory_bytes))?;
        (memory(largest.memory_bytes) < job.least_bytes).then(|| {
            format!(
                "{}, and the largest worker, {}, has {}: {WAY_OUT}",
                needs(job),
                largest.name,
                shown_bytes(largest.memory_bytes)
            )
        })
    }

    /// The same of a job that waits.
    pub(crate) fn memory_sentence(job: &Job, largest: &Worker) -> String {
        format!(
            "can begin, but {}, and {} has {}: start one with more",
            needs(job),
            largest.info.name,
            shown_bytes(largest.info.memory_bytes)
        )
    }
}

const WAY_OUT: &str =
    "use a smaller --size or fewer --segment-frames, or start a worker with more memory first";

fn needs(job: &Job) -> String {
    let spec = &job.record.spec;
    let frames = job.plan.windows.iter().map(|window| window.frames).max();
    format!(
        "a window of {} frames at {}x{} alone takes {} of memory",
        frames.unwrap_or(0),
        spec.width,
        spec.height,
        shown_bytes(job.least_bytes)
    )
}
