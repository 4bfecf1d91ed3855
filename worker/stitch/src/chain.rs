//! Clips of any length to one film, holding only the frames that a join needs.

use crate::{JoinParams, Method, StitchError, join};
use longtake_common::{Frame, Sample};
use std::collections::VecDeque;

/// Frames after an overlap over which corrections fade out, at most.
pub const RELAX_FRAMES: usize = 48;

/// Where a frame of the film comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// One clip alone, far from the next join: an encoder may start afresh here.
    Interior,
    /// One clip alone, the last frames before a join, or a join.
    Seam,
}

/// A join that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainSeam {
    /// First frame of the overlap, in the film.
    pub frame: u32,
    /// Frames of the overlap.
    pub overlap_frames: u32,
    /// Frames after it over which corrections fade out.
    pub relax_frames: u32,
}

/// Joins clip after clip as their frames come in.
///
/// Holds, at most, the frames of two neighbouring overlaps, [`RELAX_FRAMES`] and a few more.
pub struct Chain<S = u8> {
    method: Method,
    overlaps: Vec<usize>,
    clip: usize,
    /// Frames of this clip so far.
    seen: usize,
    /// The end of the clip before, waiting for this one's start.
    tail: Vec<Frame<S>>,
    /// The film's frames right before `tail`.
    lead: Vec<Frame<S>>,
    held: VecDeque<Frame<S>>,
    joined: bool,
    out: VecDeque<(Frame<S>, Part)>,
    emitted: u32,
    seams: Vec<ChainSeam>,
}

impl<S: Sample> Chain<S> {
    /// Frames before an overlap over which steadying fades in and no encoder starts afresh.
    const LEAD: usize = 8;

    /// A chain of `overlaps.len() + 1` clips.
    pub fn new(method: Method, overlaps: &[usize]) -> Result<Self, StitchError> {
        if overlaps.contains(&0) {
            return Err(StitchError::NoOverlap);
        }
        Ok(Self {
            method,
            overlaps: overlaps.to_vec(),
            clip: 0,
            seen: 0,
            tail: Vec::new(),
            lead: Vec::new(),
            held: VecDeque::new(),
            joined: true,
            out: VecDeque::new(),
            emitted: 0,
            seams: Vec::new(),
        })
    }

    /// Frames that this clip shares with the next.
    fn next_overlap(&self) -> usize {
        self.overlaps.get(self.clip).copied().unwrap_or(0)
    }

    /// Adds the next frame of the current clip.
    pub fn push(&mut self, frame: Frame<S>) -> Result<(), StitchError> {
        self.seen += 1;
        self.held.push_back(frame);
        let next = self.next_overlap();
        if !self.joined && self.held.len() == self.tail.len() + RELAX_FRAMES + next {
            self.join(RELAX_FRAMES)?;
        }
        let keep = if next > 0 { next + Self::LEAD } else { 0 };
        while self.joined && self.held.len() > keep {
            self.release(Part::Interior);
        }
        Ok(())
    }

    /// The current clip is over; frames pushed from now on are the next one's.
    pub fn end_clip(&mut self) -> Result<(), StitchError> {
        let next = self.next_overlap();
        let needed = self.tail.len() + next;
        if self.seen < needed.max(1) {
            return Err(StitchError::ClipTooShort {
                clip: self.clip + 1,
                frames: self.seen,
                needed: needed.max(1),
            });
        }
        if !self.joined {
            self.join(self.held.len() - needed)?;
        }
        let lead = if next > 0 { Self::LEAD } else { 0 };
        while self.held.len() > next + lead {
            self.release(Part::Seam);
        }
        self.lead = self.held.drain(..self.held.len() - next).collect();
        self.tail = self.held.drain(..).collect();
        self.joined = self.tail.is_empty();
        self.clip += 1;
        self.seen = 0;
        Ok(())
    }

    /// The next finished frame of the film.
    pub fn pop(&mut self) -> Option<(Frame<S>, Part)> {
        self.out.pop_front()
    }

    /// The joins so far.
    pub fn seams(&self) -> &[ChainSeam] {
        &self.seams
    }

    fn release(&mut self, part: Part) {
        if let Some(frame) = self.held.pop_front() {
            self.out.push_back((frame, part));
            self.emitted += 1;
        }
    }

    fn join(&mut self, relax: usize) -> Result<(), StitchError> {
        let overlap = self.tail.len();
        let right: Vec<Frame<S>> = self.held.drain(..overlap + relax).collect();
        let params = JoinParams {
            overlap_frames: overlap,
            relax_frames: relax,
            method: self.method,
        };
        let lead = std::mem::take(&mut self.lead);
        let frames = join(&lead, &self.tail, &right, &params)?;
        self.tail.clear();
        self.joined = true;
        self.seams.push(ChainSeam {
            frame: self.emitted + lead.len() as u32,
            overlap_frames: overlap as u32,
            relax_frames: relax as u32,
        });
        self.emitted += frames.len() as u32;
        self.out.extend(frames.into_iter().map(|f| (f, Part::Seam)));
        Ok(())
    }
}
