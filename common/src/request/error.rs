//! What can be wrong with a job.

use super::{
    FPS_MAX, FRAMES_MAX, OVERLAP_FRAMES_MIN, PROMPT_BYTES_MAX, SIDE_MAX, STEPS_MAX,
    TEXT_TOKENS_MAX, WINDOWS_MAX, largest_latents, smallest_latents,
};
use crate::conditioning::CONDITIONING_MAX;
use crate::shots::ShotProblem;
use crate::spec::{FRAMES_PER_LATENT, PIXELS_PER_LATENT};

/// Why a job cannot be made. Each is one sentence that names the thing and the way out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// Not `WIDTHxHEIGHT`.
    #[error("the size '{0}' is not WIDTHxHEIGHT in pixels: write it like 256x160")]
    SizeText(String),
    /// A side out of range.
    #[error("the {side} {value} is out of range: use 1 to {SIDE_MAX} pixels")]
    Size {
        /// `width` or `height`.
        side: &'static str,
        /// As given.
        value: i64,
    },
    /// Frame rate out of range.
    #[error("{0} frames a second are out of range: use more than 0, at most {FPS_MAX}")]
    Fps(f64),
    /// Not a length in time.
    #[error("{0} seconds are not a length: use a number above 0")]
    Seconds(f64),
    /// Rounds to no frame at all.
    #[error("{seconds} seconds at {fps} frames a second are less than one frame: use at least {} seconds", 1.0 / fps)]
    TooShort {
        /// Length.
        seconds: f64,
        /// Rate.
        fps: f64,
    },
    /// More time than a film may have frames for.
    #[error("{seconds} seconds at {fps} frames a second are more than {FRAMES_MAX} frames: use at most {:.0} seconds", (f64::from(FRAMES_MAX) / fps).floor())]
    TooLong {
        /// Length.
        seconds: f64,
        /// Rate.
        fps: f64,
    },
    /// Film too short or too long.
    #[error("{0} frames are out of range: use 1 to {FRAMES_MAX}")]
    Frames(i64),
    /// Not one frame and eight for every further latent.
    #[error("the {what} frames {value} are {}", latents_advice(*.value, *.least))]
    NotLatents {
        /// `segment` or `overlap`.
        what: &'static str,
        /// As given.
        value: i64,
        /// Smallest good value.
        least: u32,
    },
    /// Fewer shared frames than a seam needs.
    #[error(
        "{0} overlap frames are too few to continue a motion: use at least {OVERLAP_FRAMES_MIN}"
    )]
    OverlapShort(i64),
    /// The overlaps at both ends of a window would meet.
    #[error("{overlap} overlap frames do not fit twice into {segment} segment frames: use at most {} overlap or at least {} segment frames",
        largest_latents(.segment / 2), smallest_latents(2 * .overlap))]
    OverlapLong {
        /// Frames that neighbours share.
        overlap: u32,
        /// Frames of a window.
        segment: u32,
    },
    /// Short windows in a long film.
    #[error(
        "{frames} frames make more than {WINDOWS_MAX} windows: use fewer frames, or more segment frames"
    )]
    Windows {
        /// Frames of the film.
        frames: u32,
    },
    /// Schedule length out of range.
    #[error("{0} steps are out of range: use 1 to {STEPS_MAX}")]
    Steps(i64),
    /// A schedule that is not a falling list of noise levels.
    #[error("the timesteps are not falling numbers between 0 and 1: {0} is out of place")]
    Timesteps(f32),
    /// An empty schedule.
    #[error("the list of timesteps is empty: give at least one, starting with 1.0")]
    NoTimesteps,
    /// Prompt length out of range.
    #[error("{0} text tokens are out of range: use 1 to {TEXT_TOKENS_MAX}")]
    TextTokens(i64),
    /// Steps that a schedule does not have are left out of it.
    #[error("{skipped} of {steps} steps are skipped, which leaves none: skip fewer")]
    Skipped {
        /// Left out at both ends.
        skipped: u64,
        /// Steps of the schedule.
        steps: u32,
    },
    /// A pass without guidance steps.
    #[error("a pass has no guidance: give at least one guidance_scale")]
    NoGuidance,
    /// Any other number of the sampling.
    #[error("the {what} {value} is out of range: use {range}")]
    Range {
        /// Key in the pipeline file.
        what: &'static str,
        /// As given.
        value: f64,
        /// What may stand there.
        range: &'static str,
    },
    /// Guidance below 1 or not a number.
    #[error("the guidance scale {0} is out of range: use 1 (off) to 100")]
    Guidance(f32),
    /// A clip or image without pictures.
    #[error("an image or clip to hold the film to has no picture: give another file")]
    NoPictures,
    /// More images and clips than a film takes.
    #[error("{0} images and clips are too many for one film: use at most {CONDITIONING_MAX}")]
    ManyPictures(usize),
    /// Pictures that the film does not show.
    #[error("{}", beyond(*.first, *.frames, *.film_frames))]
    BeyondTheFilm {
        /// Frame of the first picture.
        first: u32,
        /// Pictures.
        frames: u32,
        /// Frames of the film.
        film_frames: u32,
    },
    /// A reference video, or one to start from, that is not as long as the film.
    #[error(
        "a reference video, and one to start from, has as many frames as the film: it has {frames} frames, the film {film_frames}"
    )]
    WholeLength {
        /// Pictures of the video.
        frames: u32,
        /// Frames of the film.
        film_frames: u32,
    },
    /// A reference video whose cells do not fall on those of the film.
    #[error(
        "the IC-LoRA takes a reference video {factor} times smaller than a film of {width}x{height}, which leaves no whole cells: use sides that are multiples of {}", PIXELS_PER_LATENT * .factor
    )]
    ReferenceSize {
        /// How many times smaller.
        factor: u32,
        /// Width that a pass renders.
        width: u32,
        /// Height that it renders.
        height: u32,
    },
    /// A clip that begins between two latents.
    #[error("{}", clip_start(*.first, *.shot_start))]
    ClipStart {
        /// Frame of the film that its first picture is.
        first: u32,
        /// Frame that its shot begins at.
        shot_start: u32,
    },
    /// A share that is not one.
    #[error("the {what} {value} is out of range: use 0 to 1")]
    Share {
        /// Key in the pipeline file.
        what: &'static str,
        /// As given.
        value: f32,
    },
    /// Something about one of the film's shots.
    #[error("shot {shot} {problem}")]
    Shot {
        /// Which, counted from 1.
        shot: usize,
        /// What is wrong with it.
        problem: ShotProblem,
    },
    /// Windows too short for what continuous transitions ask for.
    #[error(
        "{segment} segment frames are too few for continuous transitions with {overlap} overlap frames: use at least {} segment frames", smallest_latents(3 * .overlap)
    )]
    SegmentShort {
        /// Frames of a window.
        segment: u32,
        /// Frames that neighbours share.
        overlap: u32,
    },
    /// Nothing is left of the first of two passes.
    #[error(
        "{width}x{height} is too small for two passes with downscale_factor {factor}: use at least {least} pixels a side",
        least = (f64::from(PIXELS_PER_LATENT) / .factor).ceil()
    )]
    TooSmall {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Size of the first pass over that of the film.
        factor: f64,
    },
    /// A preview of a film that is rendered in one pass.
    #[error(
        "a preview shows the first of two passes, but this film is rendered in one: leave --preview out, or use a pipeline file with pipeline_type: multi-scale"
    )]
    NoPreview,
    /// A prompt that is a file rather than a sentence.
    #[error(
        "the {what} has {size} bytes, more than the {PROMPT_BYTES_MAX} that are taken: shorten it"
    )]
    Prompt {
        /// `prompt` or `negative prompt`.
        what: &'static str,
        /// Its length in bytes.
        size: usize,
    },
}

