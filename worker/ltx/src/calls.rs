//! What the rank that leads a gang tells the others to do: each call of the model with all that it
//! was called with. The others follow, so that only the leader has to know what a window is for.
//!
//! A call goes out as the length of a JSON text, the text, and after it all values in the order of
//! [`Call::values`]: pictures and latents are too large for text.

use crate::conditioning::{Encoded, Held};
use crate::config::PipelineClass;
use crate::error::{Error, Result};
use crate::halfway::Halfway;
use crate::noise::Drawn;
use crate::pictures::Pictures;
use crate::sampling::Pass;
use crate::types::{DecodeRequest, DenoiseRequest, Latents, Prompt};
use serde::{Deserialize, Serialize};

/// A call of a method of [`crate::Model`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Call {
    EncodePrompt {
        text: String,
        text_tokens: usize,
        class: PipelineClass,
    },
    Denoise(Box<Window>),
    Decode {
        latents: Latents,
        request: DecodeRequest,
        first: usize,
    },
    Encode(Pictures),
    Upsample {
        latents: Latents,
        tone_map: f32,
    },
}

/// An owned [`DenoiseRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    class: PipelineClass,
    latent: [usize; 3],
    fps: f64,
    seed: u64,
    drawn: Drawn,
    pass: Pass,
    prompt: Prompt,
    negative: Option<Prompt>,
    start: Option<Encoded>,
    held: Vec<Item>,
    halfway: Option<Halfway>,
}

/// An owned [`Held`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Item {
    encoded: Encoded,
    frame: usize,
    strength: f32,
    noised: bool,
    reference_stride: Option<usize>,
}

impl Window {
    pub fn of(r: &DenoiseRequest<'_>) -> Self {
        let item = |held: &Held<'_>| Item {
            encoded: held.encoded.clone(),
            frame: held.frame,
            strength: held.strength,
            noised: held.noised,
            reference_stride: held.reference_stride,
        };
        Self {
            class: r.class,
            latent: [r.latent_frames, r.latent_height, r.latent_width],
            fps: r.fps,
            seed: r.seed,
            drawn: r.drawn.clone(),
            pass: r.pass.clone(),
            prompt: r.prompt.clone(),
            negative: r.negative.cloned(),
            start: r.start.cloned(),
            held: r.held.iter().map(item).collect(),
            halfway: r.halfway.cloned(),
        }
    }

    /// Calls `f` with the request.
    pub fn with<T>(&self, f: impl FnOnce(&DenoiseRequest<'_>) -> T) -> T {
        let held = self.held.iter().map(|item| Held {
            encoded: &item.encoded,
            frame: item.frame,
            strength: item.strength,
            noised: item.noised,
            reference_stride: item.reference_stride,
        });
        let held: Vec<Held<'_>> = held.collect();
        f(&DenoiseRequest {
            drawn: &self.drawn,
            negative: self.negative.as_ref(),
            start: self.start.as_ref(),
            held: &held,
            halfway: self.halfway.as_ref(),
            ..DenoiseRequest::new(
                self.class,
                self.latent,
                self.fps,
                self.seed,
                &self.pass,
                &self.prompt,
            )
        })
    }
}

/// Where values are, and how many belong there.
type Place<'a> = (&'a mut Vec<f32>, usize);

fn latents(x: &mut Latents) -> Place<'_> {
    let count = x.channels * x.frames * x.height * x.width;
    (&mut x.values, count)
}

fn encoded(x: &mut Encoded) -> impl Iterator<Item = Place<'_>> {
    [&mut x.mode].into_iter().chain(&mut x.spread).map(latents)
}

fn prompt(x: &mut Prompt) -> [Place<'_>; 2] {
    let states = x.tokens * x.channels;
    [(&mut x.states, states), (&mut x.mask, x.tokens)]
}

fn halfway(x: &mut Halfway) -> [Place<'_>; 2] {
    let count = x.token_count.saturating_mul(x.channels);
    [(&mut x.tokens, count), (&mut x.held, count)]
}

