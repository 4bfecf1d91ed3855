//! Joining two windows that show the same moments in slightly different ways.

mod detail;
mod exposure;
mod morph;
mod picture;
mod steady;
mod times;

pub use times::{JoinPart, JoinTimes};

use crate::StitchError;
use longtake_common::{Frame, Sample};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How two neighbouring windows become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Exposure match, then a morph along optical flow.
    #[default]
    Flow,
    /// Linear dissolve over the overlap.
    Crossfade,
    /// The left window up to the middle of the overlap, the right one from there.
    Cut,
}

impl Method {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Crossfade => "crossfade",
            Self::Cut => "cut",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no way to join windows; use flow, crossfade or cut")]
pub struct UnknownMethod(String);

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(text: &str) -> Result<Self, UnknownMethod> {
        match text {
            "flow" => Ok(Self::Flow),
            "crossfade" => Ok(Self::Crossfade),
            "cut" => Ok(Self::Cut),
            other => Err(UnknownMethod(other.to_owned())),
        }
    }
}

/// What to join and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinParams {
    /// Frames that both windows show, at least 1.
    pub overlap_frames: usize,
    /// Frames of the right window after the overlap over which corrections fade out; may be 0.
    pub relax_frames: usize,
    /// How.
    pub method: Method,
}

/// Joins the end of one window and the start of the next.
///
/// `lead` is what the film shows right before the overlap, as far as it is at hand; `left_tail` is
/// the left window's last `overlap_frames`; `right_head` is the right window's first
/// `overlap_frames + relax_frames`, of which the first `overlap_frames` show the same moments. The
/// result has `lead.len() + overlap_frames + relax_frames` frames; its first is the first of `lead`,
/// if there is any, and its last the last of `right_head`, bit for bit.
pub fn join<S: Sample>(
    lead: &[Frame<S>],
    left_tail: &[Frame<S>],
    right_head: &[Frame<S>],
    params: &JoinParams,
) -> Result<Vec<Frame<S>>, StitchError> {
    join_timed(lead, left_tail, right_head, params, &JoinTimes::default())
}

/// The same, which adds to `times` what each part of it takes.
pub fn join_timed<S: Sample>(
    lead: &[Frame<S>],
    left_tail: &[Frame<S>],
    right_head: &[Frame<S>],
    params: &JoinParams,
    times: &JoinTimes,
) -> Result<Vec<Frame<S>>, StitchError> {
    check(lead, left_tail, right_head, params)?;
    let follow_on = |frames: Vec<Frame<S>>| lead.iter().cloned().chain(frames).collect();
    if left_tail == &right_head[..params.overlap_frames] {
        return Ok(follow_on(right_head.to_vec()));
    }
    Ok(match params.method {
        Method::Flow => morph::join(lead, left_tail, right_head, times),
        Method::Crossfade => {
            let mix = || crossfade(left_tail, right_head);
            follow_on(times.time(JoinPart::Blend, mix))
        }
        Method::Cut => follow_on(cut(left_tail, right_head)),
    })
}

fn check<S: Sample>(
    lead: &[Frame<S>],
    left: &[Frame<S>],
    right: &[Frame<S>],
    params: &JoinParams,
) -> Result<(), StitchError> {
    let overlap = params.overlap_frames;
    if overlap == 0 {
        return Err(StitchError::NoOverlap);
    }
    let counts = [
        ("left", left.len(), overlap),
        (
            "right",
            right.len(),
            overlap.saturating_add(params.relax_frames),
        ),
    ];
    for (side, found, expected) in counts {
        if found != expected {
            return Err(StitchError::FrameCount {
                side,
                found,
                expected,
            });
        }
    }
    let (width, height) = (left[0].width(), left[0].height());
    for (index, frame) in left.iter().chain(right).chain(lead).enumerate() {
        if (frame.width(), frame.height()) != (width, height) {
            let (found_width, found_height) = (frame.width(), frame.height());
            return Err(StitchError::Size {
                index,
                found_width,
                found_height,
                width,
                height,
            });
        }
    }
    Ok(())
}

/// Share of the right window in overlap frame `k`: equal steps from the frame before the overlap
/// (all left) to the first frame that must be all right: the one after the overlap or, when
/// nothing follows, the overlap's last.
fn share(k: usize, overlap: usize, relax: usize) -> f32 {
    let steps = if relax == 0 { overlap } else { overlap + 1 };
    (k + 1) as f32 / steps as f32
}

fn crossfade<S: Sample>(left: &[Frame<S>], right: &[Frame<S>]) -> Vec<Frame<S>> {
    let relax = right.len() - left.len();
    let mut out = right.to_vec();
    for (k, (frame, from)) in out.iter_mut().zip(left).enumerate() {
        let a = share(k, left.len(), relax);
        for (to, &from) in frame.data_mut().iter_mut().zip(from.data()) {
            let (l, r) = (from.level(), to.level());
            *to = S::nearest(l + a * (r - l));
        }
    }
    out
}

fn cut<S: Sample>(left: &[Frame<S>], right: &[Frame<S>]) -> Vec<Frame<S>> {
    let switch = left.len() / 2;
    left[..switch]
        .iter()
        .chain(&right[switch..])
        .cloned()
        .collect()
}
