//! `LTXVideoDecoder3d`.

use super::blocks::{NORM_EPS, Op, ResnetBlock, ResnetLines, load_resnets, padding, vector};
use super::stream::Line;
use crate::band::Band;
use crate::config::VaeConfig;
use crate::embeddings::TimestepEmbedder;
use crate::error::{InPart, Result};
use crate::weights::Weights;
use longtake_tensor::{Backend, ChannelModulation, Loader, Shape, Tensor, TimePadding};

/// `[st, sh, sw]` of every upsampler.
const STRIDE: [usize; 3] = [2, 2, 2];

/// `LTXVideoUpsampler3d`: a convolution spread over space and time, plus the spread input.
struct Upsampler<B: Loader> {
    conv: B::Conv,
    residual: bool,
    padding: TimePadding,
}

impl<B: Backend> Upsampler<B> {
    fn forward(&self, b: &Band<'_, B>, x: &B::Tensor) -> Op<B::Tensor> {
        let h = b.conv3d(x, &self.conv, self.padding)?;
        b.depth_to_space_add(&h, self.residual.then_some(x), STRIDE, true)
    }

    /// The same for a part of the frames.
    fn push(
        &self,
        b: &Band<'_, B>,
        lines: &mut [Line<B::Tensor>; 2],
        x: B::Tensor,
        ends: bool,
    ) -> Op<Option<B::Tensor>> {
        let [conv, skip] = lines;
        if self.residual {
            skip.push(b, x.clone())?;
        }
        let begins = conv.is_new();
        let Some(h) = conv.convolve(b, &self.conv, x, ends, None)? else {
            return Ok(None);
        };
        let skip = self.residual.then(|| skip.take(b, h.shape().dims()[0]));
        let skip = skip.transpose()?;
        b.depth_to_space_add(&h, skip.as_ref(), STRIDE, begins)
            .map(Some)
    }
}

/// The frames that a stage keeps for the next part.
struct StageLines<T> {
    upsampler: [Line<T>; 2],
    resnets: Vec<ResnetLines<T>>,
}

/// `LTXVideoMidBlock3d`, or with an upsampler `LTXVideoUpBlock3d`.
struct Stage<B: Loader> {
    time_embedder: Option<TimestepEmbedder<B>>,
    upsampler: Option<Upsampler<B>>,
    resnets: Vec<ResnetBlock<B>>,
}

impl<B: Loader> Stage<B> {
    fn load(
        b: &B,
        w: &Weights,
        name: &str,
        layers: usize,
        channels: usize,
        config: &VaeConfig,
    ) -> Result<Self> {
        let timestep = config.timestep_conditioning;
        let embedder = format!("{name}.time_embedder");
        let embedder = timestep.then(|| TimestepEmbedder::load(b, w, &embedder, 4 * channels));
        Ok(Self {
            time_embedder: embedder.transpose()?,
            upsampler: None,
            resnets: load_resnets(
                b,
                w,
                name,
                layers,
                channels,
                config.decoder_causal,
                timestep,
            )?,
        })
    }
}

impl<B: Backend> Stage<B> {
    fn forward(&self, b: &Band<'_, B>, mut x: B::Tensor, timestep: f32) -> Op<B::Tensor> {
        if let Some(upsampler) = &self.upsampler {
            x = upsampler.forward(b, &x)?;
        }
        let temb = self.temb(b, timestep)?;
        self.resnets
            .iter()
            .try_fold(x, |x, resnet| resnet.forward(b, x, temb.as_ref()))
    }

    fn temb(&self, b: &Band<'_, B>, timestep: f32) -> Op<Option<B::Tensor>> {
        let embedder = self.time_embedder.as_ref();
        embedder.map(|e| e.forward(b, &[timestep])).transpose()
    }

    fn lines(&self) -> StageLines<B::Tensor> {
        let resnets = self.resnets.iter().map(|_| ResnetLines::default());
        StageLines {
            upsampler: <[Line<B::Tensor>; 2]>::default(),
            resnets: resnets.collect(),
        }
    }

    /// The same for a part of the frames.
    fn push(
        &self,
        b: &Band<'_, B>,
        lines: &mut StageLines<B::Tensor>,
        x: B::Tensor,
        ends: bool,
        timestep: f32,
    ) -> Op<Option<B::Tensor>> {
        let mut x = match &self.upsampler {
            Some(upsampler) => upsampler.push(b, &mut lines.upsampler, x, ends)?,
            None => Some(x),
        };
        let temb = self.temb(b, timestep)?;
        for (resnet, lines) in self.resnets.iter().zip(&mut lines.resnets) {
            let Some(part) = x else { return Ok(None) };
            x = resnet.push(b, lines, part, ends, temb.as_ref())?;
        }
        Ok(x)
    }
}

