//! Joins the end of one window and the start of the next, and encodes the result.

use super::Desk;
use crate::error::TaskError;
use longtake_common::media::{ChunkWriter, read_pack};
use longtake_common::task::{TaskOutput, Work};
use longtake_common::{Frame, Hash};
use longtake_stitch::{JoinParams, Method, join};

/// Output `chunk`.
pub fn run(
    work: &Work,
    pool: &rayon::ThreadPool,
    desk: &mut Desk<'_>,
) -> Result<TaskOutput, TaskError> {
    let Work::Seam {
        left,
        right,
        lead_frames,
        overlap_frames,
        relax_frames,
        picture,
    } = work
    else {
        return Err(TaskError::Fatal("this is no seam".to_owned()));
    };
    let (mut lead, right) = (pack(*left, desk)?, pack(*right, desk)?);
    desk.check()?;
    let lead_frames = *lead_frames as usize;
    if lead.len() < lead_frames {
        return Err(TaskError::Fatal(format!(
            "the left window gave {} frames, too few for a lead of {lead_frames}",
            lead.len()
        )));
    }
    let left = lead.split_off(lead_frames);
    let params = JoinParams {
        overlap_frames: *overlap_frames as usize,
        relax_frames: *relax_frames as usize,
        method: Method::Flow,
    };
    let joined = desk.clock.time("seam", || {
        pool.install(|| join(&lead, &left, &right, &params))
    });
    let joined = joined.map_err(TaskError::fatal)?;
    desk.control.set_progress(0.7);
    let mut chunk = ChunkWriter::new(picture).map_err(TaskError::fatal)?;
    for frame in &joined {
        desk.check()?;
        desk.clock
            .time("encode", || chunk.push(frame))
            .map_err(TaskError::retryable)?;
    }
    let bytes = desk
        .clock
        .time("encode", || chunk.finish())
        .map_err(TaskError::retryable)?;
    let mut output = TaskOutput::default();
    output
        .artifacts
        .insert("chunk".to_owned(), desk.artifacts.put(bytes)?);
    Ok(output)
}

fn pack(hash: Hash, desk: &Desk<'_>) -> Result<Vec<Frame>, TaskError> {
    let bytes = desk.artifacts.get(hash)?;
    let frames = read_pack(&bytes).map_err(TaskError::retryable)?;
    frames
        .collect::<Result<_, _>>()
        .map_err(TaskError::retryable)
}
