//! How many frames neighbouring clips share: as the user says, or found.

use super::check;
use super::clip::Clip;
use anyhow::{Context, Result, bail};
use longtake_stitch::overlap::MOST_FRAMES;
use longtake_stitch::{Sketch, find_overlap};
use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

/// The flag: for every pair alike, or one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlaps(Vec<Wanted>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Auto,
    Given(usize),
}

impl FromStr for Overlaps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |item: &str| match item.trim() {
            "auto" => Ok(Wanted::Auto),
            number => match number.parse() {
                Ok(0) => Err("clips must share at least 1 frame".to_owned()),
                Ok(frames) if frames <= 10_000 => Ok(Wanted::Given(frames)),
                _ => Err(format!("'{number}' is neither a number of frames nor auto")),
            },
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }
}

/// What one pair of clips shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// Frames.
    pub frames: usize,
    /// How sure that is, if it was found.
    pub confidence: Option<f64>,
}

/// The overlap of each pair; finds those that are not given.
pub fn decide(wanted: &Overlaps, clips: &[Clip], stop: &AtomicBool) -> Result<Vec<Overlap>> {
    let pairs = clips.len() - 1;
    let wanted = match wanted.0.as_slice() {
        [one] => vec![*one; pairs],
        each if each.len() == pairs => each.to_vec(),
        each => bail!(
            "--overlap names {} overlaps but {} clips have {pairs}; give one for all or one for each",
            each.len(),
            clips.len()
        ),
    };
    let mut out = Vec::new();
    // The sketches of a clip serve the pair before and the pair after it.
    let mut last: Option<(usize, Ends)> = None;
    for (pair, wanted) in wanted.into_iter().enumerate() {
        match wanted {
            Wanted::Given(frames) => out.push(Overlap {
                frames,
                confidence: None,
            }),
            Wanted::Auto => {
                let left = match last.take() {
                    Some((clip, ends)) if clip == pair => ends,
                    _ => Ends::of(&clips[pair], stop)?,
                };
                let right = Ends::of(&clips[pair + 1], stop)?;
                out.push(find(&clips[pair], &clips[pair + 1], &left, &right)?);
                last = Some((pair + 1, right));
            }
        }
    }
    Ok(out)
}

fn find(a: &Clip, b: &Clip, left: &Ends, right: &Ends) -> Result<Overlap> {
    let tail: Vec<Sketch> = left.tail.iter().cloned().collect();
    match find_overlap(&tail, &right.head) {
        Ok(found) => {
            crate::terminal::remark(format_args!(
                "{} and {} share {} frames (confidence {:.2})",
                a.name(),
                b.name(),
                found.frames,
                found.confidence
            ));
            Ok(Overlap {
                frames: found.frames,
                confidence: Some(found.confidence),
            })
        }
        Err(why) => bail!(
            "no overlap of at most {MOST_FRAMES} frames found between {} and {}: {why}; give it as --overlap N",
            a.name(),
            b.name()
        ),
    }
}

/// Sketches of a clip's first and last frames.
struct Ends {
    head: Vec<Sketch>,
    tail: VecDeque<Sketch>,
}

impl Ends {
    fn of(clip: &Clip, stop: &AtomicBool) -> Result<Self> {
        let mut ends = Self {
            head: Vec::new(),
            tail: VecDeque::new(),
        };
        let most = MOST_FRAMES as u64;
        let tail_from = clip.frame_count().map_or(0, |n| n.saturating_sub(most));
        for (index, frame) in clip.frames::<u8>()?.enumerate() {
            check(stop)?;
            let frame = frame.with_context(|| format!("read {}", clip.name()))?;
            let (in_head, in_tail) = (index < MOST_FRAMES, index as u64 >= tail_from);
            if !in_head && !in_tail {
                continue;
            }
            let sketch = Sketch::new(&frame);
            if in_tail {
                ends.tail.push_back(sketch.clone());
                if ends.tail.len() > MOST_FRAMES {
                    ends.tail.pop_front();
                }
            }
            if in_head {
                ends.head.push(sketch);
            }
        }
        Ok(ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_numbers_or_auto() {
        let parse = |text: &str| text.parse::<Overlaps>().map(|o| o.0);
        assert_eq!(parse("17"), Ok(vec![Wanted::Given(17)]));
        let mixed = vec![Wanted::Given(9), Wanted::Auto, Wanted::Given(17)];
        assert_eq!(parse("9,auto, 17"), Ok(mixed));
        for bad in ["", "0", "-3", "9,,9", "automatic", "1.5", "100000"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
