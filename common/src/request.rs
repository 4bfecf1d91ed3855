//! From what a user typed to a [`JobSpec`], or to one sentence that says what to change.

mod error;

pub use error::SpecError;

use crate::conditioning::{CONDITIONING_MAX, Conditioning};
use crate::spec::{
    Codec, Continuity, FRAMES_PER_LATENT, JobSpec, ModelRef, PIXELS_PER_LATENT, Sampling, Shot,
};

/// Largest width and height, in pixels.
pub const SIDE_MAX: u32 = 16_384;
/// Largest frame rate.
pub const FPS_MAX: f64 = 240.0;
/// Longest prompt length, in tokens.
pub const TEXT_TOKENS_MAX: u32 = 4096;
/// Most denoising steps.
pub const STEPS_MAX: u32 = 1000;
/// Most bytes of a prompt; tokens beyond `text_tokens` are cut anyway.
pub const PROMPT_BYTES_MAX: usize = 1 << 20;
/// Longest film in frames: more than eleven hours at 24 a second.
pub const FRAMES_MAX: u32 = 1_000_000;
/// Most windows of a film: keeps a plan small enough to hold and to send.
pub const WINDOWS_MAX: u32 = 10_000;
/// Fewest frames that neighbours share: two latents. One latent is a single frame, from which
/// neither a motion can be continued nor a flow be blended.
pub const OVERLAP_FRAMES_MIN: u32 = 9;
/// Frames of a window, unless the user says otherwise: 16 latents.
pub const SEGMENT_FRAMES_DEFAULT: u32 = 121;
/// Frames that neighbours share, unless the user says otherwise: 3 latents.
pub const OVERLAP_FRAMES_DEFAULT: u32 = 17;

/// Largest 8k+1 that is at most `frames` (at least 1).
pub fn largest_latents(frames: u32) -> u32 {
    frames.saturating_sub(1) / FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
}

/// Smallest 8k+1 that is at least `frames`. `frames` is at most 2^31.
pub fn smallest_latents(frames: u32) -> u32 {
    frames.saturating_sub(1).div_ceil(FRAMES_PER_LATENT) * FRAMES_PER_LATENT + 1
}

/// How long the film is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Rounded to whole frames.
    Seconds(f64),
    /// Exactly so many.
    Frames(i64),
}

impl Length {
    /// Frames at `fps`: `round(seconds * fps)`.
    pub fn frames(self, fps: f64) -> Result<u32, SpecError> {
        check_fps(fps)?;
        let frames = match self {
            Self::Frames(frames) => frames,
            Self::Seconds(seconds) if !seconds.is_finite() || seconds <= 0.0 => {
                return Err(SpecError::Seconds(seconds));
            }
            // `as` saturates.
            Self::Seconds(seconds) => match (seconds * fps).round() as i64 {
                0 => return Err(SpecError::TooShort { seconds, fps }),
                frames if frames > FRAMES_MAX.into() => {
                    return Err(SpecError::TooLong { seconds, fps });
                }
                frames => frames,
            },
        };
        let range = 1..=i64::from(FRAMES_MAX);
        if range.contains(&frames) {
            Ok(frames as u32)
        } else {
            Err(SpecError::Frames(frames))
        }
    }
}

/// Reads `WIDTHxHEIGHT`. Signs are read too, so that a negative size is answered as such.
pub fn parse_size(text: &str) -> Result<(i64, i64), SpecError> {
    let bad = || SpecError::SizeText(text.to_owned());
    let (width, height) = text.split_once(['x', 'X']).ok_or_else(bad)?;
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| bad());
    Ok((number(width)?, number(height)?))
}

