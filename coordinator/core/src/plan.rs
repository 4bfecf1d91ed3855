//! From a job to windows and to the parts that the film's file is put together from.
//!
//! Depends on the job alone, never on the farm: the same job is planned alike everywhere, offline
//! too.

use longtake_common::request::smallest_latents;
use longtake_common::spec::JobSpec;
use longtake_common::task::Window;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most frames after an overlap over which a seam's corrections fade out.
pub const RELAX_FRAMES_MAX: u32 = 48;

/// Most frames before an overlap that are encoded together with it. A chunk begins with a picture
/// that is coded afresh, and that is easiest to see where nothing else changes: so it must not fall
/// on the first frame of the overlap, where a viewer who looks for the seam would look.
pub const LEAD_FRAMES_MAX: u32 = 8;

/// The windows of a job. Everything else follows from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In film order; never empty.
    pub windows: Vec<Window>,
    /// Frames that neighbours share.
    pub overlap_frames: u32,
    /// Prompts of the windows that do not show the job's.
    pub prompts: BTreeMap<u32, String>,
}

/// Another rendering of a window than the one that the job asked for at first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    /// 1 for the first retake of the window.
    pub number: u32,
    /// Seed of its noise.
    pub seed: u64,
    /// What to show; `None` is the job's prompt.
    pub prompt: Option<String>,
}

/// How the frames that a window shows are shared out, in film order.
///
/// `head + relax + interior + lead + tail` is the window's visible length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Shared with the window before.
    pub head_frames: u32,
    /// Belong to the seam before as well: its corrections fade out over them.
    pub relax_frames: u32,
    /// Encoded at once, by the window alone.
    pub interior_frames: u32,
    /// Encoded with the seam after, unchanged.
    pub lead_frames: u32,
    /// Shared with the next window.
    pub tail_frames: u32,
}

/// Who encodes a stretch of the film.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The interior of this window.
    Interior(u32),
    /// The seam between this window and the next.
    Seam(u32),
}

/// A stretch of the film that is encoded as one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First frame in the film.
    pub first_frame: u32,
    /// Length, at least 1.
    pub frames: u32,
    /// Where it comes from.
    pub source: Source,
}

/// Cuts a job into windows. `spec` has passed [`JobSpec::check`].
pub fn plan(spec: &JobSpec) -> Plan {
    let (segment, overlap) = (spec.segment_frames, spec.overlap_frames);
    let stride = segment - overlap;
    // The last window starts where fewer than a whole stride of new frames is left, so it always
    // has at least one that no other window shows.
    let count = 1 + spec.frames.saturating_sub(segment).div_ceil(stride);
    let window = |index: u32| {
        let first_frame = index * stride;
        let left = spec.frames - first_frame;
        Window {
            index,
            first_frame,
            frames: smallest_latents(left).min(segment),
            visible_frames: left.min(segment),
            seed: spec.seed.wrapping_add(index.into()),
        }
    };
    Plan {
        windows: (0..count).map(window).collect(),
        overlap_frames: overlap,
        prompts: BTreeMap::new(),
    }
}

impl Plan {
    /// Plans window `index` as `take` wants it. Where it lies in the film stays.
    pub fn apply(&mut self, index: u32, take: &Take) {
        if let Some(window) = self.windows.get_mut(index as usize) {
            window.seed = take.seed;
            match &take.prompt {
                Some(prompt) => self.prompts.insert(index, prompt.clone()),
                None => self.prompts.remove(&index),
            };
        }
    }

    /// Number of windows.
    pub fn window_count(&self) -> u32 {
        self.windows.len() as u32
    }

    /// Number of seams, one less than windows.
    pub fn seam_count(&self) -> u32 {
        self.window_count() - 1
    }

    /// How the frames of window `index` are shared out.
    pub fn shares(&self, index: u32) -> Shares {
        let visible = self.windows[index as usize].visible_frames;
        let head_frames = if index == 0 { 0 } else { self.overlap_frames };
        let tail_frames = if index == self.seam_count() {
            0
        } else {
            self.overlap_frames
        };
        let inner = visible - head_frames - tail_frames;
        let mut lead_frames = match (index, tail_frames) {
            (_, 0) => 0,
            (0, _) => inner.min(LEAD_FRAMES_MAX),
            // Corrections need room more than the encoder does.
            _ => (inner / 4).min(LEAD_FRAMES_MAX),
        };
        let mut relax_frames = if index == 0 {
            0
        } else {
            (inner - lead_frames).min(RELAX_FRAMES_MAX)
        };
        // A chunk of one picture puts two freshly coded ones side by side; a neighbour gives it one
        // more, where there is a neighbour.
        if inner - lead_frames - relax_frames == 1 {
            if lead_frames > 1 {
                lead_frames -= 1;
            } else {
                relax_frames = relax_frames.saturating_sub(1);
            }
        }
        Shares {
            head_frames,
            relax_frames,
            interior_frames: inner - relax_frames - lead_frames,
            lead_frames,
            tail_frames,
        }
    }

    /// Frames of the chunk that seam `index` encodes.
    pub fn seam_frames(&self, index: u32) -> u32 {
        let after = self.shares(index + 1);
        self.shares(index).lead_frames + after.head_frames + after.relax_frames
    }

    /// The chunks of the film in order; together they show every frame once.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::with_capacity(2 * self.windows.len());
        let mut first_frame = 0;
        let mut add = |frames: u32, source| {
            if frames > 0 {
                spans.push(Span {
                    first_frame,
                    frames,
                    source,
                });
                first_frame += frames;
            }
        };
        for index in 0..self.window_count() {
            let shares = self.shares(index);
            if index > 0 {
                add(self.seam_frames(index - 1), Source::Seam(index - 1));
            }
            add(shares.interior_frames, Source::Interior(index));
        }
        spans
    }

    /// First frame and length of each overlap.
    pub fn overlaps(&self) -> Vec<(u32, u32)> {
        let later = self.windows.iter().skip(1);
        later
            .map(|window| (window.first_frame, self.overlap_frames))
            .collect()
    }
}