/// The last modulation, with timestep conditioning.
struct FinalEmbedding<B: Loader> {
    time_embedder: TimestepEmbedder<B>,
    /// `[2, C]`: shift, scale.
    scale_shift_table: B::Tensor,
    /// 1000: timesteps come in 0..1.
    multiplier: f32,
}

/// Normalised latents to pictures.
pub struct Decoder<B: Loader> {
    conv_in: B::Conv,
    stages: Vec<Stage<B>>,
    last: Option<FinalEmbedding<B>>,
    conv_out: B::Conv,
    /// `std / scaling` and `mean` by channel.
    denormalise: [B::Tensor; 2],
    patch: usize,
    padding: TimePadding,
    /// Of the activations of each stage.
    channels: Vec<usize>,
}

impl<B: Loader> Decoder<B> {
    /// Loads the decoder's part of folder `vae`.
    pub fn load(b: &B, w: &Weights, config: &VaeConfig) -> Result<Self> {
        let (causal, latent) = (config.decoder_causal, config.latent_channels);
        // Configuration lists blocks from the outside in, the decoder runs from the inside out.
        let widths: Vec<usize> = config
            .decoder_block_out_channels
            .iter()
            .rev()
            .copied()
            .collect();
        let layers: Vec<usize> = config
            .decoder_layers_per_block
            .iter()
            .rev()
            .copied()
            .collect();
        let factors = config.upsample_factor.iter().rev();
        let residuals = config.upsample_residual.iter().rev();
        let mut stages = vec![Stage::load(
            b,
            w,
            "decoder.mid_block",
            layers[0],
            widths[0],
            config,
        )?];
        let mut channels = widths[0];
        let mut of_stages = vec![channels];
        for (i, ((width, factor), &residual)) in
            widths.iter().zip(factors).zip(residuals).enumerate()
        {
            let name = format!("decoder.up_blocks.{i}");
            let to = width / factor;
            let spread = to * factor * STRIDE.iter().product::<usize>() / factor;
            let conv = format!("{name}.upsamplers.0.conv.conv");
            let conv = w.conv(b, &conv, spread, to * factor, 3)?;
            let mut stage = Stage::load(b, w, &name, layers[i + 1], to, config)?;
            stage.upsampler = Some(Upsampler {
                conv,
                residual,
                padding: padding(causal),
            });
            stages.push(stage);
            channels = to;
            of_stages.push(channels);
        }
        let last = config.timestep_conditioning.then(|| -> Result<_> {
            Ok(FinalEmbedding {
                time_embedder: TimestepEmbedder::load(b, w, "decoder.time_embedder", 2 * channels)?,
                scale_shift_table: w.tensor(b, "decoder.scale_shift_table", &[2, channels])?,
                multiplier: w.values("decoder.timestep_scale_multiplier", &[])?[0],
            })
        });
        let std = w.values("latents_std", &[latent])?;
        let scale: Vec<f32> = std.iter().map(|std| std / config.scaling_factor).collect();
        let mean = w.values("latents_mean", &[latent])?;
        let upload = |values: &[f32]| vector(b, values).in_part(|| "latent statistics".into());
        let patch = config.patch_size;
        Ok(Self {
            conv_in: w.conv(b, "decoder.conv_in.conv", widths[0], latent, 3)?,
            stages,
            last: last.transpose()?,
            conv_out: w.conv(b, "decoder.conv_out.conv", 3 * patch * patch, channels, 3)?,
            denormalise: [upload(&scale)?, upload(&mean)?],
            patch,
            padding: padding(causal),
            channels: of_stages,
        })
    }

    /// Whether the decoder is told a timestep, and sees noise accordingly.
    pub fn is_timestep_conditioned(&self) -> bool {
        self.last.is_some()
    }
}

impl<B: Backend> Decoder<B> {
    /// The VAE's own latents for normalised ones.
    pub fn denormalise(&self, b: &B, latents: &B::Tensor) -> Result<B::Tensor> {
        let [scale, shift] = &self.denormalise;
        b.channel_affine(latents, scale, shift)
            .in_part(|| "VAE decoder".into())
    }

    /// Pictures `[8 (F - 1) + 1, 32 H, 32 W, 3]` around -1..1 for the VAE's own latents
    /// `[F, H, W, C]`; `timestep` in 0..1.
    pub fn forward(&self, b: &B, latents: &B::Tensor, timestep: f32) -> Result<B::Tensor> {
        self.decode(&Band::alone(b), latents, timestep)
    }

    /// The same for a band of the rows.
    fn decode(&self, b: &Band<'_, B>, latents: &B::Tensor, timestep: f32) -> Result<B::Tensor> {
        let timestep = self.scaled(timestep);
        let mut x = self.enter(b, latents)?;
        for (i, stage) in self.stages.iter().enumerate() {
            x = stage.forward(b, x, timestep).in_part(|| block(i))?;
        }
        let finish = || {
            let x = self.normed(b, &x, timestep)?;
            let x = b.conv3d(&x, &self.conv_out, self.padding)?;
            b.unpatchify(&x, self.patch)
        };
        finish().in_part(part)
    }

