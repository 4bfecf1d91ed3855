//! Pictures that a film is held to: images and clips at its frames.

use crate::ids::Hash;
use crate::request::SpecError;
use crate::spec::FRAMES_PER_LATENT;
use crate::task::Window;
use serde::{Deserialize, Serialize};

/// Images and clips of one film, at most.
pub const CONDITIONING_MAX: usize = 256;

/// Where pictures belong on a stretch of the film.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Begin at this frame of the stretch.
    Frame(u32),
    /// End with it.
    End,
}

/// What pictures are to a film.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The film shows them.
    #[default]
    Shown,
    /// All of the film begins as them and is sampled from there on: video to video.
    Start,
    /// The reference video of an IC-LoRA, which is as long as the film and not seen in it.
    Reference {
        /// How many times smaller than the film it is encoded.
        factor: u32,
    },
}

impl Role {
    /// Whether pictures in this role are as long as the film.
    fn is_whole(self) -> bool {
        self != Self::Shown
    }

    fn is_usual(&self) -> bool {
        *self == Self::Shown
    }

    /// How many times smaller than the film they are encoded, for a reference video.
    pub fn reference_factor(self) -> Option<u32> {
        match self {
            Self::Reference { factor } => Some(factor),
            Self::Shown | Self::Start => None,
        }
    }
}

/// Pictures at a place in the film.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditioning {
    /// Frame packs with the pictures, one after the other, of any size.
    pub packs: Vec<Hash>,
    /// Pictures in the packs that count: 1 for an image, 8k+1 for a clip.
    pub frames: u32,
    /// Frame of the film that the first picture is.
    pub first_frame: u32,
    /// 1 holds the film to them, 0 hardly hints at them.
    pub strength: f32,
    /// Blurred and taken through H.264 before they are encoded, as the official program treats its
    /// input: a still picture is sharper than any frame of a film.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub softened: bool,
    /// What they are to the film.
    #[serde(default, skip_serializing_if = "Role::is_usual")]
    pub role: Role,
}

/// Pictures at a place in a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldPictures {
    /// Frame packs with the pictures.
    pub packs: Vec<Hash>,
    /// Pictures at the start of the packs that do not count.
    pub skip: u32,
    /// Pictures that count, 1 or 8k+1.
    pub frames: u32,
    /// Frame of the window that the first of them is.
    pub frame: u32,
    /// See [`Conditioning::strength`].
    pub strength: f32,
    /// See [`Conditioning::softened`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub softened: bool,
    /// What they are to the film. Where they are as long as the film, they may be any number, and
    /// the last stands for what is missing to the end of the window.
    #[serde(default, skip_serializing_if = "Role::is_usual")]
    pub role: Role,
}

/// Largest 8k+1 that is at most `frames`, which is positive.
fn whole_latents(frames: u32) -> u32 {
    (frames - 1) / FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
}

impl Conditioning {
    /// Whether it fits a film of `film_frames` with a shot that begins at frame `shot_start`, the
    /// last that begins before it does.
    pub(crate) fn check(&self, film_frames: u32, shot_start: u32) -> Result<(), SpecError> {
        let (first, frames) = (self.first_frame, self.frames);
        if frames == 0 || self.packs.is_empty() {
            return Err(SpecError::NoPictures);
        }
        if first
            .checked_add(frames)
            .is_none_or(|end| end > film_frames)
        {
            return Err(SpecError::BeyondTheFilm {
                first,
                frames,
                film_frames,
            });
        }
        if !(0.0..=1.0).contains(&self.strength) {
            return Err(SpecError::Share {
                what: "strength",
                value: self.strength,
            });
        }
        if self.role.is_whole() {
            return match (first, frames == film_frames) {
                (0, true) => Ok(()),
                _ => Err(SpecError::WholeLength {
                    frames,
                    film_frames,
                }),
            };
        }
        if frames % FRAMES_PER_LATENT != 1 {
            let least = 1;
            return Err(SpecError::NotLatents {
                what: "clip",
                value: frames.into(),
                least,
            });
        }
        if frames > 1 && !(first - shot_start).is_multiple_of(FRAMES_PER_LATENT) {
            return Err(SpecError::ClipStart { first, shot_start });
        }
        Ok(())
    }

