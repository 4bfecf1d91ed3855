//! `--preview`: the first of two passes as a film of its own, written as soon as a window of it is
//! there and again with each that follows.

use crate::client::Client;
use crate::output::{Target, check_writable, folder_of, unfinished};
use crate::terminal::remark;
use anyhow::{Context, Result, anyhow, bail};
use longtake_common::media::{self, Muxer};
use longtake_common::spec::{Codec, JobSpec};
use longtake_common::task::Picture;
use longtake_proto::v1;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Where a preview goes.
#[derive(Clone, Debug)]
pub struct PreviewTarget {
    path: PathBuf,
    picture: Picture,
}

/// How a preview came about.
#[derive(Clone, Debug, Serialize)]
pub struct PreviewReport {
    output: PathBuf,
    width: u32,
    height: u32,
    frames: u32,
    /// From the start of the command until the first window could be seen.
    seconds_first: f64,
    /// Until all of them could.
    seconds_whole: f64,
}

/// The previews of a job's windows, in order, as far as there are any without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    job: String,
    chunks: Vec<String>,
}

impl PreviewTarget {
    /// Checks that the file could be written beside `film`, and that there is something to show.
    pub fn new(path: &Path, spec: &JobSpec, film: Option<&Target>) -> Result<Self> {
        if path.extension().is_none_or(|ending| ending != "mp4") || path.is_dir() {
            bail!("{} is no name for a preview: give FILE.mp4", path.display());
        }
        if film.is_some_and(|film| film.writes(path)) {
            bail!(
                "--preview {} would be overwritten by the film or its report: give it another name",
                path.display()
            );
        }
        check_writable(folder_of(path))?;
        let (width, height) = spec.preview_size();
        media::check_size(Codec::H264, width, height)?;
        let picture = Picture {
            width,
            height,
            fps: spec.fps,
            codec: Codec::H264,
        };
        Ok(Self {
            path: path.to_owned(),
            picture,
        })
    }

    /// Writes what the states of the job that come in have; says at the end how that went.
    async fn write_all(
        self,
        mut client: Client,
        mut states: UnboundedReceiver<Seen>,
        started: Instant,
    ) -> Result<PreviewReport> {
        let mut report = None;
        let mut written = 0;
        while let Some(mut seen) = states.recv().await {
            // What was there a moment ago does not matter any more.
            while let Ok(later) = states.try_recv() {
                seen = later;
            }
            if seen.chunks.len() <= written {
                continue;
            }
            let frames = self.write(&mut client, &seen).await?;
            written = seen.chunks.len();
            let seconds = started.elapsed().as_secs_f64();
            remark(format_args!(
                "preview: {}, {frames} frames",
                self.path.display()
            ));
            let first = report
                .take()
                .map(|report: PreviewReport| report.seconds_first);
            report = Some(PreviewReport {
                output: self.path.clone(),
                width: self.picture.width,
                height: self.picture.height,
                frames,
                seconds_first: first.unwrap_or(seconds),
                seconds_whole: seconds,
            });
        }
        report.ok_or_else(|| anyhow!("there was none"))
    }

    /// Writes the file anew; returns its frames.
    async fn write(&self, client: &mut Client, seen: &Seen) -> Result<u32> {
        let partial = unfinished(&self.path)?.into_temp_path();
        let mut muxer = Muxer::new(&partial, &self.picture, None)?;
        for chunk in &seen.chunks {
            let bytes = client.fetch_bytes(&seen.job, chunk).await?;
            muxer.push(&bytes)?;
        }
        let frames = muxer.frame_count();
        muxer.finish()?;
        partial
            .persist(&self.path)
            .with_context(|| format!("write {}", self.path.display()))?;
        Ok(frames)
    }
}

/// Writes a preview beside whoever watches the job.
pub struct PreviewWriter {
    states: UnboundedSender<Seen>,
    task: tokio::task::JoinHandle<Result<PreviewReport>>,
}

impl PreviewWriter {
    /// Begins to write `target`; `started` is when the command was.
    pub fn start(target: &PreviewTarget, client: &Client, started: Instant) -> Self {
        let (states, received) = unbounded_channel();
        let writing = target.clone().write_all(client.clone(), received, started);
        Self {
            states,
            task: tokio::spawn(writing),
        }
    }

    /// Tells it of the job's state.
    pub fn show(&self, job: &v1::Job) {
        let previews = job.segments.iter().map(|segment| segment.preview.clone());
        let seen = Seen {
            job: job.job.clone(),
            chunks: previews.map_while(|preview| preview).collect(),
        };
        // It has ended when it cannot write, and says so at the end.
        let _ = self.states.send(seen);
    }

    /// Waits for the last of it. A film is not given up for its preview.
    pub async fn finish(self) -> Option<PreviewReport> {
        drop(self.states);
        let done = self.task.await.map_err(anyhow::Error::from);
        match done.and_then(|report| report) {
            Ok(report) => Some(report),
            Err(error) => {
                remark(format_args!("note: the preview is not complete: {error:#}"));
                None
            }
        }
    }
}
