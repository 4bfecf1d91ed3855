//! Joins neighbouring windows of a film where they overlap, and measures how well that worked.
//!
//! Frames in, frames out: this crate knows no model, no codec, no job. [`join()`] blends an overlap
//! along optical flow of its own ([`flow`]), [`Chain`] joins clips of any length, [`find_overlap`]
//! finds how much two clips share, [`SeamScorer`] scores the seams of a finished film as
//! `docs/quality.md` defines them, and [`Comparison`] measures PSNR and SSIM between two films.
//!
//! Everything here is deterministic: results do not depend on the number of threads of the rayon
//! pool that it runs in, nor on the processor (only IEEE basic operations and square roots).

pub mod chain;
pub mod flow;
pub mod join;
pub mod metrics;
pub mod overlap;
mod plane;
pub mod seams;

pub use chain::{Chain, ChainSeam, Part};
pub use join::{JoinParams, JoinPart, JoinTimes, Method, join, join_timed};
pub use metrics::{Comparison, Quality};
pub use overlap::{FoundOverlap, NoMatch, Sketch, find_overlap};
pub use seams::SeamScorer;

/// Why frames cannot be joined or compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StitchError {
    /// Wrong number of frames on one side.
    #[error(
        "the {side} side of the seam has {found} frames, {expected} are needed; render that segment again"
    )]
    FrameCount {
        /// `left` or `right`.
        side: &'static str,
        /// Frames given.
        found: usize,
        /// Frames needed.
        expected: usize,
    },
    /// An overlap of no frames.
    #[error(
        "the windows share no frames, so there is nothing to join; give an overlap of at least 1 frame"
    )]
    NoOverlap,
    /// A clip that does not fill its overlaps.
    #[error(
        "clip {clip} has {frames} frames, its overlaps need {needed}; give smaller overlaps or a longer clip"
    )]
    ClipTooShort {
        /// Which clip, from 1.
        clip: usize,
        /// Frames that it has.
        frames: usize,
        /// Frames that its overlaps take together.
        needed: usize,
    },
    /// Pictures of different sizes.
    #[error(
        "frame {index} is {found_width}x{found_height}, the frames before it are {width}x{height}; scale the inputs to one size"
    )]
    Size {
        /// Position in the input.
        index: usize,
        /// Its width in pixels.
        found_width: u32,
        /// Its height in pixels.
        found_height: u32,
        /// Width of the others in pixels.
        width: u32,
        /// Height of the others in pixels.
        height: u32,
    },
    /// Seams that overlap each other or are out of order.
    #[error(
        "seam {index} starts at frame {frame}, before the one in front of it ends; seams must be in order and must not overlap"
    )]
    SeamOrder {
        /// Position in the list of seams.
        index: usize,
        /// First frame of its overlap.
        frame: u32,
    },
    /// A seam beyond the end of the film.
    #[error(
        "the seam at frame {frame} reaches beyond the film's {frames} frames; the film is incomplete"
    )]
    SeamBeyondEnd {
        /// First frame of the overlap.
        frame: u32,
        /// Frames in the film.
        frames: u32,
    },
}
