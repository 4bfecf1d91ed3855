//! The frames of the stitched film, one after another.

use super::check;
use super::clip::{Clip, Frames};
use anyhow::{Context, Result};
use longtake_common::media::SoundPart;
use longtake_common::{Frame, Sample};
use longtake_stitch::{Chain, ChainSeam, Method, Part};
use std::sync::atomic::AtomicBool;

/// Reads the clips one after another and joins them; holds what the joins need.
pub struct Film<'a, S = u8> {
    clips: &'a [Clip],
    stop: &'a AtomicBool,
    chain: Chain<S>,
    current: Option<Frames<S>>,
    /// Frames read of each clip so far; the last entry is the current clip's.
    counts: Vec<u64>,
    overlaps: Vec<usize>,
    emitted: u64,
}

impl<'a, S: Sample> Film<'a, S> {
    /// The film of `clips` with these overlaps.
    pub fn new(
        clips: &'a [Clip],
        overlaps: &[usize],
        method: Method,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        Ok(Self {
            clips,
            stop,
            chain: Chain::new(method, overlaps)?,
            current: None,
            counts: Vec::new(),
            overlaps: overlaps.to_vec(),
            emitted: 0,
        })
    }

    /// Frames so far; at the end, of the film.
    pub fn frame_count(&self) -> u64 {
        self.emitted
    }

    /// The joins so far.
    pub fn seams(&self) -> &[ChainSeam] {
        self.chain.seams()
    }

    /// Frames of each clip, and where in the film it begins.
    pub fn places(&self) -> Vec<(u64, u64)> {
        let mut first = 0;
        let overlaps = self.overlaps.iter().chain(&[0]);
        let place = |(&count, &overlap): (&u64, &usize)| {
            let place = (first, count);
            first += count - (overlap as u64).min(count);
            place
        };
        self.counts.iter().zip(overlaps).map(place).collect()
    }

    /// What the sound is made of, once all frames were read.
    pub fn sound_parts(&self, overlaps: &[usize]) -> Vec<SoundPart<'a>> {
        let overlaps = overlaps.iter().chain(&[0]);
        let each = self.clips.iter().zip(&self.counts).zip(overlaps);
        each.map(|((clip, &frame_count), &overlap)| SoundPart {
            path: clip.has_sound().then(|| clip.path()),
            frame_count,
            overlap_frames: overlap as u64,
        })
        .collect()
    }

    fn next_frame(&mut self) -> Result<Option<(Frame<S>, Part)>> {
        loop {
            if let Some(frame) = self.chain.pop() {
                self.emitted += 1;
                return Ok(Some(frame));
            }
            check(self.stop)?;
            match &mut self.current {
                Some(frames) => {
                    let clip = &self.clips[self.counts.len() - 1];
                    match frames.next() {
                        Some(frame) => {
                            let frame = frame.with_context(|| format!("read {}", clip.name()))?;
                            self.chain.push(frame)?;
                            *self.counts.last_mut().expect("a clip is being read") += 1;
                        }
                        None => {
                            self.chain
                                .end_clip()
                                .with_context(|| format!("join {}", clip.name()))?;
                            self.current = None;
                        }
                    }
                }
                None => {
                    let Some(clip) = self.clips.get(self.counts.len()) else {
                        return Ok(None);
                    };
                    self.current = Some(clip.frames()?);
                    self.counts.push(0);
                }
            }
        }
    }
}

impl<S: Sample> Iterator for Film<'_, S> {
    type Item = Result<(Frame<S>, Part)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_frame().transpose()
    }
}
