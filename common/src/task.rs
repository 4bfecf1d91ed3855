//! What a worker is asked to do and what it answers: the vocabulary between planner and workers.
//!
//! A [`Work`] names its inputs by content hash and carries everything else by value, so that its
//! own hash ([`Work::key`]) identifies the result: equal work need not be done twice.

use crate::conditioning::HeldPictures;
use crate::ids::{Epoch, FencingToken, Hash, JobId, TaskId};
use crate::spec::{Codec, ModelRef, Reference, Sampling, Shot};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The engine that renders: version of longtake, and the state of what makes the bytes in it. The
/// number is raised with every change after which some work gives other bytes than before: of the
/// model's steps, the kernels, the noise, the joining or the encoding. Results of one engine are
/// not taken for those of another, and coordinator and workers have to be of one.
pub const ENGINE: &str = concat!(env!("CARGO_PKG_VERSION"), "+engine.7");

/// One stretch of the timeline, rendered in one go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Place in the film, from 0.
    pub index: u32,
    /// First frame that it renders.
    pub first_frame: u32,
    /// Frames that it renders, 8k+1.
    pub frames: u32,
    /// Frames of it that the film shows: `frames`, fewer in the last window.
    pub visible_frames: u32,
    /// Seed of its noise.
    pub seed: u64,
}

impl Window {
    /// Latent frames: 1 + (frames - 1) / 8.
    pub fn latents(&self) -> u32 {
        1 + (self.frames - 1) / crate::spec::FRAMES_PER_LATENT
    }
}

/// Size and rate of the pictures of a film.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Pixels across, as the film shows them.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Frames a second.
    pub fps: f64,
    /// Stored as.
    pub codec: Codec,
}

/// Work that one worker can do from artifacts alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Work {
    /// Encodes the prompts once for all windows. Output: `text`, a safetensors file with
    /// `prompt`, `prompt_mask` and, when guidance needs them, `negative`, `negative_mask`.
    Text {
        /// The model whose text encoder is used.
        model: ModelRef,
        /// What to show.
        prompt: String,
        /// What to steer away from; `None` when guidance is off.
        negative: Option<String>,
        /// Padded length.
        text_tokens: u32,
        /// Whose conventions hold.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<Reference>,
    },
    /// Denoises one window, or with `first_pass` refines it: the first pass's latents are brought
    /// to twice their sides and sampled by the second pass. Outputs: `latents` (f32
    /// `[1, 128, F, H, W]`, normalised) and, when `tail_frames` is set, `tail`: its last visible
    /// frames decoded and encoded again, f32 `[1, 128, O, H, W]`, normalised, for the next window
    /// to be held to; a second pass also gives `tail_first`, the same at the size of a first pass.
    Denoise {
        /// The model.
        model: ModelRef,
        /// What to render.
        window: Window,
        /// Rendered width in pixels, a multiple of 32.
        padded_width: u32,
        /// Rendered height in pixels, a multiple of 32.
        padded_height: u32,
        /// Frames a second; rope positions are in seconds.
        fps: f64,
        /// Noise levels and guidance.
        sampling: Sampling,
        /// Artifact `text`.
        text: Hash,
        /// Artifact `tail` of the window before.
        conditioning: Option<Hash>,
        /// Frames at the end that the next window continues.
        tail_frames: Option<u32>,
        /// Pictures that it is held to.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        held: Vec<HeldPictures>,
        /// Size of the pictures that the film shows, which are at the window's top left.
        shown: (u32, u32),
        /// Artifact `latents` of the first pass; `None`: this is it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        first_pass: Option<Hash>,
    },
    /// Decodes a window. Outputs: `head` (frame pack of the first `head_frames + relax_frames`;
    /// absent in the first window), `interior` (encoded chunk; absent when nothing is left for it),
    /// `tail` (frame pack of the last `lead_frames + tail_frames`; absent in the last window).
    Decode {
        /// The model.
        model: ModelRef,
        /// Which window.
        window: Window,
        /// Artifact `latents`.
        latents: Hash,
        /// Decoder timestep and noise.
        sampling: Sampling,
        /// Size and codec of the film.
        picture: Picture,
        /// Frames shared with the window before; 0 in the first.
        head_frames: u32,
        /// Frames after the head over which the seam's corrections fade out.
        relax_frames: u32,
        /// Frames before the tail that are encoded with the seam after this window, as they are.
        lead_frames: u32,
        /// Frames shared with the next window; 0 in the last.
        tail_frames: u32,
    },
    /// Joins two neighbours. Output: `chunk` (encoded), `lead_frames + overlap_frames +
    /// relax_frames` long.
    Seam {
        /// Artifact `tail` of the window on the left.
        left: Hash,
        /// Artifact `head` of the window on the right.
        right: Hash,
        /// Frames of `left` before the overlap.
        lead_frames: u32,
        /// Frames that both show.
        overlap_frames: u32,
        /// Frames of `right` after the overlap.
        relax_frames: u32,
        /// Size and codec of the film.
        picture: Picture,
    },
    /// Puts the chunks into one file and scores the seams in it. Outputs: `video`.
    Mux {
        /// Encoded chunks, in order.
        chunks: Vec<Hash>,
        /// Size and codec of the film.
        picture: Picture,
        /// Written into the file, so that a film says how it was made.
        metadata: FilmMetadata,
        /// (first frame of the overlap, frames of the overlap) of each seam.
        seams: Vec<(u32, u32)>,
        /// First frames of the shots that begin with a cut: a change that nobody wants hidden.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cuts: Vec<u32>,
    },
}

