//! What goes into the model and what comes out, on the host.

use crate::conditioning::{Encoded, Held};
use crate::config::PipelineClass;
use crate::error::{Error, Result};
use crate::halfway::Halfway;
use crate::noise::Drawn;
use crate::sampling::Pass;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Entry of a latents file's metadata: what was drawn, as JSON.
const DRAWN: &str = "drawn";

/// A video in latent space, normalised: `[1, C, F, H, W]` in f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latents {
    /// Channels (128).
    pub channels: usize,
    /// Latent frames.
    pub frames: usize,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
    /// Values, `[C, F, H, W]` row-major.
    #[serde(skip)]
    pub values: Vec<f32>,
}

impl Latents {
    /// A safetensors file with the one tensor `name`, f32 `[1, C, F, H, W]`.
    pub fn to_safetensors(&self, name: &str) -> Vec<u8> {
        self.serialise(name, None)
    }

    fn serialise(&self, name: &str, note: Option<(&str, String)>) -> Vec<u8> {
        let shape = vec![1, self.channels, self.frames, self.height, self.width];
        write_f32(&[(name, shape, &self.values)], note)
    }

    /// Reads tensor `name` of a safetensors file.
    pub fn from_safetensors(bytes: &[u8], name: &str) -> Result<Self> {
        let (shape, values) = read_f32(bytes, name)?;
        let &[1, channels, frames, height, width] = shape.as_slice() else {
            return Err(Error::Artifact {
                name: name.to_owned(),
                message: format!("f32 [1, C, F, H, W] was expected, found {shape:?}"),
            });
        };
        Ok(Self {
            channels,
            frames,
            height,
            width,
            values,
        })
    }

    /// Whether the values fill the sizes.
    pub(crate) fn is_whole(&self) -> bool {
        let count = self.channels * self.frames * self.height * self.width;
        count > 0 && self.values.len() == count
    }

    /// Zeros of the same sizes.
    pub(crate) fn zeroed(&self) -> Self {
        Self {
            values: vec![0.0; self.values.len()],
            ..*self
        }
    }

    /// Latent frames `from..to`; panics outside the video, as slices do.
    pub fn slice(&self, from: usize, to: usize) -> Self {
        let plane = self.height * self.width;
        let mut values = Vec::with_capacity(self.channels * (to - from) * plane);
        for channel in self.values.chunks_exact((self.frames * plane).max(1)) {
            values.extend_from_slice(&channel[from * plane..to * plane]);
        }
        Self {
            frames: to - from,
            values,
            ..*self
        }
    }

    /// The same values with channels innermost: `[F, H, W, C]`, the order of the model's tokens.
    pub fn to_tokens(&self) -> Vec<f32> {
        transpose(
            &self.values,
            self.channels,
            self.frames * self.height * self.width,
        )
    }

    /// From `[F, H, W, C]`.
    pub fn from_tokens(
        tokens: &[f32],
        channels: usize,
        frames: usize,
        height: usize,
        width: usize,
    ) -> Self {
        let values = transpose(tokens, frames * height * width, channels);
        Self {
            channels,
            frames,
            height,
            width,
            values,
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        for column in 0..columns {
            out[column * rows + row] = values[row * columns + column];
        }
    }
    out
}

/// A prompt as the transformer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Length, in tokens, that the prompt was padded or cut to.
    pub tokens: usize,
    /// Channels of a token.
    pub channels: usize,
    /// Encoder states, `[tokens, channels]`.
    #[serde(skip)]
    pub states: Vec<f32>,
    /// 1 for tokens of the prompt, 0 for padding, `[tokens]`.
    #[serde(skip)]
    pub mask: Vec<f32>,
    /// Set when the prompt was longer than `tokens`: its real length with the end mark.
    pub cut_from: Option<usize>,
}

impl Prompt {
    /// A safetensors file with several prompts: `<name>` f32 `[1, tokens, channels]` and
    /// `<name>_mask` f32 `[1, tokens]`.
    pub fn to_safetensors(prompts: &[(&str, &Self)]) -> Vec<u8> {
        let masks: Vec<_> = (prompts.iter())
            .map(|(name, _)| format!("{name}_mask"))
            .collect();
        let tensors = prompts
            .iter()
            .zip(&masks)
            .flat_map(|((name, prompt), mask)| {
                let states = vec![1, prompt.tokens, prompt.channels];
                let of_mask = (mask.as_str(), vec![1, prompt.tokens], &prompt.mask[..]);
                [(*name, states, &prompt.states[..]), of_mask]
            });
        write_f32(&tensors.collect::<Vec<_>>(), None)
    }