impl Call {
    /// Everything that is no text, in this order.
    fn values(&mut self) -> Vec<Place<'_>> {
        match self {
            Self::EncodePrompt { .. } => Vec::new(),
            Self::Denoise(window) => {
                let prompts = [&mut window.prompt].into_iter().chain(&mut window.negative);
                let held = window.held.iter_mut().map(|item| &mut item.encoded);
                let latents = window.start.iter_mut().chain(held);
                let latents = latents.flat_map(encoded);
                let halfway = window.halfway.iter_mut().flat_map(halfway);
                let places = prompts.flat_map(prompt).chain(latents);
                places.chain(halfway).collect()
            }
            Self::Decode { latents: x, .. } | Self::Upsample { latents: x, .. } => {
                vec![latents(x)]
            }
            Self::Encode(x) => {
                let count = 3 * x.frames * x.height * x.width;
                vec![(&mut x.values, count)]
            }
        }
    }

    /// As sent.
    pub fn into_bytes(mut self) -> Vec<u8> {
        let text = serde_json::to_vec(&self).expect("numbers and names can be written");
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text);
        for (values, _) in self.values() {
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        bytes
    }

    /// From what was sent.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let cut = || wrong("it ends too early".to_owned());
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut())?;
        let (text, mut rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        let mut call: Self = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        for (values, count) in call.values() {
            let size = count.checked_mul(4).ok_or_else(cut)?;
            let (own, after) = rest.split_at_checked(size).ok_or_else(cut)?;
            values.extend(
                own.as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&v| f32::from_le_bytes(v)),
            );
            rest = after;
        }
        match rest.len() {
            0 => Ok(call),
            more => Err(wrong(format!("{more} bytes are left over"))),
        }
    }
}

fn wrong(message: String) -> Error {
    Error::Artifact {
        name: "a call of the rank that leads".to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Steps;

    fn some(frames: usize) -> Latents {
        Latents {
            channels: 2,
            frames,
            height: 3,
            width: 1,
            values: (0..6 * frames).map(|v| v as f32 / 3.0).collect(),
        }
    }

    #[test]
    fn calls_arrive_as_they_were_sent() {
        let text = Prompt {
            tokens: 2,
            channels: 3,
            states: vec![0.1; 6],
            mask: vec![1.0, 0.0],
            cut_from: Some(9),
        };
        let (plain, drawn) = (
            Encoded {
                mode: some(2),
                spread: None,
            },
            Encoded {
                mode: some(1),
                spread: Some(some(1)),
            },
        );
        let held = [Held {
            encoded: &drawn,
            frame: 8,
            strength: 0.3,
            noised: true,
            reference_stride: None,
        }];
        let pass = Pass::plain(Steps::Timesteps(vec![1.0, 0.9094]), 3.0);
        let halfway = Halfway {
            step: 1,
            steps: 2,
            seconds: 0.0,
            drawn: Drawn::NOTHING,
            channels: 2,
            token_count: 3,
            tokens: vec![0.25; 6],
            held: vec![0.5; 6],
        };
        let request = DenoiseRequest {
            start: Some(&plain),
            negative: Some(&text),
            held: &held,
            halfway: Some(&halfway),
            ..DenoiseRequest::new(PipelineClass::Official, [2, 3, 1], 23.976, 7, &pass, &text)
        };
        let pictures = Pictures {
            frames: 1,
            height: 2,
            width: 2,
            values: vec![-0.5; 12],
        };
        let calls = [
            Call::Denoise(Box::new(Window::of(&request))),
            Call::Encode(pictures),
            Call::Upsample {
                latents: some(3),
                tone_map: 0.6,
            },
        ];
        for call in calls {
            let bytes = call.clone().into_bytes();
            assert_eq!(Call::from_bytes(&bytes).expect("it arrives"), call);
            let cut = Call::from_bytes(&bytes[..bytes.len() - 1]);
            assert!(cut.expect_err("cut").to_string().contains("too early"));
            assert!(Call::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        }
        assert!(Call::from_bytes(&[255; 20]).is_err());
    }
}