/// A job as a user asks for it: any numbers. [`SpecRequest::validate`] makes a [`JobSpec`] of it.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecRequest {
    /// What to show; may be empty.
    pub prompt: String,
    /// What to steer away from.
    pub negative: String,
    /// How long.
    pub length: Length,
    /// Width in pixels.
    pub width: i64,
    /// Height in pixels.
    pub height: i64,
    /// Frames a second.
    pub fps: f64,
    /// Seed of the first window.
    pub seed: u64,
    /// The model to render with.
    pub model: ModelRef,
    /// How windows continue each other.
    pub continuity: Continuity,
    /// Frames of a window.
    pub segment_frames: i64,
    /// Frames that neighbours share.
    pub overlap_frames: i64,
    /// Sampling, from [`crate::pipeline::Pipeline::sampling`].
    pub sampling: Sampling,
    /// Format of the result.
    pub codec: Codec,
    /// The shots after the first.
    pub shots: Vec<Shot>,
    /// Pictures that the film is held to.
    pub conditioning: Vec<Conditioning>,
    /// Whether the first of two passes can be seen early.
    pub previews: bool,
}

impl SpecRequest {
    /// The job, or the first thing that is wrong with it.
    pub fn validate(self) -> Result<JobSpec, SpecError> {
        let side = |side, value: i64| match u32::try_from(value) {
            Ok(pixels) if (1..=SIDE_MAX).contains(&pixels) => Ok(pixels),
            _ => Err(SpecError::Size { side, value }),
        };
        let (width, height) = (side("width", self.width)?, side("height", self.height)?);
        check_fps(self.fps)?;
        let frames = self.length.frames(self.fps)?;
        let segment_frames = segment_latents(self.segment_frames, self.overlap_frames)?;
        if (0..i64::from(OVERLAP_FRAMES_MIN)).contains(&self.overlap_frames) {
            return Err(SpecError::OverlapShort(self.overlap_frames));
        }
        let overlap_frames = latents("overlap", self.overlap_frames, OVERLAP_FRAMES_MIN)?;
        let spec = JobSpec {
            prompt: self.prompt,
            negative: self.negative,
            frames,
            width,
            height,
            fps: self.fps,
            seed: self.seed,
            model: self.model,
            continuity: self.continuity,
            segment_frames,
            overlap_frames,
            sampling: self.sampling,
            codec: self.codec,
            shots: self.shots,
            conditioning: self.conditioning,
            previews: self.previews,
        };
        spec.check()?;
        Ok(spec)
    }
}

/// Fails on a frame rate that no film can have.
pub fn check_fps(fps: f64) -> Result<(), SpecError> {
    if fps.is_finite() && fps > 0.0 && fps <= FPS_MAX {
        Ok(())
    } else {
        Err(SpecError::Fps(fps))
    }
}

/// Fails on a prompt that is a file rather than a sentence.
pub(crate) fn check_prompt(what: &'static str, text: &str) -> Result<(), SpecError> {
    if text.len() > PROMPT_BYTES_MAX {
        let size = text.len();
        return Err(SpecError::Prompt { what, size });
    }
    Ok(())
}

fn latents(what: &'static str, value: i64, least: u32) -> Result<u32, SpecError> {
    let least = smallest_latents(least);
    let range = i64::from(least)..=i64::from(FRAMES_MAX);
    if range.contains(&value) && value % i64::from(FRAMES_PER_LATENT) == 1 {
        return Ok(value as u32);
    }
    Err(SpecError::NotLatents { what, value, least })
}

/// A window's frames. Where they are no whole latents, what is advised fits the overlap too.
fn segment_latents(value: i64, overlap: i64) -> Result<u32, SpecError> {
    latents("segment", value, 2 * OVERLAP_FRAMES_MIN).map_err(|error| {
        let overlap = latents("overlap", overlap, OVERLAP_FRAMES_MIN);
        latents("segment", value, 2 * overlap.unwrap_or(OVERLAP_FRAMES_MIN))
            .err()
            .unwrap_or(error)
    })
}

