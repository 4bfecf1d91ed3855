//! What a user asks for, checked at the edge, in units that the planner understands.

use crate::conditioning::Conditioning;
use crate::ids::Hash;
pub use crate::sampling::{Reference, Sampling, Schedule};
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

/// A model: where to look for its files, which bytes they must consist of, and how they are used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRef {
    /// A name under `configs/models`, or an absolute path.
    pub location: String,
    /// Hash over the model's files; a worker that finds others refuses the task.
    pub hash: Hash,
    /// The text encoder, when it is not the model's own or beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<Box<ModelRef>>,
    /// Whether the large matrices are kept in 8 bits, whatever the files have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eight_bit: bool,
    /// What is added to the transformer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraRef>,
    /// Whether copies of the matrices that LoRAs touch are changed, rather than computed beside.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fuse_loras: bool,
}

/// A LoRA that is added to a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraRef {
    /// A name under `configs/models`, or an absolute path.
    pub location: String,
    /// Hash over its file.
    pub hash: Hash,
    /// Factor on what it adds.
    pub strength: f32,
}

impl ModelRef {
    /// The files at `location`, as they are.
    pub fn new(location: impl Into<String>, hash: Hash) -> Self {
        Self {
            location: location.into(),
            hash,
            text_encoder: None,
            eight_bit: false,
            loras: Vec::new(),
            fuse_loras: false,
        }
    }

    /// The hash of the model itself and of everything that is added to it.
    pub fn hashes(&self) -> impl Iterator<Item = Hash> {
        let text_encoder = self.text_encoder.as_ref().map(|text| text.hash);
        let loras = self.loras.iter().map(|lora| lora.hash);
        std::iter::once(self.hash).chain(text_encoder).chain(loras)
    }

    /// Forgets where the files are: what they consist of is what names a result.
    pub fn forget_locations(&mut self) {
        self.location.clear();
        if let Some(text_encoder) = &mut self.text_encoder {
            text_encoder.forget_locations();
        }
        for lora in &mut self.loras {
            lora.location.clear();
        }
    }
}

/// How a shot begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transition {
    /// The take runs on, and from here on shows something else.
    #[default]
    Continuous,
    /// A hard cut: nothing of the shot before is known.
    Cut,
}

/// A stretch of the timeline with a prompt of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shot {
    /// Where in the film it begins.
    pub first_frame: u32,
    /// How it begins.
    pub transition: Transition,
    /// What to show.
    pub prompt: String,
    /// What to steer away from; `None`: as in the first shot.
    pub negative: Option<String>,
    /// Its j-th window draws from `seed + j`; `None`: window i of the film from the job's seed + i.
    pub seed: Option<u64>,
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
    /// Pictures that the film is held to, in the order in which they count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditioning: Vec<Conditioning>,
    /// The shots after the first one, in order; the job's own prompt, negative prompt and seed are
    /// the first shot's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shots: Vec<Shot>,
    /// Whether the first of two passes is decoded and encoded for whoever wants to see it early.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub previews: bool,
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

    /// Both, as [height, width].
    pub fn padded(&self) -> [u32; 2] {
        [self.padded_height(), self.padded_width()]
    }

    /// The hashes of all files that a worker needs for the job.
    pub fn model_hashes(&self) -> impl Iterator<Item = Hash> {
        let of_passes = self.sampling.files().flat_map(ModelRef::hashes);
        self.model.hashes().chain(of_passes)
    }

    /// Width and height of a preview: what the film shows of the first pass, in whole pairs of
    /// pixels as H.264 wants them.
    pub fn preview_size(&self) -> (u32, u32) {
        let padded = self.padded();
        let first = self.sampling.first_size(padded);
        let side = |shown: u32, i: usize| {
            let scaled = u64::from(shown) * u64::from(first[i]) / u64::from(padded[i]);
            // At most `first`, which is even.
            (scaled as u32).next_multiple_of(2)
        };
        (side(self.width, 1), side(self.height, 0))
    }
}
