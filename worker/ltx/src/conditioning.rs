//! What a window is held to: images and clips at its frames, as `LTXConditionPipeline` of diffusers
//! and `prepare_conditioning` of the official pipeline put them among its tokens.
//!
//! What begins at the window's first frame is mixed into its latents. Elsewhere, a single picture
//! has no latent of its own (a latent stands for eight frames): it becomes tokens in front of the
//! window's, placed at the picture's time. Of a clip, the first two latents are such tokens and the
//! others are mixed in. A token of strength s begins at noise level 1 - s and waits for it.

use crate::config::PipelineClass;
use crate::embeddings::Front;
use crate::error::{Error, Result};
use crate::noise::Noise;
use crate::types::Latents;
use serde::{Deserialize, Serialize};

/// Latents of a clip that are placed in front, because they do not mean the same frames as the
/// window's own at their place.
const PREFIX_LATENTS: usize = 2;

/// What the VAE's encoder makes of pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Encoded {
    /// Mode of the distribution, normalised.
    pub mode: Latents,
    /// Standard deviations in the same units: set to draw from the distribution, as the
    /// references do with a user's pictures; `None` takes the mode.
    pub spread: Option<Latents>,
}

/// Pictures that a window is held to.
#[derive(Clone, Debug)]
pub struct Held<'a> {
    /// The pictures.
    pub encoded: &'a Encoded,
    /// Frame of the window that the first picture is.
    pub frame: usize,
    /// 1 holds them, 0 hardly hints at them.
    pub strength: f32,
    /// Whether [`crate::sampling::Pass::image_cond_noise_scale`] adds noise to them.
    pub noised: bool,
    /// Set for the reference video of an IC-LoRA, which is no part of the window: all of its latents
    /// are tokens in front, at the places of the window's own, of which each of them covers so many
    /// down and across.
    pub reference_stride: Option<usize>,
}

/// The tokens of a window, before the first step.
pub(crate) struct Tokens {
    /// `[L, C]`.
    pub values: Vec<f32>,
    /// Distinct kinds of tokens.
    pub kinds: Vec<Kind>,
    /// For each token, its place in `kinds`.
    pub index: Vec<u32>,
    /// The latents in front.
    pub in_front: Vec<Front>,
    /// `[L, C]`, what tokens are held to and 0 for free ones, where that is mixed in around every step.
    pub held: Option<Vec<f32>>,
}

/// How tokens are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Kind {
    pub strength: f32,
    pub noised: bool,
}

/// Free tokens.
const FREE: Kind = Kind {
    strength: 0.0,
    noised: false,
};

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::Request {
        what: "conditioning",
        message,
    })
}

/// `torch.lerp`.
fn lerp(a: f32, b: f32, weight: f32) -> f32 {
    if weight < 0.5 {
        a + weight * (b - a)
    } else {
        b - (b - a) * (1.0 - weight)
    }
}

/// Checks that `held` fits a window of `latents` `[C, F, H, W]`, `time_ratio` frames to a latent.
pub(crate) fn check(held: &Held<'_>, latents: [usize; 4], time_ratio: usize) -> Result<()> {
    let mode = &held.encoded.mode;
    let found = [mode.channels, mode.frames, mode.height, mode.width];
    let spread = held.encoded.spread.as_ref();
    let alike =
        spread.is_none_or(|s| s.is_whole() && [s.channels, s.frames, s.height, s.width] == found);
    let stride = held.reference_stride.unwrap_or(1);
    let sides =
        [found[0], stride * found[2], stride * found[3]] == [latents[0], latents[2], latents[3]];
    if !mode.is_whole() || !alike || !sides {
        return refuse(format!(
            "latents {found:?} do not fit the window {latents:?}"
        ));
    }
    if !(0.0..=1.0).contains(&held.strength) {
        return refuse(format!("the strength {} is not in 0 to 1", held.strength));
    }
    let whole = (latents[1] - 1) * time_ratio + 1;
    let shown = (mode.frames - 1) * time_ratio + 1;
    if held.frame.saturating_add(shown) > whole {
        return refuse(format!(
            "{shown} frames from frame {} on do not fit a window of {whole} frames",
            held.frame
        ));
    }
    if held.frame > 0 && mode.frames > 1 && !held.frame.is_multiple_of(time_ratio) {
        return refuse(format!(
            "a clip inside a window begins at a multiple of {time_ratio}, not at frame {}",
            held.frame
        ));
    }
    Ok(())
}