impl JobSpec {
    /// Whether the job keeps every rule of this module, wherever it came from.
    pub fn check(&self) -> Result<(), SpecError> {
        for (side, value) in [("width", self.width), ("height", self.height)] {
            if !(1..=SIDE_MAX).contains(&value) {
                return Err(SpecError::Size {
                    side,
                    value: value.into(),
                });
            }
        }
        check_prompt("prompt", &self.prompt)?;
        check_prompt("negative prompt", &self.negative)?;
        check_fps(self.fps)?;
        Length::Frames(self.frames.into()).frames(self.fps)?;
        let segment = segment_latents(self.segment_frames.into(), self.overlap_frames.into())?;
        let overlap = latents("overlap", self.overlap_frames.into(), OVERLAP_FRAMES_MIN)?;
        if 2 * overlap > segment {
            return Err(SpecError::OverlapLong { overlap, segment });
        }
        self.check_shots()?;
        let windows = self.stretches().map(|stretch| self.windows_in(&stretch));
        if windows.map(u64::from).sum::<u64>() > WINDOWS_MAX.into() {
            return Err(SpecError::Windows {
                frames: self.frames,
            });
        }
        if self.conditioning.len() > CONDITIONING_MAX {
            return Err(SpecError::ManyPictures(self.conditioning.len()));
        }
        for item in &self.conditioning {
            item.check(self.frames, self.shot_start_before(item.first_frame))?;
        }
        self.sampling.check()?;
        self.check_passes()
    }

