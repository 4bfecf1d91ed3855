//! From the artifact store to the places that the user named.

use crate::client::{Client, LostArtifact};
use crate::commands::jobs::follow;
use crate::output::{Claim, Stage, Target, folder_of, unfinished};
use crate::terminal::remark;
use anyhow::{Context, Result, anyhow, bail};
use longtake_common::media::{MediaError, Muxer, PackReader, write_png_sequence_from};
use longtake_common::spec::Codec;
use longtake_common::task::Picture;
use longtake_proto::v1;
use std::path::{Path, PathBuf};

/// Has `fetch` get what a job that is done has made. What the artifact store has lost meanwhile is
/// made again by the farm: waits for that and tries again. Returns the job as it was fetched.
pub async fn persist(
    client: &mut Client,
    mut job: v1::Job,
    mut fetch: impl AsyncFnMut(&mut Client, &v1::Job) -> Result<()>,
) -> Result<v1::Job> {
    loop {
        match fetch(client, &job).await {
            // The coordinator ends this by failing the job when it is of no use.
            Err(error) if error.is::<LostArtifact>() => {
                remark(format_args!(
                    "note: some of what was rendered was lost in the artifact store; it is made again"
                ));
                job = follow(client, &job.job).await?;
                succeeded(&job)?;
            }
            fetched => return fetched.map(|()| job),
        }
    }
}

/// Fails unless a job that has ended is done.
pub fn succeeded(job: &v1::Job) -> Result<()> {
    match job.state() {
        v1::JobState::Done => Ok(()),
        v1::JobState::Cancelled => bail!("job {} was cancelled", job.job),
        _ => bail!("job {} failed: {}", job.job, job.error),
    }
}

/// Claims `target` and fetches the film of a job that is done.
pub async fn fetch(client: &mut Client, job: &v1::Job, target: &Target) -> Result<()> {
    let claim = target.claim()?;
    fetch_claimed(client, job, target, &claim).await
}

/// Fetches the film of a job that is done; it appears under its name when it is complete.
pub async fn fetch_claimed(
    client: &mut Client,
    job: &v1::Job,
    target: &Target,
    _claim: &Claim,
) -> Result<()> {
    check_codec(job, target)?;
    let stage = target.stage()?;
    let fetched = match target.codec() {
        Codec::H264 => fetch_film(client, job, &stage.film()).await,
        Codec::Png => {
            let stretch = Stretch {
                job: &job.job,
                chunks: job.chunks.iter().map(String::as_str).collect(),
                first_number: FIRST_NUMBER,
                frames: job.spec.as_ref().map_or(0, |spec| spec.frames),
            };
            fetch_sequence(client, &stretch, target, &stage).await
        }
    };
    fetched.with_context(|| format!("save the film as {}", target.given().display()))?;
    stage.publish()
}

/// Claims `target` and fetches what is encoded of one segment.
pub async fn fetch_segment(
    client: &mut Client,
    job: &v1::Job,
    segment: &v1::Segment,
    target: &Target,
) -> Result<()> {
    check_codec(job, target)?;
    let _claim = target.claim()?;
    let first_frame = segment.chunks.first().map_or(0, |chunk| chunk.first_frame);
    let chunks = segment.chunks.iter();
    let stretch = Stretch {
        job: &job.job,
        frames: chunks.clone().map(|chunk| chunk.frames).sum(),
        chunks: chunks.map(|chunk| chunk.artifact.as_str()).collect(),
        first_number: FIRST_NUMBER + u64::from(first_frame),
    };
    let stage = target.stage()?;
    let fetched = match target.codec() {
        Codec::H264 => mux(client, job, &stretch, &stage.film()).await,
        Codec::Png => fetch_sequence(client, &stretch, target, &stage).await,
    };
    fetched.with_context(|| format!("save the segment as {}", target.given().display()))?;
    stage.publish()
}

/// A job is stored as it was asked for; nothing is encoded again on the way out.
fn check_codec(job: &v1::Job, target: &Target) -> Result<()> {
    let stored = (job.spec.as_ref()).map_or(v1::Codec::Unspecified, v1::JobSpec::codec);
    let (codec, kind, way_out) = match stored {
        v1::Codec::Png => (Codec::Png, "a PNG sequence", "DIR/%06d.png"),
        _ => (Codec::H264, "H.264", "FILE.mp4"),
    };
    if codec != target.codec() {
        bail!("job {} is stored as {kind}: give -o {way_out}", job.job);
    }
    Ok(())
}

async fn fetch_film(client: &mut Client, job: &v1::Job, partial: &Path) -> Result<()> {
    let video = job
        .video
        .as_deref()
        .ok_or_else(|| anyhow!("job {} names no film", job.job))?;
    client.fetch_to(&job.job, video, partial).await
}

/// A stretch of a film.
struct Stretch<'a> {
    /// The job whose film it is.
    job: &'a str,
    /// Its chunks in order.
    chunks: Vec<&'a str>,
    /// Number of its first picture.
    first_number: u64,
    /// Its length.
    frames: u32,
}

/// Puts encoded chunks into a file of their own; one of them is in memory at a time.
async fn mux(
    client: &mut Client,
    job: &v1::Job,
    stretch: &Stretch<'_>,
    partial: &Path,
) -> Result<()> {
    let spec = (job.spec.as_ref()).ok_or_else(|| anyhow!("job {} has no spec", job.job))?;
    let picture = Picture {
        width: spec.width,
        height: spec.height,
        fps: spec.fps,
        codec: Codec::H264,
    };
    let mut muxer = Muxer::new(partial, &picture, None)?;
    for chunk in &stretch.chunks {
        let bytes = client.fetch_bytes(stretch.job, chunk).await?;
        muxer.push(&bytes)?;
    }
    check_length(muxer.frame_count().into(), stretch)?;
    muxer.finish()?;
    Ok(())
}

