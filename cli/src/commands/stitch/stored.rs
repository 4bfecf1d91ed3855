//! `stitch --job`: joins the stored segments of a job anew.
//!
//! What neighbours share is stored without loss, so every seam can be made again. The rest is there
//! as the film has it: copied as it is where the output is H.264 too, decoded otherwise.

use super::report::{ClipJson, Report, SeamJson};
use super::target::{Stage, StitchCodec, Target};
use super::{StitchArgs, check, joins_deep};
use crate::client::{Client, FarmArgs};
use crate::render::embedded::start_coordinator;
use crate::render::state::State;
use anyhow::{Context, Result, anyhow, bail};
use longtake_agent::Dial;
use longtake_common::media::{ChunkWriter, Ffmpeg, Muxer, Rate, read_chunk, read_pack};
use longtake_common::spec::Codec;
use longtake_common::task::Picture;
use longtake_common::{Frame, Sample};
use longtake_proto::v1;
use longtake_server::Handle;
use longtake_stitch::{ChainSeam, JoinParams, Method, Part, join};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Instant;

/// Frames on their way from the joins to the encoder.
const FRAMES_AHEAD: usize = 8;

/// A job and whoever has its artifacts.
pub struct Source {
    client: Client,
    job: v1::Job,
    runtime: tokio::runtime::Handle,
    /// Keeps our own coordinator alive, where the job lies in a folder.
    _coordinator: Option<Handle>,
}

impl Source {
    /// Finds `job` in `state`, the folder of a render, or on the farm.
    pub async fn open(job: &str, state: Option<&Path>, farm: &FarmArgs) -> Result<Self> {
        let (mut client, coordinator) = match state {
            None if farm.url().is_none() => bail!(
                "nobody to ask for job {job}: give --state DIR, the folder of the render, or --coordinator URL"
            ),
            None => (farm.connect().await?, None),
            Some(folder) => {
                let state = State::existing(folder)?;
                let handle = start_coordinator(state.folder(), &state.artifacts()).await?;
                let client = Client::connect(&Dial::plain(handle.url())).await?;
                (client, Some(handle))
            }
        };
        let found = client.get(job).await;
        let job = match (found, state) {
            (Ok(job), _) => job,
            (Err(error), Some(folder)) => {
                let jobs = client.list().await?;
                let names: Vec<_> = jobs.iter().map(|job| job.job.as_str()).collect();
                return Err(error.context(format!(
                    "{} holds {}",
                    folder.display(),
                    if names.is_empty() {
                        "no job".to_owned()
                    } else {
                        names.join(", ")
                    }
                )));
            }
            (Err(error), None) => return Err(error),
        };
        Ok(Self {
            client,
            job,
            runtime: tokio::runtime::Handle::current(),
            _coordinator: coordinator,
        })
    }

    /// Joins what is there. Blocks.
    pub fn stitch(self, args: &StitchArgs, stop: &AtomicBool) -> Result<()> {
        let started = Instant::now();
        let ffmpeg = Ffmpeg::find();
        let target = Target::new(&args.output, args.codec, ffmpeg)?;
        let film = Film::new(self, args.method)?;
        let picture = &film.picture;
        target.check(&[], (picture.width, picture.height))?;
        if let Some(report) = &args.report {
            crate::output::check_writable(crate::output::folder_of(report))?;
        }
        let notices = film.notices(target.codec());
        notices.iter().for_each(crate::terminal::remark);
        let rate = Rate::from_fps(picture.fps)?;
        let is_copied = target.codec() == StitchCodec::H264 && picture.codec == Codec::H264;
        // What was rendered has 8 bits.
        let (bits, stage) = match (is_copied, joins_deep(target.codec(), false)) {
            (true, _) => (u8::BITS, film.copy(&target, stop)?),
            (_, true) => (u16::BITS, film.encode::<u16>(&target, rate, ffmpeg, stop)?),
            (_, false) => (u8::BITS, film.encode::<u8>(&target, rate, ffmpeg, stop)?),
        };
        let mut report = Report {
            output: args.output.clone(),
            job: Some(film.source.job.job.clone()),
            codec: target.codec(),
            bits,
            width: picture.width,
            height: picture.height,
            fps: rate.fps(),
            frames: film.frame_count(),
            clips: film.segments.iter().map(|s| film.clip(s)).collect(),
            seams: film
                .seams()
                .map(|seam| SeamJson::new(&seam, args.method))
                .collect(),
            sound: "none",
            notices,
            seconds_total: 0.0,
        };
        if args.json || args.report.is_some() {
            report.score(&stage, args.method, &film.cuts(), ffmpeg, stop)?;
        }
        stage.publish()?;
        report.seconds_total = started.elapsed().as_secs_f64();
        report.deliver(args.report.as_deref(), args.json)
    }

