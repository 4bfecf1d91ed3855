//! Puts the chunks into one file, and scores the seams in what came out of it.

use super::Desk;
use crate::error::TaskError;
use longtake_common::Frame;
use longtake_common::Hash;
use longtake_common::media::{MediaError, Muxer, open_video, read_pack};
use longtake_common::spec::Codec;
use longtake_common::task::{FilmMetadata, Picture, SeamScore, TaskOutput, Work};
use longtake_stitch::{Method, SeamScorer};
use std::path::Path;

/// Share of the work that is done once the file is written.
const MUXED: f64 = 0.3;

/// Output `video` for a film in one file, none for a sequence of pictures, whose chunks are what
/// the user gets; and the scores of the seams.
pub fn run(
    work: &Work,
    pool: &rayon::ThreadPool,
    scratch: &Path,
    desk: &mut Desk<'_>,
) -> Result<TaskOutput, TaskError> {
    let Work::Mux {
        chunks,
        picture,
        metadata,
        seams,
        cuts,
    } = work
    else {
        return Err(TaskError::Fatal(
            "this is no film to put together".to_owned(),
        ));
    };
    let scorer = SeamScorer::new(picture.fps, seams, Method::Flow)
        .map_err(TaskError::fatal)?
        .with_cuts(cuts);
    let mut score = Score { scorer, pool };
    let mut output = TaskOutput::default();
    match picture.codec {
        Codec::H264 => {
            let folder = tempfile::tempdir_in(scratch).map_err(TaskError::retryable)?;
            let film = folder.path().join("film.mp4");
            mux(chunks, picture, metadata, &film, desk)?;
            output
                .artifacts
                .insert("video".to_owned(), desk.artifacts.put_file(&film)?);
            desk.control.set_progress(MUXED);
            score_film(&film, &mut score, desk)?;
        }
        Codec::Png => score_packs(chunks, &mut score, desk)?,
    }
    output.seams = score.finish()?;
    Ok(output)
}

fn mux(
    chunks: &[Hash],
    picture: &Picture,
    metadata: &FilmMetadata,
    film: &Path,
    desk: &mut Desk<'_>,
) -> Result<(), TaskError> {
    let mut muxer = Muxer::new(film, picture, Some(metadata)).map_err(TaskError::retryable)?;
    for (index, hash) in chunks.iter().enumerate() {
        desk.check()?;
        let bytes = desk.artifacts.get(*hash)?;
        desk.clock
            .time("mux", || muxer.push(&bytes))
            .map_err(TaskError::retryable)?;
        desk.control
            .set_progress(MUXED * (index + 1) as f64 / chunks.len() as f64);
    }
    desk.clock
        .time("mux", || muxer.finish())
        .map_err(TaskError::retryable)?;
    Ok(())
}

/// Feeds frames to the scorer on a pool of the worker's own size.
struct Score<'a> {
    scorer: SeamScorer,
    pool: &'a rayon::ThreadPool,
}

impl Score<'_> {
    fn push(&mut self, frame: Result<Frame, MediaError>) -> Result<(), TaskError> {
        let frame = frame.map_err(TaskError::retryable)?;
        self.pool
            .install(|| self.scorer.push(&frame))
            .map_err(TaskError::fatal)
    }

    fn finish(self) -> Result<Vec<SeamScore>, TaskError> {
        let Self { scorer, pool } = self;
        pool.install(|| scorer.finish()).map_err(TaskError::fatal)
    }
}

/// The seams are judged as a viewer gets them: decoded from the finished file, one frame at a time.
fn score_film(film: &Path, score: &mut Score<'_>, desk: &mut Desk<'_>) -> Result<(), TaskError> {
    let reader = open_video(film).map_err(TaskError::retryable)?;
    let total = reader.info().frame_count.max(1) as f64;
    for (index, frame) in reader.enumerate() {
        desk.check()?;
        desk.clock.time("score", || score.push(frame))?;
        desk.control
            .set_progress(MUXED + (1.0 - MUXED) * (index + 1) as f64 / total);
    }
    Ok(())
}

fn score_packs(
    chunks: &[Hash],
    score: &mut Score<'_>,
    desk: &mut Desk<'_>,
) -> Result<(), TaskError> {
    for (index, hash) in chunks.iter().enumerate() {
        let bytes = desk.artifacts.get(*hash)?;
        for frame in read_pack(&bytes).map_err(TaskError::retryable)? {
            desk.check()?;
            desk.clock.time("score", || score.push(frame))?;
        }
        desk.control
            .set_progress((index + 1) as f64 / chunks.len() as f64);
    }
    Ok(())
}