impl Work {
    /// Name of the result: a hash over the engine and the work without the place where the model
    /// lies.
    pub fn key(&self) -> Hash {
        let mut work = self.clone();
        if let Self::Text { model, .. } | Self::Denoise { model, .. } | Self::Decode { model, .. } =
            &mut work
        {
            model.forget_locations();
        }
        if let Self::Denoise { sampling, .. } | Self::Decode { sampling, .. } = &mut work {
            sampling.forget_locations();
        }
        let json = serde_json::to_vec(&(ENGINE, &work)).expect("work is plain data");
        Hash::of(&json)
    }

    /// The artifacts that it is made of.
    pub fn inputs(&self) -> Vec<Hash> {
        match self {
            Self::Text { .. } => vec![],
            Self::Denoise {
                text,
                conditioning,
                first_pass,
                ..
            } => {
                let own = [*text].into_iter().chain(*conditioning);
                own.chain(*first_pass).collect()
            }
            Self::Decode { latents, .. } => vec![*latents],
            Self::Seam { left, right, .. } => vec![*left, *right],
            Self::Mux { chunks, .. } => chunks.clone(),
        }
    }

    /// Which of a worker's lanes does it: the device renders, the host joins and packs.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Text { .. } | Self::Denoise { .. } | Self::Decode { .. } => Lane::Device,
            Self::Seam { .. } | Self::Mux { .. } => Lane::Host,
        }
    }
}

/// A worker does one piece of work at a time in each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// The model.
    Device,
    /// Pictures and files.
    Host,
}

/// What the film's file says about how it was made: only what the job determines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilmMetadata {
    /// Version of longtake.
    pub version: String,
    /// The job's prompt.
    pub prompt: String,
    /// The job's negative prompt.
    pub negative: String,
    /// Hash of the model's files.
    pub model: Hash,
    /// Continuity, as on the command line.
    pub continuity: crate::spec::Continuity,
    /// The windows with their seeds.
    pub windows: Vec<Window>,
    /// Prompts of the windows that have one of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<u32, String>,
    /// The shots after the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shots: Vec<Shot>,
}

/// A worker's share of a gang: so many of its ranks, the first of which has this number. Rank 0 leads
/// and answers for the task; the others follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Ranks of the gang.
    pub ranks: u32,
    /// The first of them that the worker is.
    pub first: u32,
    /// How many of them it is.
    pub own: u32,
}

impl Share {
    /// Whether the worker's part is to follow another's lead.
    pub fn follows(&self) -> bool {
        self.first > 0
    }

    /// Whether the gang is of one worker alone, which forms it by itself.
    pub fn is_whole(&self) -> bool {
        self.own == self.ranks
    }
}

/// A piece of work in a worker's hands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The job.
    pub job: JobId,
    /// The task in it.
    pub task: TaskId,
    /// 1 for the first try.
    pub attempt: u32,
    /// Must come back with the result. All workers of a gang have the same, which no gang before it had.
    pub token: FencingToken,
    /// Term of the coordinator that gave it.
    pub epoch: Epoch,
    /// What to do.
    pub work: Work,
    /// Artifact that a worker left which had to go in the middle of it: where to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halfway: Option<Hash>,
    /// With how many ranks, and which of them the worker is. `None`: as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskOutput {
    /// Output name to artifact.
    pub artifacts: BTreeMap<String, Hash>,
    /// Phase name (`text`, `pass1`, `decode`, `encode`, ...) to seconds.
    pub seconds: BTreeMap<String, f64>,
    /// Seam scores, from the mux.
    pub seams: Vec<SeamScore>,
    /// Notes for the user, such as a prompt that was cut.
    pub notices: Vec<String>,
    /// What was said while it was made: an artifact of JSON lines, if it could be stored.
    #[serde(default)]
    pub log: Option<Hash>,
    /// Peak memory of the worker's process so far, in bytes.
    pub peak_rss_bytes: u64,
    /// Name of the worker that made it, as the coordinator knows it.
    #[serde(default)]
    pub worker: String,
}

/// How well a seam is hidden, measured in the final file. Defined in `docs/quality.md`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeamScore {
    /// First frame of the overlap.
    pub frame: u32,
    /// `flow`, `crossfade` or `cut`.
    pub method: String,
    /// Largest mean |dY| of a transition that touches the overlap over the 95th percentile of all others.
    pub seam_ratio: f64,
    /// Warping error at the seam over that of the interior.
    pub warp_ratio: f64,
    /// Sharpness of the overlap over that of its surroundings.
    pub sharpness: f64,
}
