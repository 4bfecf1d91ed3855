//! `download`: a film that a farm has made, or one segment of it while the rest is being made.

use super::jobs::{JobRef, StatusJson};
use crate::client::state_name;
use crate::output::Target;
use crate::render::deliver;
use crate::terminal;
use anyhow::{Result, anyhow, bail};
use longtake_proto::v1;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Flags of `download`.
#[derive(clap::Args)]
pub struct DownloadArgs {
    #[command(flatten)]
    of: JobRef,
    /// Only this segment, numbered from 0: as much of it as is encoded, also while the job runs
    #[arg(long, value_name = "N")]
    segment: Option<u32>,
    /// Where to: FILE.mp4, or DIR/%06d.png for a job that is stored as pictures
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

/// What was fetched, as the JSON has it.
#[derive(Serialize)]
struct DownloadJson<'a> {
    #[serde(flatten)]
    status: StatusJson<'a>,
    output: &'a Path,
    /// First frame in the film.
    first_frame: u32,
    frames: u32,
}

/// Fetches.
pub async fn run(args: DownloadArgs) -> Result<()> {
    let target = Target::parse(&args.output)?;
    target.check()?;
    let mut client = args.of.farm.connect().await?;
    let job = client.get(&args.of.job).await?;
    let (first_frame, frames) = match args.segment {
        Some(index) => {
            let segment = stored_segment(&job, index)?;
            deliver::fetch_segment(&mut client, &job, segment, &target).await?;
            let chunks = segment.chunks.iter();
            let first = segment.chunks.first().map_or(0, |chunk| chunk.first_frame);
            (first, chunks.map(|chunk| chunk.frames).sum())
        }
        None => {
            check_complete(&job)?;
            deliver::fetch(&mut client, &job, &target).await?;
            (0, job.spec.as_ref().map_or(0, |spec| spec.frames))
        }
    };
    if args.of.json {
        let json = DownloadJson {
            status: StatusJson::from(&job),
            output: target.given(),
            first_frame,
            frames,
        };
        return terminal::print(serde_json::to_string(&json)?);
    }
    let last = (first_frame + frames).saturating_sub(1);
    terminal::remark(format_args!(
        "{}: frames {first_frame} to {last}",
        target.given().display()
    ));
    Ok(())
}

fn check_complete(job: &v1::Job) -> Result<()> {
    let id = &job.job;
    match job.state() {
        v1::JobState::Done => Ok(()),
        v1::JobState::Failed => bail!(
            "job {id} failed: {}; 'longtake retry {id}' goes on",
            job.error
        ),
        v1::JobState::Cancelled => bail!(
            "job {id} was cancelled before its film was complete; 'longtake retry {id}' goes on"
        ),
        state => bail!(
            "the film of job {id} is not complete: it is {}, {} of {} segments are done; wait with \
             'longtake watch {id}', or fetch a segment that is done with --segment N",
            state_name(state),
            job.segments_done,
            job.segments_total
        ),
    }
}

fn stored_segment(job: &v1::Job, index: u32) -> Result<&v1::Segment> {
    let id = &job.job;
    let segment = job.segments.get(index as usize).ok_or_else(|| {
        let count = job.segments_total;
        anyhow!("job {id} has no segment {index}: it has {count}, numbered from 0")
    })?;
    if segment.chunks.is_empty() {
        let done = job
            .segments
            .iter()
            .filter(|segment| !segment.chunks.is_empty());
        let done: Vec<_> = done.map(|segment| segment.index.to_string()).collect();
        let there = if done.is_empty() {
            "none is yet".to_owned()
        } else {
            format!("these are: {}", done.join(", "))
        };
        bail!("segment {index} of job {id} is not encoded yet; {there}");
    }
    Ok(segment)
}