fn beyond(first: u32, frames: u32, film: u32) -> String {
    if first >= film {
        let last = film.saturating_sub(1);
        return format!(
            "an image or clip is for frame {first} of a film of {film} frames: use frame 0 to {last}"
        );
    }
    format!(
        "a clip of {frames} frames from frame {first} on does not fit a film of {film} frames: \
         shorten or move it"
    )
}

fn clip_start(first: u32, shot_start: u32) -> String {
    let below = first - (first - shot_start) % FRAMES_PER_LATENT;
    let above = below + FRAMES_PER_LATENT;
    format!(
        "a clip begins {FRAMES_PER_LATENT}k frames after its shot, which begins at frame \
         {shot_start}: at frame {below} or {above}, not {first}"
    )
}

fn latents_advice(value: i64, least: u32) -> String {
    let most = largest_latents(FRAMES_MAX);
    let eight = i64::from(FRAMES_PER_LATENT);
    if value.rem_euclid(eight) == 1 || !(1..=i64::from(most)).contains(&value) {
        return format!("out of range: use 8k+1, from {least} to {most}");
    }
    let below = largest_latents(value as u32);
    let above = below + FRAMES_PER_LATENT;
    if below >= least {
        format!("not 8k+1: use {below} or {above}")
    } else if above == least {
        format!("not 8k+1, as {below} and {above} are: {below} is too few here, use {above}")
    } else {
        format!("not 8k+1, as {below} and {above} are: both are too few here, use {least} or more")
    }
}