    fn check_passes(&self) -> Result<(), SpecError> {
        let padded = self.padded();
        let sizes = [
            self.sampling.first_size(padded),
            self.sampling.last_size(padded),
        ];
        let factors = self
            .conditioning
            .iter()
            .filter_map(|c| c.role.reference_factor());
        for (factor, [height, width]) in factors.flat_map(|f| sizes.map(|size| (f, size))) {
            let cell = PIXELS_PER_LATENT.saturating_mul(factor);
            if factor == 0 || height % cell != 0 || width % cell != 0 {
                return Err(SpecError::ReferenceSize {
                    factor,
                    width,
                    height,
                });
            }
        }
        let Some(second) = &self.sampling.second_pass else {
            return match self.previews {
                true => Err(SpecError::NoPreview),
                false => Ok(()),
            };
        };
        if self.sampling.first_size(self.padded()).contains(&0) {
            return Err(SpecError::TooSmall {
                width: self.width,
                height: self.height,
                factor: second.downscale_factor,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Hash;
    use crate::sampling::{Guidance, Schedule};

    fn request() -> SpecRequest {
        SpecRequest {
            prompt: "a red circle".into(),
            negative: String::new(),
            length: Length::Seconds(12.0),
            width: 256,
            height: 160,
            fps: 24.0,
            seed: 1,
            model: ModelRef::new("ltxv-tiny", Hash::of(b"model")),
            continuity: Continuity::Chain,
            segment_frames: SEGMENT_FRAMES_DEFAULT.into(),
            overlap_frames: OVERLAP_FRAMES_DEFAULT.into(),
            sampling: Sampling::plain(Schedule::Timesteps(vec![1.0, 0.5]), 1.0, 32),
            codec: Codec::H264,
            shots: Vec::new(),
            conditioning: Vec::new(),
            previews: false,
        }
    }

    #[test]
    fn seconds_become_frames() {
        for (seconds, fps, frames) in [(12.0, 24.0, 288), (0.5, 25.0, 13), (10.0, 29.97, 300)] {
            let spec = SpecRequest {
                length: Length::Seconds(seconds),
                fps,
                ..request()
            };
            assert_eq!(spec.validate().expect("valid").frames, frames);
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("256x160"), Ok((256, 160)));
        assert_eq!(parse_size("-4X0"), Ok((-4, 0)));
        for text in ["", "256", "256x", "x", "axb", "1x2x3", "256*160"] {
            assert_eq!(parse_size(text), Err(SpecError::SizeText(text.into())));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_the_way_out() {
        type Change = fn(&mut SpecRequest);
        let table: &[(Change, &str)] = &[
            (
                |r| r.width = 0,
                "the width 0 is out of range: use 1 to 16384 pixels",
            ),
            (|r| r.height = -160, "the height -160 is out of range"),
            (|r| r.width = 16385, "the width 16385 is out of range"),
            (|r| r.fps = 0.0, "0 frames a second are out of range"),
            (|r| r.fps = f64::NAN, "NaN frames a second are out of range"),
            (|r| r.fps = 240.5, "240.5 frames a second are out of range"),
            (
                |r| r.length = Length::Frames(0),
                "0 frames are out of range: use 1 to",
            ),
            (
                |r| r.length = Length::Frames(-3),
                "-3 frames are out of range",
            ),
            (
                |r| r.length = Length::Seconds(50_000.0),
                "50000 seconds at 24 frames a second are more than 1000000 frames: use at most 41666 seconds",
            ),
            (
                |r| r.length = Length::Seconds(1e300),
                "use at most 41666 seconds",
            ),
            (
                |r| r.length = Length::Seconds(-1.0),
                "-1 seconds are not a length",
            ),
            (|r| r.length = Length::Seconds(0.01), "less than one frame"),
            (
                |r| r.segment_frames = 120,
                "the segment frames 120 are not 8k+1: use 113 or 121",
            ),
            (
                |r| r.segment_frames = 0,
                "the segment frames 0 are out of range: use 8k+1, from 41 to",
            ),
            (
                |r| r.segment_frames = -7,
                "the segment frames -7 are out of range: use 8k+1, from 41 to",
            ),
            (
                |r| r.segment_frames = 17,
                "the segment frames 17 are out of range: use 8k+1, from 41 to",
            ),
            (
                |r| r.segment_frames = 24,
                "the segment frames 24 are not 8k+1, as 17 and 25 are: both are too few here, use 41 or more",
            ),
            (
                |r| r.segment_frames = 39,
                "the segment frames 39 are not 8k+1, as 33 and 41 are: 33 is too few here, use 41",
            ),
            (
                |r| (r.segment_frames, r.overlap_frames) = (24, 9),
                "the segment frames 24 are not 8k+1, as 17 and 25 are: 17 is too few here, use 25",
            ),
            (
                |r| r.overlap_frames = 10,
                "the overlap frames 10 are not 8k+1: use 9 or 17",
            ),
            (
                |r| r.overlap_frames = 18,
                "the overlap frames 18 are not 8k+1: use 17 or 25",
            ),
            (
                |r| r.overlap_frames = 1,
                "1 overlap frames are too few to continue a motion: use at least 9",
            ),
            (
                |r| r.overlap_frames = 65,
                "65 overlap frames do not fit twice into 121 segment frames: use at most 57 overlap or at least 137 segment frames",
            ),
            (
                |r| r.sampling.first_pass.schedule = Schedule::Steps(0),
                "0 steps are out of range: use 1 to",
            ),
            (
                |r| r.sampling.first_pass.schedule = Schedule::Timesteps(vec![]),
                "timesteps is empty",
            ),
            (
                |r| r.sampling.first_pass.schedule = Schedule::Timesteps(vec![1.0, 1.0]),
                "not falling",
            ),
            (
                |r| r.sampling.first_pass.schedule = Schedule::Timesteps(vec![f32::NAN]),
                "not falling",
            ),
            (
                |r| r.sampling.text_tokens = 0,
                "0 text tokens are out of range: use 1 to 4096",
            ),
            (
                |r| r.sampling.first_pass.guidance = Guidance::plain(0.5),
                "the guidance scale 0.5 is out of range",
            ),
            (
                |r| r.sampling.decode_timestep = 1.5,
                "the decode_timestep 1.5 is out of range",
            ),
            (
                |r| r.prompt = "x".repeat(PROMPT_BYTES_MAX + 1),
                "the prompt has 1048577 bytes",
            ),
        ];
        for (change, expected) in table {
            let mut bad = request();
            change(&mut bad);
            let error = bad.validate().expect_err(expected).to_string();
            assert!(
                error.contains(expected),
                "{error:?} does not say {expected:?}"
            );
        }
        request().validate().expect("the unchanged request is good");
    }
}