    /// Reads prompt `name` of such a file.
    pub fn from_safetensors(bytes: &[u8], name: &str) -> Result<Self> {
        let (shape, states) = read_f32(bytes, name)?;
        let (mask_shape, mask) = read_f32(bytes, &format!("{name}_mask"))?;
        match (shape.as_slice(), mask_shape.as_slice()) {
            (&[1, tokens, channels], &[1, masked]) if tokens == masked => Ok(Self {
                tokens,
                channels,
                states,
                mask,
                cut_from: None,
            }),
            _ => Err(Error::Artifact {
                name: name.to_owned(),
                message: format!(
                    "states [1, L, C] and mask [1, L] were expected, found {shape:?} and {mask_shape:?}"
                ),
            }),
        }
    }
}

/// 8-bit RGB pictures of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Video {
    /// Pictures.
    pub frames: usize,
    /// Pixel rows.
    pub height: usize,
    /// Pixel columns.
    pub width: usize,
    /// Samples, `[frames, height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl Video {
    /// Samples of the pictures, one slice `[height, width, 3]` each.
    pub fn pictures(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.rgb.chunks_exact((3 * self.height * self.width).max(1))
    }

    /// The last `count` pictures.
    pub fn last(mut self, count: usize) -> Self {
        let dropped = self.frames.saturating_sub(count);
        self.rgb.drain(..dropped * 3 * self.height * self.width);
        self.frames -= dropped;
        self
    }
}

/// One window to denoise.
#[derive(Clone, Debug)]
pub struct DenoiseRequest<'a> {
    /// Whose conventions hold; [`crate::config::ModelConfig::pipeline`] has the model's own.
    pub class: PipelineClass,
    /// Latent frames.
    pub latent_frames: usize,
    /// Latent rows: pixels / 32.
    pub latent_height: usize,
    /// Latent columns: pixels / 32.
    pub latent_width: usize,
    /// Frames a second of the video.
    pub fps: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// What was drawn from the seed before this pass.
    pub drawn: &'a Drawn,
    /// Noise levels and guidance.
    pub pass: &'a Pass,
    /// What to show.
    pub prompt: &'a Prompt,
    /// What to steer away from; needed when a guidance scale is above 1.
    pub negative: Option<&'a Prompt>,
    /// Whole window to noise to the first level and start from, instead of from noise alone.
    pub start: Option<&'a Encoded>,
    /// What the window is held to.
    pub held: &'a [Held<'a>],
    /// Where another run of this same request was stopped.
    pub halfway: Option<&'a Halfway>,
}

impl<'a> DenoiseRequest<'a> {
    /// A window of `latent` = [frames, rows, columns] from noise alone, held to nothing.
    pub fn new(
        class: PipelineClass,
        latent: [usize; 3],
        fps: f64,
        seed: u64,
        pass: &'a Pass,
        prompt: &'a Prompt,
    ) -> Self {
        let [latent_frames, latent_height, latent_width] = latent;
        Self {
            class,
            latent_frames,
            latent_height,
            latent_width,
            fps,
            seed,
            drawn: Drawn::nothing(),
            pass,
            prompt,
            negative: None,
            start: None,
            held: &[],
            halfway: None,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Denoised {
    /// The window, normalised.
    pub latents: Latents,
    /// All that was drawn from the seed so far.
    pub drawn: Drawn,
    /// Transformer blocks computed and reused.
    pub blocks: BlockCount,
}

impl Denoised {
    /// A safetensors file with the one tensor `latents`, f32 `[1, C, F, H, W]`; its metadata says
    /// what was drawn.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let drawn = serde_json::to_string(&self.drawn).expect("numbers can be written");
        self.latents.serialise("latents", Some((DRAWN, drawn)))
    }

    /// Latents and what was drawn, from such a file or one without the note.
    pub fn from_safetensors(bytes: &[u8]) -> Result<(Latents, Drawn)> {
        let latents = Latents::from_safetensors(bytes, "latents")?;
        let note = read_note(bytes, "latents", DRAWN)?;
        let drawn = note.map(|text| serde_json::from_str(&text)).transpose();
        let drawn = drawn.map_err(|e| Error::Artifact {
            name: "latents".to_owned(),
            message: format!("its note `{DRAWN}`: {e}"),
        })?;
        Ok((latents, drawn.unwrap_or_default()))
    }
}

/// Evaluations of transformer blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCount {
    /// Computed.
    pub computed: usize,
    /// Taken over from an earlier step.
    pub reused: usize,
}

/// How a window is decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeRequest {
    /// Whose conventions hold.
    pub class: PipelineClass,
    /// Seed of the window.
    pub seed: u64,
    /// What was drawn from the seed before: the decoder's noise comes next. Nothing stands for the
    /// initial noise alone.
    pub drawn: Drawn,
    /// Timestep that the decoder is told (0..1).
    pub timestep: f32,
    /// Share of noise mixed into the latents before decoding (0..1).
    pub noise_scale: f32,
    /// How far large latents are compressed (0..1): `tone_map_compression_ratio`.
    pub tone_map: f32,
}

