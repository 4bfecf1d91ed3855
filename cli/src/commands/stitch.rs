//! `stitch`: joins clips of any length where they overlap, or the stored segments of a job anew.
//!
//! Two passes at most: where an overlap is to be found, the clips' ends are looked at first; then
//! frames stream from the clips through the joins into the output, which takes its name at the end.

mod clip;
mod film;
mod overlaps;
mod report;
mod stored;
mod target;

use crate::client::FarmArgs;
use crate::exit::Interrupted;
use anyhow::{Context, Result, bail};
use clip::Clip;
use film::Film;
use longtake_common::Sample;
use longtake_common::media::{Ffmpeg, Rate};
use longtake_stitch::Method;
use overlaps::Overlaps;
use report::Report;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use stored::Source;
use target::{Stage, StitchCodec, Target};

/// Flags of `stitch`.
#[derive(clap::Args)]
pub struct StitchArgs {
    /// Clips in order: MP4 with H.264 or PNG sequences (DIR/%06d.png); with ffmpeg on the PATH
    /// anything that it reads
    #[arg(required_unless_present = "job", num_args = 2.., value_name = "CLIP")]
    clips: Vec<PathBuf>,
    /// Join the stored segments of this job again, instead of clips: from the farm, or from the
    /// folder of a render
    #[arg(long, value_name = "JOB", conflicts_with_all = ["clips", "overlap", "fps"])]
    job: Option<String>,
    /// Folder of a render (its --state) that has the job
    #[arg(long, value_name = "DIR", requires = "job")]
    state: Option<PathBuf>,
    #[command(flatten)]
    farm: FarmArgs,
    /// Frames that neighbours share: a number, auto (found by comparing them), or one for each
    /// pair, as in 17,auto,9
    #[arg(long, value_name = "N|auto", required_unless_present = "job")]
    overlap: Option<Overlaps>,
    /// How to join: flow (along optical flow), crossfade or cut
    #[arg(long, default_value_t)]
    method: Method,
    /// How to store the film [default: by the ending of OUT: .mp4 h264, .mov prores, .mkv ffv1,
    /// %06d.png png]
    #[arg(long)]
    codec: Option<StitchCodec>,
    /// Frames a second where no clip says (PNG sequences)
    #[arg(long, default_value_t = 24.0)]
    fps: f64,
    /// Also write the report to this file
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Where the film goes: FILE.mp4, .mov, .mkv, or DIR/%06d.png
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Stitches, until done or interrupted.
pub async fn run(args: StitchArgs) -> Result<()> {
    let signal = super::stop_signal()?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let source = match &args.job {
        Some(job) => Some(Source::open(job, args.state.as_deref(), &args.farm).await?),
        None => None,
    };
    let mut work = tokio::task::spawn_blocking(move || match source {
        Some(source) => source.stitch(&args, &seen),
        None => stitch(&args, &seen),
    });
    tokio::select! {
        done = &mut work => return done.context("stitch")?,
        () = signal => stop.store(true, Ordering::Relaxed),
    }
    work.await.context("stitch")?
}

/// Fails once the user wants to stop.
fn check(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        let message = "stopped; nothing was written under the output's name";
        return Err(Interrupted(message.to_owned()).into());
    }
    Ok(())
}

fn stitch(args: &StitchArgs, stop: &AtomicBool) -> Result<()> {
    let started = Instant::now();
    let ffmpeg = Ffmpeg::find();
    let target = Target::new(&args.output, args.codec, ffmpeg)?;
    let clips = args
        .clips
        .iter()
        .map(|path| Clip::open(path, ffmpeg))
        .collect::<Result<Vec<_>>>()?;
    let rate = agree(&clips, args.fps)?;
    let paths: Vec<_> = clips.iter().map(Clip::path).collect();
    target.check(&paths, (clips[0].width(), clips[0].height()))?;
    if let Some(report) = &args.report {
        crate::output::check_writable(crate::output::folder_of(report))?;
    }
    let notices = notices(&clips, &target, ffmpeg);
    notices.iter().for_each(crate::terminal::remark);
    let wanted = args.overlap.as_ref().context("clips need --overlap")?;
    let overlaps = overlaps::decide(wanted, &clips, stop)?;
    let joining = Joining {
        args,
        clips: &clips,
        overlaps: &overlaps,
        target: &target,
        rate,
        ffmpeg,
        stop,
    };
    let (stage, mut report) = match joins_deep(target.codec(), clips.iter().any(Clip::is_deep)) {
        true => joining.join::<u16>()?,
        false => joining.join::<u8>()?,
    };
    report.notices = notices;
    if args.json || args.report.is_some() {
        report.score(&stage, args.method, &[], ffmpeg, stop)?;
    }
    stage.publish()?;
    report.seconds_total = started.elapsed().as_secs_f64();
    report.deliver(args.report.as_deref(), args.json)
}