    /// What of it a window shows. The first `continued` frames of the window continue the one
    /// before, which has shown them. Frames that a window renders for the sake of whole latents
    /// belong to nobody, or to the shot after it. Inside a window a clip begins with a latent: where
    /// shots have put windows elsewhere, up to seven of its first pictures do not count.
    pub fn in_window(&self, window: &Window, continued: u32) -> Option<HeldPictures> {
        let held = |skip, frames, frame| HeldPictures {
            packs: self.packs.clone(),
            skip,
            frames,
            frame,
            strength: self.strength,
            softened: self.softened,
            role: self.role,
        };
        if self.role.is_whole() {
            return Some(held(window.first_frame, window.visible_frames, 0));
        }
        let end = self.first_frame + self.frames;
        let mut from = self.first_frame.max(window.first_frame);
        if self.frames > 1 {
            let frame = from - window.first_frame;
            from = window.first_frame + frame.next_multiple_of(FRAMES_PER_LATENT);
        }
        let until = end.min(window.first_frame + window.visible_frames);
        if from >= until || until <= window.first_frame + continued {
            return None;
        }
        Some(held(
            from - self.first_frame,
            whole_latents(until - from),
            from - window.first_frame,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(first_frame: u32, frames: u32) -> Conditioning {
        Conditioning {
            packs: vec![Hash::of(b"pack")],
            frames,
            first_frame,
            strength: 1.0,
            softened: false,
            role: Role::Shown,
        }
    }

    #[test]
    fn what_does_not_fit_the_film_is_refused() {
        for (item, expected) in [
            (
                at(120, 1),
                "frame 120 of a film of 120 frames: use frame 0 to 119",
            ),
            (at(104, 17), "17 frames from frame 104 on"),
            (at(0, 16), "the clip frames 16 are not 8k+1: use 9 or 17"),
            (
                at(4, 9),
                "a clip begins 8k frames after its shot, which begins at frame 0: at frame 0 or 8, not 4",
            ),
            (at(0, 0), "no picture"),
        ] {
            let error = item.check(120, 0).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let reference = |frames| Conditioning {
            role: Role::Start,
            ..at(0, frames)
        };
        reference(120).check(120, 0).expect("as long as the film");
        let error = reference(100)
            .check(120, 0)
            .expect_err("shorter")
            .to_string();
        assert!(error.contains("100 frames, the film 120"), "{error}");
        at(119, 1).check(120, 0).expect("the last frame is one");
        at(70, 9)
            .check(120, 62)
            .expect("eight frames into its shot");
        let strong = Conditioning {
            strength: 1.5,
            ..at(0, 1)
        };
        assert!(strong.check(9, 0).is_err());
    }

    #[test]
    fn each_window_gets_its_part() {
        let window = |index: u32| Window {
            index,
            first_frame: 104 * index,
            frames: 121,
            visible_frames: 121,
            seed: 0,
        };
        let part = |item: &Conditioning, index: u32, continued| {
            let held = item.in_window(&window(index), continued);
            held.map(|held| (held.skip, held.frames, held.frame))
        };
        let image = at(110, 1);
        assert_eq!(part(&image, 0, 0), Some((0, 1, 110)));
        assert_eq!(part(&image, 1, 0), Some((0, 1, 6)));
        assert_eq!(part(&image, 1, 17), None);
        let clip = at(96, 65); // to frame 160
        assert_eq!(part(&clip, 0, 0), Some((0, 25, 96)));
        assert_eq!(part(&clip, 1, 17), Some((8, 57, 0)));
        assert_eq!(part(&clip, 2, 17), None);
        let reference = Conditioning {
            role: Role::Reference { factor: 2 },
            ..at(0, 400)
        };
        assert_eq!(part(&reference, 2, 17), Some((208, 121, 0)));
    }

    #[test]
    fn a_shot_knows_nothing_of_the_next_ones_pictures() {
        // A shot of 60 frames is rendered as 65.
        let shot = Window {
            index: 0,
            first_frame: 0,
            frames: 65,
            visible_frames: 60,
            seed: 0,
        };
        assert_eq!(at(60, 1).in_window(&shot, 0), None);
        assert!(at(59, 1).in_window(&shot, 0).is_some());
        // One that goes on from it has its first new frame at 17: the clip at its next latent.
        let next = Window {
            first_frame: 43,
            frames: 121,
            visible_frames: 121,
            ..shot
        };
        let held = at(60, 25).in_window(&next, 17).expect("held");
        assert_eq!((held.skip, held.frames, held.frame), (7, 17, 24));
    }
}