fn check_length(written: u64, stretch: &Stretch<'_>) -> Result<()> {
    let expected = stretch.frames;
    if written != u64::from(expected) {
        bail!("the film has {written} pictures instead of {expected}; render it again");
    }
    Ok(())
}

/// Unpacks the chunks, which are frame packs, into numbered pictures; one pack is on disk at a time.
async fn fetch_sequence(
    client: &mut Client,
    stretch: &Stretch<'_>,
    target: &Target,
    stage: &Stage<'_>,
) -> Result<()> {
    let name = target.given().file_name().unwrap_or_default();
    let pattern = stage.film().join(name);
    let pack = stage.chunk();
    let runtime = tokio::runtime::Handle::current();
    let frames = stretch.chunks.iter().flat_map(|chunk| {
        // The media code is synchronous and asks for frames one by one.
        let opened = tokio::task::block_in_place(|| {
            runtime.block_on(client.fetch_to(stretch.job, chunk, &pack))?;
            let file = std::fs::File::open(&pack)?;
            Ok(PackReader::new(
                std::io::BufReader::new(file),
                format!("chunk {chunk}"),
            )?)
        });
        let (frames, failed): (_, Option<anyhow::Error>) = match opened {
            Ok(frames) => (Some(frames), None),
            Err(error) => (None, Some(error)),
        };
        let frames = frames
            .into_iter()
            .flatten()
            .map(|frame| frame.map_err(Failed::from));
        frames.chain(failed.map(|error| Err(Failed(error))))
    });
    let written = write_png_sequence_from(&pattern, stretch.first_number, frames)
        .map_err(|Failed(error)| error)?;
    check_length(written, stretch)
}

/// The first picture of a sequence, as ffmpeg numbers them.
const FIRST_NUMBER: u64 = 1;

/// Any error, as the media code wants one that its own turn into.
struct Failed(anyhow::Error);

impl From<MediaError> for Failed {
    fn from(error: MediaError) -> Self {
        Self(error.into())
    }
}

/// Where `--save-latents` goes: one file, or one for each window.
#[derive(Clone, Debug)]
pub struct LatentsTarget {
    path: PathBuf,
    windows: usize,
}

impl LatentsTarget {
    /// Checks that the files could be written, beside the film and its report.
    pub fn new(path: &Path, windows: usize, film: Option<&Target>) -> Result<Self> {
        let is_folder = path.is_dir() || path.to_string_lossy().ends_with('/');
        if is_folder {
            bail!(
                "{} is a folder; give --save-latents the name of a file",
                path.display()
            );
        }
        let folder = folder_of(path);
        crate::output::check_writable(folder)?;
        let latents = Self {
            path: path.to_owned(),
            windows,
        };
        if film.is_some_and(|film| film.writes(&latents.file(0))) {
            bail!(
                "--save-latents {} would be overwritten by the film or its report: give it another name",
                path.display()
            );
        }
        Ok(latents)
    }

    /// `FILE`, or with several windows `FILE.0000.safetensors`, `FILE.0001.safetensors`...
    fn file(&self, window: u32) -> PathBuf {
        if self.windows == 1 {
            return self.path.clone();
        }
        let stem = match self.path.extension() {
            Some(ending) if ending == "safetensors" => self.path.with_extension(""),
            _ => self.path.clone(),
        };
        let mut name = stem.into_os_string();
        name.push(format!(".{window:04}.safetensors"));
        PathBuf::from(name)
    }

    /// Fetches the latents of every window.
    pub async fn fetch(&self, client: &mut Client, job: &v1::Job) -> Result<()> {
        for segment in &job.segments {
            let latents = segment
                .latents
                .as_deref()
                .ok_or_else(|| anyhow!("window {} names no latents", segment.index))?;
            let file = self.file(segment.index);
            let partial = unfinished(&file)?.into_temp_path();
            client.fetch_to(&job.job, latents, &partial).await?;
            partial
                .persist(&file)
                .with_context(|| format!("write {}", file.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_of_several_windows_are_numbered() {
        let folder = tempfile::tempdir().expect("a folder");
        let film = Target::parse(&folder.path().join("film.mp4")).expect("a film");
        let latents = |name: &str, windows: usize| {
            LatentsTarget::new(&folder.path().join(name), windows, Some(&film))
        };
        let names = |name: &str, windows: usize| {
            let target = latents(name, windows).expect("writable");
            let file = target.file(1);
            file.file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        };
        assert_eq!(names("l.safetensors", 1), "l.safetensors");
        assert_eq!(names("l.safetensors", 3), "l.0001.safetensors");
        assert_eq!(names("l", 3), "l.0001.safetensors");
        for taken in ["", "new/", "film.mp4", "film.mp4.json", "../film.mp4"] {
            let inside = folder.path().join("deeper");
            std::fs::create_dir_all(&inside).expect("a folder");
            let refused = match taken.strip_prefix("../") {
                Some(_) => LatentsTarget::new(&inside.join(taken), 1, Some(&film)),
                None => latents(taken, 1),
            };
            assert!(refused.is_err(), "{taken}");
        }
    }
}