    fn fetch(&self, artifact: &str) -> Result<Vec<u8>> {
        let mut client = self.client.clone();
        self.runtime
            .block_on(client.fetch_bytes(&self.job.job, artifact))
    }
}

/// A decoded segment.
struct Segment {
    index: u32,
    first_frame: u32,
    frames: u32,
    parts: v1::SegmentParts,
}

impl Segment {
    /// Whether it shares frames with the one before.
    fn continues(&self) -> bool {
        self.parts.head_frames > 0
    }
}

/// One stretch of the film as it is made.
enum Stretch<'a> {
    /// The lead and the join of these neighbours.
    Seam(&'a Segment, &'a Segment),
    /// What a segment shows alone.
    Interior(&'a Segment),
    /// The end of the last segment that is there, whose neighbour is not.
    End(&'a Segment),
}

struct Film {
    source: Source,
    method: Method,
    picture: Picture,
    /// From the first on, without gaps; never empty.
    segments: Vec<Segment>,
}

impl Film {
    fn new(source: Source, method: Method) -> Result<Self> {
        let job = &source.job;
        let spec = job.spec.as_ref();
        let spec = spec.ok_or_else(|| anyhow!("job {} has no spec", job.job))?;
        let picture = Picture {
            width: spec.width,
            height: spec.height,
            fps: spec.fps,
            codec: match spec.codec() {
                v1::Codec::Png => Codec::Png,
                _ => Codec::H264,
            },
        };
        let there = job.segments.iter().map_while(|segment| {
            Some(Segment {
                index: segment.index,
                first_frame: segment.first_frame,
                frames: segment.frames,
                parts: segment.parts.clone()?,
            })
        });
        let segments: Vec<_> = there.collect();
        if segments.is_empty() {
            bail!(
                "the first segment of job {} is not decoded yet: 'longtake watch {}' shows how far it is",
                job.job,
                job.job
            );
        }
        Ok(Self {
            method,
            picture,
            segments,
            source,
        })
    }

    /// What the user should know about what is not there.
    fn notices(&self, codec: StitchCodec) -> Vec<String> {
        let mut notices = Vec::new();
        let job = &self.source.job;
        let (there, all) = (self.segments.len(), job.segments.len());
        if there < all {
            notices.push(format!(
                "segment {there} of job {} is not decoded yet: the film ends before it, after {there} of {all} segments",
                job.job
            ));
        }
        if self.picture.codec == Codec::H264 && codec != StitchCodec::H264 {
            notices.push(
                "the job is stored as H.264: only the seams are made from what was rendered, the rest is decoded and encoded again"
                    .to_owned(),
            );
        }
        notices
    }

    fn stretches(&self) -> Vec<Stretch<'_>> {
        let mut stretches = Vec::new();
        let mut before: Option<&Segment> = None;
        for segment in &self.segments {
            if let Some(before) = before.filter(|_| segment.continues()) {
                stretches.push(Stretch::Seam(before, segment));
            }
            if segment.parts.interior_frames > 0 {
                stretches.push(Stretch::Interior(segment));
            }
            before = Some(segment);
        }
        stretches.extend(
            before
                .filter(|last| last.parts.tail_frames > 0)
                .map(Stretch::End),
        );
        stretches
    }

    /// The seams that are made.
    fn seams(&self) -> impl Iterator<Item = ChainSeam> + '_ {
        let joined = self.segments.iter().filter(|segment| segment.continues());
        joined.map(|segment| ChainSeam {
            frame: segment.first_frame,
            overlap_frames: segment.parts.head_frames,
            relax_frames: segment.parts.relax_frames,
        })
    }

    /// First frames after cuts.
    fn cuts(&self) -> Vec<u32> {
        let later = self.segments.iter().skip(1);
        let cuts = later.filter(|segment| !segment.continues());
        cuts.map(|segment| segment.first_frame).collect()
    }

    fn frame_count(&self) -> u64 {
        let last = self
            .segments
            .last()
            .map(|last| last.first_frame + last.frames);
        last.unwrap_or(0).into()
    }

    fn clip(&self, segment: &Segment) -> ClipJson {
        ClipJson {
            path: PathBuf::from(format!("{}/{}", self.source.job.job, segment.index)),
            first_frame: segment.first_frame.into(),
            frames: segment.frames.into(),
            sound: false,
        }
    }

    /// Puts the stored chunks together; only seams are encoded. One stretch is in memory at a time.
    fn copy<'a>(&self, target: &'a Target, stop: &AtomicBool) -> Result<Stage<'a>> {
        let stage = target.stage()?;
        let mut muxer = Muxer::new(&stage.film(), &self.picture, None)?;
        for stretch in self.stretches() {
            check(stop)?;
            let chunk = match stretch {
                Stretch::Interior(segment) => self.source.fetch(named(segment, "interior")?)?,
                Stretch::Seam(left, right) => self.pack(&self.join(left, right)?, stop)?,
                Stretch::End(last) => self.pack(&self.frames(last, "tail")?, stop)?,
            };
            muxer.push(&chunk)?;
        }
        muxer.finish()?;
        Ok(stage)
    }

    fn pack(&self, frames: &[Frame], stop: &AtomicBool) -> Result<Vec<u8>> {
        let mut chunk = ChunkWriter::new(&self.picture)?;
        for frame in frames {
            check(stop)?;
            chunk.push(frame)?;
        }
        Ok(chunk.finish()?)
    }

    /// Encodes all of it. The joins are made on a thread of their own, some frames ahead.
    fn encode<'a, S: Sample>(
        &self,
        target: &'a Target,
        rate: Rate,
        ffmpeg: Option<Ffmpeg>,
        stop: &AtomicBool,
    ) -> Result<Stage<'a>> {
        let (sender, frames) = mpsc::sync_channel::<Result<(Frame<S>, Part)>>(FRAMES_AHEAD);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Nobody receives any more when the encoder has failed: its error is the one.
                let send = |item| sender.send(item).map_err(|_| anyhow!("nobody listens"));
                if let Err(error) = self.each(stop, &mut |frame, part| send(Ok((frame, part)))) {
                    let _ = send(Err(error));
                }
            });
            target.write(&mut frames.into_iter(), rate, ffmpeg)
        })
    }

    /// Hands out every frame of the film in order.
    fn each<S: Sample>(
        &self,
        stop: &AtomicBool,
        give: &mut dyn FnMut(Frame<S>, Part) -> Result<()>,
    ) -> Result<()> {
        for stretch in self.stretches() {
            check(stop)?;
            let (frames, part) = match stretch {
                Stretch::Seam(left, right) => (self.join(left, right)?, Part::Seam),
                Stretch::End(last) => (self.frames(last, "tail")?, Part::Interior),
                Stretch::Interior(segment) => {
                    let chunk = self.source.fetch(named(segment, "interior")?)?;
                    for frame in read_chunk(&chunk)? {
                        check(stop)?;
                        give(Frame::of_eight_bits(frame?), Part::Interior)?;
                    }
                    continue;
                }
            };
            for frame in frames {
                give(frame, part)?;
            }
        }
        Ok(())
    }

    /// The lead before a seam, and the join.
    fn join<S: Sample>(&self, left: &Segment, right: &Segment) -> Result<Vec<Frame<S>>> {
        let (mut lead, head) = (self.frames(left, "tail")?, self.frames(right, "head")?);
        let shared = lead.split_off((left.parts.lead_frames as usize).min(lead.len()));
        let params = JoinParams {
            overlap_frames: right.parts.head_frames as usize,
            relax_frames: right.parts.relax_frames as usize,
            method: self.method,
        };
        join(&lead, &shared, &head, &params)
            .with_context(|| format!("join segments {} and {}", left.index, right.index))
    }

    /// The frames of a part that is stored without loss.
    fn frames<S: Sample>(&self, segment: &Segment, part: &'static str) -> Result<Vec<Frame<S>>> {
        let pack = self.source.fetch(named(segment, part)?)?;
        let frames = read_pack(&pack)?.map(|frame| Ok(Frame::of_eight_bits(frame?)));
        frames.collect()
    }
}

/// The artifact of a part.
fn named<'a>(segment: &'a Segment, part: &'static str) -> Result<&'a str> {
    let parts = &segment.parts;
    let artifact = match part {
        "head" => &parts.head,
        "tail" => &parts.tail,
        _ => &parts.interior,
    };
    artifact.as_deref().ok_or_else(|| {
        anyhow!(
            "segment {} has no stored {part}: the coordinator's state is damaged, submit the job again",
            segment.index
        )
    })
}