/// Whether pictures are joined in 16 bits a channel: what a codec of 10 bits stores of a join is
/// finer than the 8 bits that it was made of, and what has more than 8 bits keeps them.
fn joins_deep(codec: StitchCodec, some_is_deep: bool) -> bool {
    codec.bits() == 10 || (some_is_deep && codec.bits() > 8)
}

/// Everything that is known before the first frame is joined.
struct Joining<'a> {
    args: &'a StitchArgs,
    clips: &'a [Clip],
    overlaps: &'a [overlaps::Overlap],
    target: &'a Target,
    rate: Rate,
    ffmpeg: Option<Ffmpeg>,
    stop: &'a AtomicBool,
}

impl<'a> Joining<'a> {
    /// Writes the film with its sound, beside its place.
    fn join<S: Sample>(&self) -> Result<(Stage<'a>, Report)> {
        let (args, clips) = (self.args, self.clips);
        let lengths: Vec<usize> = self.overlaps.iter().map(|o| o.frames).collect();
        let mut film = Film::<S>::new(clips, &lengths, args.method, self.stop)?;
        let stage = self.target.write(&mut film, self.rate, self.ffmpeg)?;
        let parts = film.sound_parts(&lengths);
        let sound_kept = stage.add_sound(&parts, self.rate, self.ffmpeg)?;
        let report = Report {
            output: args.output.clone(),
            job: None,
            codec: self.target.codec(),
            bits: S::BITS,
            width: clips[0].width(),
            height: clips[0].height(),
            fps: self.rate.fps(),
            frames: film.frame_count(),
            clips: report::clips(clips, &film),
            seams: report::seams(&film, self.overlaps, args.method),
            sound: report::sound(clips, sound_kept),
            notices: Vec::new(),
            seconds_total: 0.0,
        };
        Ok((stage, report))
    }
}

/// The rate of all clips; fails unless they have one size and one rate.
fn agree(clips: &[Clip], default_fps: f64) -> Result<Rate> {
    let first = &clips[0];
    for clip in clips {
        if (clip.width(), clip.height()) != (first.width(), first.height()) {
            bail!(
                "{} is {}x{} but {} is {}x{}; scale the clips to one size first",
                clip.name(),
                clip.width(),
                clip.height(),
                first.name(),
                first.width(),
                first.height()
            );
        }
    }
    let mut known: Option<(&Clip, Rate)> = None;
    for clip in clips {
        let Some(rate) = clip.rate() else { continue };
        match known {
            None => known = Some((clip, rate)),
            // Rates of foreign files are means; a frame of drift in a minute is no other rate.
            Some((_, of)) if (of.fps() / rate.fps() - 1.0).abs() < 5e-4 => {}
            Some((other, of)) => bail!(
                "{} has {:.3} frames a second but {} has {:.3}; convert the clips to one rate first",
                clip.name(),
                rate.fps(),
                other.name(),
                of.fps()
            ),
        }
    }
    match known {
        Some((_, rate)) => Ok(rate),
        None => Ok(Rate::from_fps(default_fps)?),
    }
}

/// What the user should know about what is not done.
fn notices(clips: &[Clip], target: &Target, ffmpeg: Option<Ffmpeg>) -> Vec<String> {
    let mut notices = Vec::new();
    if ffmpeg.is_none() {
        let mut text =
            "ffmpeg and ffprobe are not on the PATH: only H.264 in MP4 and PNG are read, \
                        only H.264 in MP4 and PNG are written"
                .to_owned();
        if clips.iter().any(Clip::has_sound) {
            text += ", and the clips' sound is lost";
        }
        notices.push(text);
    } else if target.codec() == StitchCodec::Png && clips.iter().any(Clip::has_sound) {
        notices.push("a PNG sequence holds no sound, so the clips' sound is lost".to_owned());
    }
    if let Some(clip) = clips.iter().find(|clip| clip.is_deep())
        && target.codec().bits() == 8
    {
        notices.push(format!(
            "{} has more than 8 bits a colour, of which longtake's own H.264 keeps 8: for all of them give \
             --codec x264, prores or ffv1 (with ffmpeg), or DIR/%06d.png",
            clip.name()
        ));
    }
    notices
}
