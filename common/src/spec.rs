//! What a user asks for, checked at the edge, in units that the planner understands.

use crate::ids::Hash;
pub use crate::sampling::{Sampling, Schedule};
use serde::{Deserialize, Serialize};

/// Frames of video to one latent frame.
pub const FRAMES_PER_LATENT: u32 = 8;
/// Pixels to one latent cell, across and down.
pub const PIXELS_PER_LATENT: u32 = 32;

/// How a window gets to know what came before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Continuity {
    /// Each window is held to the tail of the one before: serial, continuous.
    #[default]
    Chain,
    /// Windows know nothing of each other.
    None,
}

/// What the frames are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// H.264 in MP4.
    #[default]
    H264,
    /// Lossless, one PNG a frame.
    Png,
}

/// A model: where to look for it and which bytes it must consist of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// A name under `configs/models` or an absolute folder.
    pub location: String,
    /// Hash over the model's files; a worker that finds others refuses the task.
    pub hash: Hash,
}

/// A validated job. Equal specs give equal videos.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What to show; may be empty.
    pub prompt: String,
    /// What to steer away from; used when `guidance_scale` is above 1.
    pub negative: String,
    /// Frames of the result, at least 1.
    pub frames: u32,
    /// Width of the result in pixels; the model renders it rounded up to [`PIXELS_PER_LATENT`].
    pub width: u32,
    /// Height of the result in pixels.
    pub height: u32,
    /// Frames a second.
    pub fps: f64,
    /// Window i draws its noise from `seed + i` (wrapping).
    pub seed: u64,
    /// The model to render with.
    pub model: ModelRef,
    /// How windows continue each other.
    pub continuity: Continuity,
    /// Frames of a window, 8k+1.
    pub segment_frames: u32,
    /// Frames that neighbouring windows share, 8k+1.
    pub overlap_frames: u32,
    /// Sampling of every window.
    pub sampling: Sampling,
    /// Format of the result.
    pub codec: Codec,
}

impl JobSpec {
    /// Width that the model renders: `width` rounded up to whole latent cells.
    pub fn padded_width(&self) -> u32 {
        self.width.next_multiple_of(PIXELS_PER_LATENT)
    }

    /// Height that the model renders.
    pub fn padded_height(&self) -> u32 {
        self.height.next_multiple_of(PIXELS_PER_LATENT)
    }
}
