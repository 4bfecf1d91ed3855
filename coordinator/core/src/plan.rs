//! From a job to windows and to the parts that the film's file is put together from.
//!
//! Depends on the job alone, never on the farm: the same job is planned alike everywhere, offline
//! too.

use longtake_common::request::{largest_latents, smallest_latents};
use longtake_common::shots::Stretch;
use longtake_common::spec::JobSpec;
use longtake_common::task::Window;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

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
    /// The shot, from 0, that each window belongs to.
    pub shots: Vec<u32>,
    /// The first shot with the prompts of each: they are encoded once.
    pub texts: Vec<u32>,
    /// Windows that share nothing with the one before: the first of shots that begin with a cut.
    pub cuts: BTreeSet<u32>,
    /// Prompts of windows that were rendered anew with one of their own.
    pub prompts: BTreeMap<u32, String>,
    /// Whether each window is rendered in two passes.
    pub refines: bool,
    /// Whether the first of them is decoded as well.
    pub previews: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
///
/// A shot that goes on where the one before ended begins with a window whose overlap is the end of
/// that shot: so the new prompt is seen from its first frame on, and not before.
pub fn plan(spec: &JobSpec) -> Plan {
    let mut plan = Plan {
        windows: Vec::new(),
        overlap_frames: spec.overlap_frames,
        shots: Vec::new(),
        texts: texts(spec),
        cuts: BTreeSet::new(),
        prompts: BTreeMap::new(),
        refines: spec.sampling.second_pass.is_some(),
        previews: spec.previews,
    };
    for stretch in spec.stretches() {
        let first_index = plan.windows.len() as u32;
        if first_index > 0 && !stretch.continues {
            plan.cuts.insert(first_index);
        }
        let own_seed = (stretch.shot.checked_sub(1)).and_then(|later| spec.shots[later].seed);
        for (number, (offset, visible_frames)) in places(spec, &stretch).into_iter().enumerate() {
            let index = first_index + number as u32;
            plan.windows.push(Window {
                index,
                first_frame: stretch.first_frame + offset,
                frames: smallest_latents(visible_frames).min(spec.segment_frames),
                visible_frames,
                seed: match own_seed {
                    Some(seed) => seed.wrapping_add(number as u64),
                    None => spec.seed.wrapping_add(index.into()),
                },
            });
            plan.shots.push(stretch.shot as u32);
        }
    }
    plan
}

/// The first shot with the same words as each shot.
fn texts(spec: &JobSpec) -> Vec<u32> {
    let own = [(&spec.prompt, &spec.negative)].into_iter();
    let later = (spec.shots.iter()).map(|shot| {
        (
            &shot.prompt,
            shot.negative.as_ref().unwrap_or(&spec.negative),
        )
    });
    let mut first = BTreeMap::new();
    let words = own.chain(later).zip(0..);
    words
        .map(|(words, shot)| *first.entry(words).or_insert(shot))
        .collect()
}

/// First frame in the stretch and visible frames of each of its windows.
fn places(spec: &JobSpec, stretch: &Stretch) -> Vec<(u32, u32)> {
    let (segment, overlap) = (spec.segment_frames, spec.overlap_frames);
    let stride = segment - overlap;
    // The last window starts where fewer than a whole stride of new frames is left, so it always
    // has at least one that no other window shows.
    let count = spec.windows_in(stretch);
    let place = |index: u32| {
        let offset = index * stride;
        (offset, (stretch.frames - offset).min(segment))
    };
    let mut places: Vec<_> = (0..count).map(place).collect();
    if let [.., before, last] = &mut places[..]
        && stretch.is_continued
        && last.1 < 2 * overlap
    {
        // Too short for an overlap at either end: the last two share what there is.
        let both = stretch.frames - before.0 + overlap;
        // Whole latents where that is possible, so that none is rendered in vain.
        let half = match largest_latents(both / 2) {
            whole if whole >= 2 * overlap => whole,
            _ => both / 2,
        };
        *last = (before.0 + half - overlap, both - half);
        before.1 = half;
    }
    places
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

    /// Whether window `index` and the next one share frames; false for the last.
    pub fn is_joined(&self, index: u32) -> bool {
        let next = index + 1;
        next < self.window_count() && !self.cuts.contains(&next)
    }

    /// Windows that share frames with the next one; as many as there are seams.
    pub fn joined(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.window_count()).filter(|index| self.is_joined(*index))
    }

    /// Whether window `index` shares frames with the one before.
    pub fn continues(&self, index: u32) -> bool {
        index
            .checked_sub(1)
            .is_some_and(|before| self.is_joined(before))
    }

    /// First frames of the windows that begin after a hard cut.
    pub fn cut_frames(&self) -> Vec<u32> {
        let cuts = self.cuts.iter();
        cuts.map(|index| self.windows[*index as usize].first_frame)
            .collect()
    }

    /// The shot whose encoded prompts window `index` takes, unless it has one of its own.
    pub fn text_shot(&self, index: u32) -> u32 {
        self.texts[self.shots[index as usize] as usize]
    }

    /// Shots after the first with prompts that no shot before them has.
    pub fn text_shots(&self) -> impl Iterator<Item = u32> + '_ {
        let shots = self.texts.iter().zip(0..).skip(1);
        shots
            .filter(|(first, shot)| *first == shot)
            .map(|(_, shot)| shot)
    }

    /// What window `index` shows.
    pub fn prompt<'a>(&'a self, spec: &'a JobSpec, index: u32) -> &'a str {
        let of_shot = || match self.shots[index as usize].checked_sub(1) {
            None => &spec.prompt,
            Some(later) => &spec.shots[later as usize].prompt,
        };
        self.prompts.get(&index).unwrap_or_else(of_shot)
    }

    /// What window `index` steers away from.
    pub fn negative<'a>(&self, spec: &'a JobSpec, index: u32) -> &'a str {
        let later = self.shots[index as usize].checked_sub(1);
        let own = later.and_then(|later| spec.shots[later as usize].negative.as_deref());
        own.unwrap_or(&spec.negative)
    }

    /// How the frames of window `index` are shared out.
    pub fn shares(&self, index: u32) -> Shares {
        let visible = self.windows[index as usize].visible_frames;
        let overlap = |is_shared| if is_shared { self.overlap_frames } else { 0 };
        let head_frames = overlap(self.continues(index));
        let tail_frames = overlap(self.is_joined(index));
        let inner = visible - head_frames - tail_frames;
        let mut lead_frames = match (head_frames, tail_frames) {
            (_, 0) => 0,
            (0, _) => inner.min(LEAD_FRAMES_MAX),
            // Corrections need room more than the encoder does.
            _ => (inner / 4).min(LEAD_FRAMES_MAX),
        };
        let mut relax_frames = if head_frames == 0 {
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
            if self.continues(index) {
                add(self.seam_frames(index - 1), Source::Seam(index - 1));
            }
            add(shares.interior_frames, Source::Interior(index));
        }
        spans
    }

    /// First frame and length of each overlap.
    pub fn overlaps(&self) -> Vec<(u32, u32)> {
        let later = self.windows.iter();
        later
            .filter(|window| self.continues(window.index))
            .map(|window| (window.first_frame, self.overlap_frames))
            .collect()
    }
}
