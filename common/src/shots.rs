//! A film's shots: which stretches of the timeline they are, and the rules that they keep.

use crate::request::{SpecError, check_prompt, smallest_latents};
use crate::spec::{JobSpec, Transition};

/// What can be wrong with a shot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShotProblem {
    /// It begins before, or where, another one does.
    #[error(
        "begins at frame {first_frame}, but the shot before it at frame {before}: put the shots in order, each at least a frame long"
    )]
    Order {
        /// Where it begins.
        first_frame: u32,
        /// Where the one before begins.
        before: u32,
    },
    /// It begins after the film's last frame.
    #[error("begins at frame {first_frame}, but the film has only {frames}: make the film longer")]
    BeyondEnd {
        /// Where it begins.
        first_frame: u32,
        /// Frames of the film.
        frames: u32,
    },
    /// The next one is to go on from frames that it does not have.
    #[error(
        "has {frames} frames, too few for the next shot to go on from: a continuous transition takes {overlap}, so make the shot longer, or the transition after it a cut"
    )]
    Short {
        /// Its length.
        frames: u32,
        /// Frames that neighbouring windows share.
        overlap: u32,
    },
}

/// A shot's place on the timeline and what its windows have to do with those around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Which shot, from 0; 0 is the job's own prompt.
    pub shot: usize,
    /// First frame that its windows render: where it begins, or an overlap before it.
    pub first_frame: u32,
    /// Frames that its windows render, those of the overlap included.
    pub frames: u32,
    /// It goes on where the shot before ended.
    pub continues: bool,
    /// The shot after goes on where it ends.
    pub is_continued: bool,
}

impl JobSpec {
    /// The shots in order; one for a job that has no others.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch> + '_ {
        let continues =
            |shot: usize| shot > 0 && self.shots[shot - 1].transition == Transition::Continuous;
        (0..=self.shots.len()).map(move |shot| {
            let overlap = if continues(shot) {
                self.overlap_frames
            } else {
                0
            };
            let first_frame = self.shot_start(shot) - overlap;
            Stretch {
                shot,
                first_frame,
                frames: self.shot_start(shot + 1) - first_frame,
                continues: continues(shot),
                is_continued: shot < self.shots.len() && continues(shot + 1),
            }
        })
    }

    /// First frame of a shot, counted from 0; the film's length for the one after the last.
    fn shot_start(&self, shot: usize) -> u32 {
        match shot.checked_sub(1) {
            None => 0,
            Some(later) => (self.shots.get(later)).map_or(self.frames, |shot| shot.first_frame),
        }
    }

    /// First frame of the shot that shows `frame`.
    pub(crate) fn shot_start_before(&self, frame: u32) -> u32 {
        let starts = self.shots.iter().map(|shot| shot.first_frame);
        starts
            .take_while(|start| *start <= frame)
            .last()
            .unwrap_or(0)
    }

    /// Windows that a stretch is cut into: the fewest.
    pub fn windows_in(&self, stretch: &Stretch) -> u32 {
        let stride = self.segment_frames - self.overlap_frames;
        1 + stretch
            .frames
            .saturating_sub(self.segment_frames)
            .div_ceil(stride)
    }

    /// Whether the shots follow each other and are long enough for what is asked of them. Window
    /// and overlap lengths have been checked.
    pub(crate) fn check_shots(&self) -> Result<(), SpecError> {
        let fail = |shot: usize, problem| {
            Err(SpecError::Shot {
                shot: shot + 1,
                problem,
            })
        };
        let mut before = 0;
        for (index, shot) in self.shots.iter().enumerate() {
            check_prompt("prompt of a shot", &shot.prompt)?;
            check_prompt(
                "negative prompt of a shot",
                shot.negative.as_deref().unwrap_or(""),
            )?;
            let (first_frame, frames) = (shot.first_frame, self.frames);
            if first_frame <= before {
                return fail(
                    index + 1,
                    ShotProblem::Order {
                        first_frame,
                        before,
                    },
                );
            }
            if first_frame >= frames {
                return fail(
                    index + 1,
                    ShotProblem::BeyondEnd {
                        first_frame,
                        frames,
                    },
                );
            }
            before = first_frame;
        }
        let (segment, overlap) = (self.segment_frames, self.overlap_frames);
        for shot in (0..self.shots.len())
            .filter(|shot| self.shots[*shot].transition == Transition::Continuous)
        {
            let frames = self.shot_start(shot + 1) - self.shot_start(shot);
            if frames < overlap {
                return fail(shot, ShotProblem::Short { frames, overlap });
            }
            // Where little is left for the last window before a border, it shares with the one
            // before it, and both need room for an overlap at either end.
            if segment < smallest_latents(3 * overlap) {
                return Err(SpecError::SegmentShort { segment, overlap });
            }
        }
        Ok(())
    }
}
