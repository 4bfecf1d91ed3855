//! `LTXVideoDecoder3d`.

use super::blocks::{NORM_EPS, Op, ResnetBlock, load_resnets, padding, vector};
use crate::config::VaeConfig;
use crate::embeddings::TimestepEmbedder;
use crate::error::{InPart, Result};
use crate::weights::Weights;
use longtake_tensor::{Backend, ChannelModulation, Loader, Tensor, TimePadding};

/// `[st, sh, sw]` of every upsampler.
const STRIDE: [usize; 3] = [2, 2, 2];

/// `LTXVideoUpsampler3d`: a convolution spread over space and time, plus the spread input.
struct Upsampler<B: Loader> {
    conv: B::Conv,
    residual: bool,
    padding: TimePadding,
}

impl<B: Backend> Upsampler<B> {
    fn forward(&self, b: &B, x: &B::Tensor) -> Op<B::Tensor> {
        let h = b.conv3d(x, &self.conv, self.padding)?;
        b.depth_to_space_add(&h, self.residual.then_some(x), STRIDE)
    }
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
    fn forward(&self, b: &B, mut x: B::Tensor, timestep: f32) -> Op<B::Tensor> {
        if let Some(upsampler) = &self.upsampler {
            x = upsampler.forward(b, &x)?;
        }
        let temb = self
            .time_embedder
            .as_ref()
            .map(|e| e.forward(b, &[timestep]))
            .transpose()?;
        self.resnets
            .iter()
            .try_fold(x, |x, resnet| resnet.forward(b, x, temb.as_ref()))
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
        let timestep = self
            .last
            .as_ref()
            .map_or(0.0, |last| timestep * last.multiplier);
        let part = || "VAE decoder".to_owned();
        let mut x = b
            .conv3d(latents, &self.conv_in, self.padding)
            .in_part(part)?;
        for (i, stage) in self.stages.iter().enumerate() {
            x = stage
                .forward(b, x, timestep)
                .in_part(|| format!("VAE decoder block {i}"))?;
        }
        self.finish(b, x, timestep).in_part(part)
    }

    fn finish(&self, b: &B, x: B::Tensor, timestep: f32) -> Op<B::Tensor> {
        let x = match &self.last {
            None => b.pixel_norm_silu(&x, NORM_EPS, None)?,
            Some(last) => {
                let temb = last.time_embedder.forward(b, &[timestep])?;
                let table = b.add_table(&temb, &last.scale_shift_table)?;
                let table = &b.reshape(&table, last.scale_shift_table.shape())?;
                let modulation = ChannelModulation {
                    table,
                    shift: 0,
                    scale: 1,
                };
                b.pixel_norm_silu(&x, NORM_EPS, Some(&modulation))?
            }
        };
        let x = b.conv3d(&x, &self.conv_out, self.padding)?;
        b.unpatchify(&x, self.patch)
    }
}
