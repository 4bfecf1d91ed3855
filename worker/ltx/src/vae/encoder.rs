//! `LTXVideoEncoder3d`.

use super::blocks::{NORM_EPS, Op, ResnetBlock, load_resnets, padding, vector};
use crate::band::Band;
use crate::config::{VaeConfig, downsample_stride};
use crate::error::{InPart, Result};
use crate::weights::Weights;
use longtake_tensor::{Backend, Loader, TimePadding};

/// `LTXVideoDownsampler3d`: a convolution folded into channels, plus the folded input averaged.
struct Downsampler<B: Loader> {
    conv: B::Conv,
    stride: [usize; 3],
    padding: TimePadding,
}

impl<B: Backend> Downsampler<B> {
    fn forward(&self, b: &Band<'_, B>, x: B::Tensor) -> Op<B::Tensor> {
        let x = match self.stride[0] {
            1 => x,
            st => b.repeat_first_frame(&x, st - 1)?,
        };
        let h = b.conv3d(&x, &self.conv, self.padding)?;
        b.space_to_depth_add(&h, &x, self.stride)
    }
}

struct DownBlock<B: Loader> {
    resnets: Vec<ResnetBlock<B>>,
    downsampler: Downsampler<B>,
}

impl<B: Loader> DownBlock<B> {
    fn load(b: &B, w: &Weights, i: usize, config: &VaeConfig) -> Result<Self> {
        let name = format!("encoder.down_blocks.{i}");
        let (from, to) = (
            config.block_out_channels[i],
            config.block_out_channels[i + 1],
        );
        let stride = downsample_stride(&config.downsample_type[i]).unwrap_or([1; 3]);
        let folded = to / stride.iter().product::<usize>();
        let causal = config.encoder_causal;
        Ok(Self {
            resnets: load_resnets(b, w, &name, config.layers_per_block[i], from, causal, false)?,
            downsampler: Downsampler {
                conv: w.conv(
                    b,
                    &format!("{name}.downsamplers.0.conv.conv"),
                    folded,
                    from,
                    3,
                )?,
                stride,
                padding: padding(causal),
            },
        })
    }
}

/// Pictures to normalised latents.
pub struct Encoder<B: Loader> {
    conv_in: B::Conv,
    down_blocks: Vec<DownBlock<B>>,
    mid_block: Vec<ResnetBlock<B>>,
    conv_out: B::Conv,
    /// `scaling / std` and `-mean scaling / std` by channel.
    normalise: [B::Tensor; 2],
    deviation_scale: Vec<f32>,
    latent_channels: usize,
    patch: usize,
    padding: TimePadding,
}

impl<B: Loader> Encoder<B> {
    /// Loads the encoder's part of folder `vae`.
    pub fn load(b: &B, w: &Weights, config: &VaeConfig) -> Result<Self> {
        let (channels, causal) = (&config.block_out_channels, config.encoder_causal);
        let patch = config.patch_size;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let blocks = config.down_block_types.len();
        let latent = config.latent_channels;
        let down_blocks = (0..blocks)
            .map(|i| DownBlock::load(b, w, i, config))
            .collect::<Result<_>>()?;
        let mid_layers = config.layers_per_block[blocks];
        let mean = w.values("latents_mean", &[latent])?;
        let std = w.values("latents_std", &[latent])?;
        let scale: Vec<f32> = std.iter().map(|std| config.scaling_factor / std).collect();
        let shift: Vec<f32> = mean
            .iter()
            .zip(&scale)
            .map(|(mean, scale)| -mean * scale)
            .collect();
        let upload = |values: &[f32]| vector(b, values).in_part(|| "latent statistics".into());
        Ok(Self {
            conv_in: w.conv(b, "encoder.conv_in.conv", first, 3 * patch * patch, 3)?,
            down_blocks,
            mid_block: load_resnets(b, w, "encoder.mid_block", mid_layers, last, causal, false)?,
            conv_out: w.conv(b, "encoder.conv_out.conv", latent + 1, last, 3)?,
            normalise: [upload(&scale)?, upload(&shift)?],
            deviation_scale: scale,
            latent_channels: latent,
            patch,
            padding: padding(causal),
        })
    }
}

impl<B: Backend> Encoder<B> {
    /// Mode of the distribution, normalised, `[F', H', W', C]`, and the logarithm of the variance
    /// that all channels of a cell share, `[F' H' W']`, for pictures `[F, H, W, 3]` in -1..1.
    pub fn forward(&self, b: &B, pictures: &B::Tensor) -> Result<(B::Tensor, Vec<f32>)> {
        let distribution = self.encode(&Band::alone(b), pictures)?;
        self.finish(b, &distribution).in_part(part)
    }

    /// Mode and logarithm of the variance as the last convolution gives them, for a band of the
    /// rows.
    pub(crate) fn encode(&self, b: &Band<'_, B>, pictures: &B::Tensor) -> Result<B::Tensor> {
        let x = b.patchify(pictures, self.patch).in_part(part)?;
        let mut x = b.conv3d(&x, &self.conv_in, self.padding).in_part(part)?;
        for (i, block) in self.down_blocks.iter().enumerate() {
            let part = || format!("VAE encoder block {i}");
            for resnet in &block.resnets {
                x = resnet.forward(b, x, None).in_part(part)?;
            }
            x = block.downsampler.forward(b, x).in_part(part)?;
        }
        for resnet in &self.mid_block {
            x = resnet
                .forward(b, x, None)
                .in_part(|| "VAE encoder middle block".into())?;
        }
        let last = || {
            let x = b.pixel_norm_silu(&x, NORM_EPS, None)?;
            b.conv3d(&x, &self.conv_out, self.padding)
        };
        last().in_part(part)
    }

    /// Channels that [`Self::encode`] gives.
    pub(crate) fn channels_out(&self) -> usize {
        self.latent_channels + 1
    }

    /// What [`Self::forward`] gives, for what [`Self::encode`] gave.
    pub(crate) fn finish(&self, b: &B, x: &B::Tensor) -> Op<(B::Tensor, Vec<f32>)> {
        let cells = b.download(x)?;
        let cells = cells.chunks_exact(self.latent_channels + 1);
        let log_variance = cells.map(|cell| cell[self.latent_channels]).collect();
        let mean = b.first_channels(x, self.latent_channels)?;
        let [scale, shift] = &self.normalise;
        Ok((b.channel_affine(&mean, scale, shift)?, log_variance))
    }

    /// Normalised latents for the VAE's own, `[F, H, W, C]`.
    pub fn normalise(&self, b: &B, latents: &B::Tensor) -> Result<B::Tensor> {
        let [scale, shift] = &self.normalise;
        b.channel_affine(latents, scale, shift)
            .in_part(|| "latent statistics".into())
    }

    /// By channel, what a standard deviation is multiplied with for normalised latents.
    pub fn deviation_scale(&self) -> &[f32] {
        &self.deviation_scale
    }
}

fn part() -> String {
    "VAE encoder".to_owned()
}