/// A safetensors file of tensors in f32, by name and shape, and perhaps with a note in its metadata.
pub(crate) fn write_f32(
    tensors: &[(&str, Vec<usize>, &[f32])],
    note: Option<(&str, String)>,
) -> Vec<u8> {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let buffers: Vec<Vec<u8>> = tensors.iter().map(|(_, _, v)| bytes(v)).collect();
    let views = tensors
        .iter()
        .zip(&buffers)
        .map(|((name, shape, _), bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            (*name, view.expect("the values fill the shape"))
        });
    let metadata = note.map(|(name, text)| HashMap::from([(name.to_owned(), text)]));
    safetensors::serialize(views, metadata).expect("plain tensors can be written")
}

/// Note `note` in the metadata of `name`'s file, if it has one.
pub(crate) fn read_note(bytes: &[u8], name: &str, note: &str) -> Result<Option<String>> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| Error::Artifact {
        name: name.to_owned(),
        message: e.to_string(),
    })?;
    let metadata = header.metadata().as_ref();
    Ok(metadata.and_then(|m| m.get(note)).cloned())
}

/// Shape and values of one tensor of a safetensors file.
pub(crate) fn read_f32(bytes: &[u8], name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let artifact = |message: String| Error::Artifact {
        name: name.to_owned(),
        message,
    };
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| artifact(format!("not a safetensors file: {e}")))?;
    let found: HashMap<_, _> = file.iter().collect();
    let Some(view) = found.get(name) else {
        let mut names: Vec<_> = found.keys().copied().collect();
        names.sort_unstable();
        return Err(artifact(format!("the file has only {names:?}")));
    };
    if view.dtype() != Dtype::F32 {
        return Err(artifact(format!(
            "F32 was expected, found {:?}",
            view.dtype()
        )));
    }
    let values = view
        .data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    Ok((view.shape().to_vec(), values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latents() -> Latents {
        let values = (0..2 * 3 * 4).map(|v| v as f32).collect();
        Latents {
            channels: 2,
            frames: 3,
            height: 2,
            width: 2,
            values,
        }
    }

    #[test]
    fn latents_survive_files_and_token_order() {
        let x = latents();
        let file = x.to_safetensors("latents");
        assert_eq!(Latents::from_safetensors(&file, "latents").unwrap(), x);
        let tokens = x.to_tokens();
        assert_eq!(&tokens[..4], [0.0, 12.0, 1.0, 13.0]);
        assert_eq!(Latents::from_tokens(&tokens, 2, 3, 2, 2), x);
        let last = x.slice(2, 3);
        assert_eq!(last.values, [8.0, 9.0, 10.0, 11.0, 20.0, 21.0, 22.0, 23.0]);
    }

    #[test]
    fn what_was_drawn_is_stored_with_the_latents() {
        let drawn = Drawn {
            generator: vec![24, 7],
            ambient: vec![3],
        };
        let denoised = Denoised {
            latents: latents(),
            drawn: drawn.clone(),
            blocks: BlockCount::default(),
        };
        let (x, found) = Denoised::from_safetensors(&denoised.to_safetensors()).unwrap();
        assert_eq!((x, found), (latents(), drawn));
        let plain = latents().to_safetensors("latents");
        let (_, found) = Denoised::from_safetensors(&plain).unwrap();
        assert_eq!(found, Drawn::NOTHING);
    }

    #[test]
    fn artifacts_that_do_not_fit_are_named() {
        let file = latents().to_safetensors("latents");
        let error = Latents::from_safetensors(&file, "tail")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("tail") && error.contains("latents"),
            "{error}"
        );
        assert!(Prompt::from_safetensors(&file, "latents").is_err());
        assert!(Latents::from_safetensors(&file[..20], "latents").is_err());
    }

    #[test]
    fn prompts_survive_files() {
        let prompt = Prompt {
            tokens: 2,
            channels: 3,
            states: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            mask: vec![1.0, 0.0],
            cut_from: None,
        };
        let file = Prompt::to_safetensors(&[("prompt", &prompt), ("negative", &prompt)]);
        assert_eq!(Prompt::from_safetensors(&file, "negative").unwrap(), prompt);
    }
}