impl Tokens {
    /// Tokens of `latents`, held to `items`; draws in the order of the references.
    pub fn new(
        mut latents: Latents,
        items: &[Held<'_>],
        class: PipelineClass,
        time_ratio: usize,
        noise: &mut Noise,
    ) -> Self {
        let mut kinds = vec![FREE];
        let mut own = vec![0u32; latents.frames];
        let (mut front, mut front_kinds) = (Vec::new(), Vec::new());
        // What is mixed in around every step leaves the noise as it is.
        let mixes = class == PipelineClass::Comfy;
        let share = |strength: f32| if mixes { 0.0 } else { strength };
        let (mut shown, mut front_shown) = (latents.zeroed(), Vec::new());
        let mut in_front = Vec::new();
        for item in items {
            let kind = kind_index(&mut kinds, item);
            let frame_of = |f: usize| (time_ratio * f + 1).saturating_sub(time_ratio);
            if let Some(stride) = item.reference_stride {
                let z = reference(item, share(item.strength), noise);
                front_shown.extend(item.encoded.mode.to_tokens());
                front_kinds.extend(std::iter::repeat_n(kind, z.frames * z.height * z.width));
                in_front.extend((0..z.frames).map(|f| Front {
                    frame: item.frame + frame_of(f),
                    stride,
                }));
                front.extend(z.to_tokens());
                continue;
            }
            let z = sampled(item.encoded, class, noise);
            let (skipped, first) = match (item.frame, z.frames) {
                (0, _) => (0, 0),
                (_, 1) => (1, 0),
                (frame, _) => (PREFIX_LATENTS.min(z.frames), frame / time_ratio),
            };
            for f in skipped..z.frames {
                mix_frame(&mut latents, first + f, &z, f, share(item.strength));
                mix_frame(&mut shown, first + f, &z, f, 1.0);
                own[first + f] = kind;
            }
            if skipped > 0 {
                let prefix = z.slice(0, skipped);
                front_shown.extend(prefix.to_tokens());
                front.extend(mixed(prefix, share(item.strength), noise).to_tokens());
                let cells = z.height * z.width;
                front_kinds.extend(std::iter::repeat_n(kind, skipped * cells));
                in_front.extend((0..skipped).map(|f| Front {
                    frame: item.frame + frame_of(f),
                    stride: 1,
                }));
            }
        }
        let cells = latents.height * latents.width;
        let index = front_kinds
            .into_iter()
            .chain(
                own.iter()
                    .flat_map(|&kind| std::iter::repeat_n(kind, cells)),
            )
            .collect();
        front.extend(latents.to_tokens());
        front_shown.extend(shown.to_tokens());
        Self {
            values: front,
            held: (mixes && kinds.len() > 1).then_some(front_shown),
            kinds,
            index,
            in_front,
        }
    }
}

/// Latents between noise and themselves.
fn mixed(latents: Latents, strength: f32, noise: &mut Noise) -> Latents {
    let drawn = noise.draw(latents.values.len());
    let pairs = drawn.iter().zip(&latents.values);
    let values = pairs.map(|(&n, &v)| lerp(n, v, strength)).collect();
    Latents { values, ..latents }
}

/// What tokens of a reference video begin as, `share` of it itself: ComfyUI's nodes take the mode.
fn reference(item: &Held<'_>, share: f32, noise: &mut Noise) -> Latents {
    let z = item.encoded.mode.clone();
    match item.strength < 1.0 {
        true => mixed(z, share, noise),
        false => z,
    }
}

fn kind_index(kinds: &mut Vec<Kind>, item: &Held<'_>) -> u32 {
    let kind = Kind {
        strength: item.strength,
        noised: item.noised && item.strength > 1.0 - 1e-6,
    };
    let known = kinds.iter().position(|k| *k == kind);
    known.unwrap_or_else(|| {
        kinds.push(kind);
        kinds.len() - 1
    }) as u32
}

/// A sample of the distribution, or its mode where nothing is drawn.
pub(crate) fn sampled(encoded: &Encoded, class: PipelineClass, noise: &mut Noise) -> Latents {
    let (mode, spread) = match &encoded.spread {
        Some(spread) if class != PipelineClass::Comfy => (&encoded.mode, spread),
        _ => return encoded.mode.clone(),
    };
    let drawn = noise.draw_ambient(mode.values.len());
    let values = mode.values.iter().zip(&spread.values).zip(drawn);
    Latents {
        values: values.map(|((m, s), n)| m + s * n).collect(),
        ..*mode
    }
}

/// Mixes latent `from` of `z` into latent `to` of `latents`.
fn mix_frame(latents: &mut Latents, to: usize, z: &Latents, from: usize, strength: f32) {
    let cells = z.height * z.width;
    for channel in 0..z.channels {
        let source = &z.values[(channel * z.frames + from) * cells..][..cells];
        let target = &mut latents.values[(channel * latents.frames + to) * cells..][..cells];
        for (t, &s) in target.iter_mut().zip(source) {
            *t = lerp(*t, s, strength);
        }
    }
}