    /// The same pictures in parts of some frames each, given to `take` in order, when no activation
    /// shall have more than about `values_max` values.
    pub fn forward_in_parts(
        &self,
        b: &B,
        latents: &B::Tensor,
        timestep: f32,
        values_max: usize,
        take: &mut dyn FnMut(B::Tensor) -> Result<()>,
    ) -> Result<()> {
        self.decode_in_parts(&Band::alone(b), latents, timestep, values_max, take)
    }

    /// The same for a band of the rows; all ranks take the same parts.
    pub(crate) fn decode_in_parts(
        &self,
        b: &Band<'_, B>,
        latents: &B::Tensor,
        timestep: f32,
        values_max: usize,
        take: &mut dyn FnMut(B::Tensor) -> Result<()>,
    ) -> Result<()> {
        let Some((first, each)) = self.parts(b.tallest(latents.shape()), values_max) else {
            return take(self.decode(b, latents, timestep)?);
        };
        let timestep = self.scaled(timestep);
        let mut x = self.enter(b, latents)?;
        for (i, stage) in self.stages[..first].iter().enumerate() {
            x = stage.forward(b, x, timestep).in_part(|| block(i))?;
        }
        let mut lines: Vec<_> = self.stages[first..].iter().map(Stage::lines).collect();
        let mut last = Line::default();
        let count = x.shape().dims()[0];
        for from in (0..count).step_by(each) {
            let to = (from + each).min(count);
            let ends = to == count;
            let mut x = Some(b.frames(&x, from..to).in_part(part)?);
            for (i, lines) in lines.iter_mut().enumerate() {
                let Some(part) = x else { break };
                let stage = &self.stages[first + i];
                let pushed = stage.push(b, lines, part, ends, timestep);
                x = pushed.in_part(|| block(first + i))?;
            }
            let Some(x) = x else { continue };
            let mut finish = || {
                let x = self.normed(b, &x, timestep)?;
                let x = last.convolve(b, &self.conv_out, x, ends, None)?;
                x.map(|x| b.unpatchify(&x, self.patch)).transpose()
            };
            if let Some(pictures) = finish().in_part(part)? {
                take(pictures)?;
            }
        }
        Ok(())
    }

    /// The first stage that takes its frames in parts, and frames of its input a part; `None` where all
    /// activations are small enough, and in decoders that see no later frame.
    fn parts(&self, latents: Shape, values_max: usize) -> Option<(usize, usize)> {
        let &[mut frames, mut height, mut width, _] = latents.dims() else {
            return None;
        };
        if self.padding != TimePadding::Symmetric {
            return None;
        }
        let mut found = None;
        let mut scale = 1;
        for (i, (stage, &channels)) in self.stages.iter().zip(&self.channels).enumerate() {
            let before = frames;
            if stage.upsampler.is_some() {
                let [st, sh, sw] = STRIDE;
                (frames, height, width) = (frames * st - (st - 1), height * sh, width * sw);
                scale *= st;
            }
            let values = frames * height * width * channels;
            if values > values_max && found.is_none() && stage.upsampler.is_some() {
                found = Some((i, before, scale / STRIDE[0]));
            }
            if let (Some((first, all, begun_at)), true) = (found, i + 1 == self.stages.len()) {
                // By the largest stage, which is the last.
                let fitting = values_max / (height * width * channels).max(1);
                let each = (fitting / (scale / begun_at)).max(1);
                return (each < all).then_some((first, each));
            }
        }
        None
    }

    fn scaled(&self, timestep: f32) -> f32 {
        self.last
            .as_ref()
            .map_or(0.0, |last| timestep * last.multiplier)
    }

    fn enter(&self, b: &Band<'_, B>, latents: &B::Tensor) -> Result<B::Tensor> {
        b.conv3d(latents, &self.conv_in, self.padding).in_part(part)
    }

    fn normed(&self, b: &B, x: &B::Tensor, timestep: f32) -> Op<B::Tensor> {
        let Some(last) = &self.last else {
            return b.pixel_norm_silu(x, NORM_EPS, None);
        };
        let temb = last.time_embedder.forward(b, &[timestep])?;
        let table = b.add_table(&temb, &last.scale_shift_table)?;
        let table = &b.reshape(&table, last.scale_shift_table.shape())?;
        let modulation = ChannelModulation {
            table,
            shift: 0,
            scale: 1,
        };
        b.pixel_norm_silu(x, NORM_EPS, Some(&modulation))
    }
}

fn part() -> String {
    "VAE decoder".to_owned()
}

fn block(i: usize) -> String {
    format!("VAE decoder block {i}")
}
