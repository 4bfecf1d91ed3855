//! Between the passes of a multi-scale render: `LatentUpsampler` of the official code
//! (`models/autoencoders/latent_upsampler.py`), which doubles the sides of latents, and what brings
//! its result back to the statistics of the first pass.

use crate::band::Band;
use crate::error::{Error, InPart, Result};
use crate::guidance::mean_and_deviation;
use crate::model::Unloaded;
use crate::names::Part;
use crate::shard::Team;
use crate::types::Latents;
use crate::weights::{Scrutiny, Weights};
use longtake_tensor::{Backend, GroupNorm, InUse, Loader, Shape, Tensor, TimePadding};
use serde::Deserialize;
use std::path::Path;

type Op<T> = longtake_tensor::Result<T>;

/// Groups and epsilon of all norms.
const GROUPS: usize = 32;
const NORM_EPS: f32 = 1e-5;
/// How far an upsampler spreads channels over frames, rows and columns.
const STRIDE: [usize; 3] = [1, 2, 2];

/// `config` in the file's metadata.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the official code's")]
pub struct UpsamplerConfig {
    pub in_channels: usize,
    pub mid_channels: usize,
    pub num_blocks_per_stage: usize,
    pub dims: usize,
    pub spatial_upsample: bool,
    pub temporal_upsample: bool,
}

impl Default for UpsamplerConfig {
    fn default() -> Self {
        Self {
            in_channels: 128,
            mid_channels: 512,
            num_blocks_per_stage: 4,
            dims: 3,
            spatial_upsample: true,
            temporal_upsample: false,
        }
    }
}

impl UpsamplerConfig {
    fn check(&self, path: &Path) -> Result<()> {
        let refuse = |key: &str, value: String, supported: &str| Error::Unsupported {
            path: path.to_owned(),
            key: key.into(),
            value,
            supported: supported.into(),
        };
        if !self.spatial_upsample || self.temporal_upsample {
            let rule = "only a spatial upscaler fits between the passes";
            let value = self.temporal_upsample.to_string();
            return Err(refuse("temporal_upsample", value, rule));
        }
        if !(2..=3).contains(&self.dims) {
            return Err(refuse(
                "dims",
                self.dims.to_string(),
                "2 and 3 are supported",
            ));
        }
        if self.in_channels == 0
            || self.mid_channels == 0
            || !self.mid_channels.is_multiple_of(GROUPS)
        {
            let rule = "multiples of 32 are supported";
            return Err(refuse("mid_channels", self.mid_channels.to_string(), rule));
        }
        Ok(())
    }
}

/// What all layers of an upsampler are loaded with.
struct Source<'a, B: Loader> {
    b: &'a B,
    weights: &'a Weights,
    config: &'a UpsamplerConfig,
}

impl<B: Loader> Source<'_, B> {
    fn conv(&self, name: &str, out: usize, channels: usize) -> Result<B::Conv> {
        match self.config.dims {
            2 => self.weights.conv2d(self.b, name, out, channels),
            _ => self.weights.conv(self.b, name, out, channels, 3),
        }
    }

    fn norm(&self, name: &str) -> Result<Norm<B>> {
        let side = |side: &str| {
            let name = format!("{name}.{side}");
            self.weights
                .tensor(self.b, &name, &[self.config.mid_channels])
        };
        Ok(Norm {
            weight: side("weight")?,
            bias: side("bias")?,
            by_frame: self.config.dims == 2,
        })
    }

    fn blocks(&self, name: &str) -> Result<Vec<ResBlock<B>>> {
        let mid = self.config.mid_channels;
        let block = |i| {
            let part = |part: &str| format!("{name}.{i}.{part}");
            Ok(ResBlock {
                conv1: self.conv(&part("conv1"), mid, mid)?,
                norm1: self.norm(&part("norm1"))?,
                conv2: self.conv(&part("conv2"), mid, mid)?,
                norm2: self.norm(&part("norm2"))?,
            })
        };
        (0..self.config.num_blocks_per_stage).map(block).collect()
    }
}

struct Norm<B: Loader> {
    weight: B::Tensor,
    bias: B::Tensor,
    by_frame: bool,
}

impl<B: Backend> Norm<B> {
    /// `silu(norm(x) + skip)`.
    fn silu(&self, b: &Band<'_, B>, x: &B::Tensor, skip: Option<&B::Tensor>) -> Op<B::Tensor> {
        let norm = GroupNorm {
            groups: GROUPS,
            eps: NORM_EPS,
            weight: &self.weight,
            bias: &self.bias,
            by_frame: self.by_frame,
        };
        b.group_norm_silu(x, &norm, skip)
    }
}

struct ResBlock<B: Loader> {
    conv1: B::Conv,
    norm1: Norm<B>,
    conv2: B::Conv,
    norm2: Norm<B>,
}

impl<B: Backend> ResBlock<B> {
    fn forward(&self, b: &Band<'_, B>, x: &B::Tensor) -> Op<B::Tensor> {
        let h = b.conv3d(x, &self.conv1, TimePadding::Zeros)?;
        let h = self.norm1.silu(b, &h, None)?;
        let h = b.conv3d(&h, &self.conv2, TimePadding::Zeros)?;
        self.norm2.silu(b, &h, Some(x))
    }
}

/// Its layers.
struct Layers<B: Loader> {
    initial_conv: B::Conv,
    initial_norm: Norm<B>,
    res_blocks: Vec<ResBlock<B>>,
    upsampler: B::Conv,
    post_upsample_res_blocks: Vec<ResBlock<B>>,
    final_conv: B::Conv,
}

/// The loaded spatial latent upscaler.
pub struct LatentUpsampler<B: Loader> {
    layers: longtake_tensor::Part<Layers<B>>,
    config: UpsamplerConfig,
}

impl<B: Loader> LatentUpsampler<B> {
    /// Loads a file as `ltxv-spatial-upscaler-0.9.8.safetensors`: its metadata has the
    /// configuration.
    pub fn load(path: &Path, b: &B, scrutiny: Scrutiny) -> Result<Self> {
        let weights = Weights::open_file(path, Part::Upsampler, scrutiny)?;
        let config: UpsamplerConfig = weights.metadata_json("config")?;
        config.check(path)?;
        let source = Source {
            b,
            weights: &weights,
            config: &config,
        };
        let (channels, mid) = (config.in_channels, config.mid_channels);
        let layers = b.part(|| {
            Ok::<_, Error>(Layers {
                initial_conv: source.conv("initial_conv", mid, channels)?,
                initial_norm: source.norm("initial_norm")?,
                res_blocks: source.blocks("res_blocks")?,
                upsampler: weights.conv2d(b, "upsampler.0", 4 * mid, mid)?,
                post_upsample_res_blocks: source.blocks("post_upsample_res_blocks")?,
                final_conv: source.conv("final_conv", channels, mid)?,
            })
        })?;
        weights.check_all_asked()?;
        Ok(Self { layers, config })
    }

    /// Keeps it on the device: what is computed with it has to be done before the result is dropped.
    ///
    /// # Errors
    /// When the device has no room for it.
    fn in_use(&self) -> Result<InUse<'_, Layers<B>>> {
        self.layers.in_use().in_part(|| "latent upscaler".into())
    }

    /// Configuration that it was loaded with.
    pub fn config(&self) -> &UpsamplerConfig {
        &self.config
    }
}

/// Checks an upscaler's configuration and the headers of its weights, or all of them, without
/// loading it.
pub fn check_upscaler(path: &Path, scrutiny: Scrutiny) -> Result<()> {
    LatentUpsampler::load(path, &Unloaded, scrutiny).map(drop)
}

impl<B: Backend> LatentUpsampler<B> {
    /// Values `[F, 2 H, 2 W, C]` for the VAE's own latents `[F, H, W, C]`.
    pub fn forward(&self, b: &B, latents: &B::Tensor) -> Result<Vec<f32>> {
        self.upsample(b, None, latents, |large| {
            b.download(&large).in_part(|| "latent upscaler".into())
        })
    }

    /// The same by the ranks of a team, for `then` to do something with.
    pub(crate) fn upsample<T>(
        &self,
        b: &B,
        team: Option<&Team<B>>,
        latents: &B::Tensor,
        then: impl FnOnce(B::Tensor) -> Result<T>,
    ) -> Result<T> {
        let layers = self.in_use()?;
        let channels = latents.shape().last();
        if channels != self.config.in_channels {
            let message = format!(
                "it takes latents of {} channels, the model has {channels}",
                self.config.in_channels
            );
            return Err(Error::Request {
                what: "latent upscaler",
                message,
            });
        }
        let spread = || {
            let &[frames, height, width, _] = latents.shape().dims() else {
                let rule = "[F, H, W, C] is needed";
                return Err(longtake_tensor::Error::operand(
                    "upscale",
                    latents.shape(),
                    rule,
                ));
            };
            let band = Band::new(b, team, height);
            let own = match band.is_idle() {
                true => None,
                false => Some(layers.spread(&band, &band.own(latents.clone(), 1)?)?),
            };
            band.whole(own, Shape::from([frames, 2 * height, 2 * width, channels]))
        };
        then(spread().in_part(|| "latent upscaler".into())?)
    }
}

impl<B: Backend> Layers<B> {
    fn spread(&self, b: &Band<'_, B>, latents: &B::Tensor) -> Op<B::Tensor> {
        let x = b.conv3d(latents, &self.initial_conv, TimePadding::Zeros)?;
        let mut x = self.initial_norm.silu(b, &x, None)?;
        for block in &self.res_blocks {
            x = block.forward(b, &x)?;
        }
        let x = b.conv3d(&x, &self.upsampler, TimePadding::Zeros)?;
        let mut x = b.depth_to_space_add(&x, None, STRIDE, true)?;
        for block in &self.post_upsample_res_blocks {
            x = block.forward(b, &x)?;
        }
        b.conv3d(&x, &self.final_conv, TimePadding::Zeros)
    }
}

/// Latents on the backend, `[F, H, W, C]`.
pub(crate) fn upload<B: Backend>(b: &B, latents: &Latents) -> Op<B::Tensor> {
    let shape = [
        latents.frames,
        latents.height,
        latents.width,
        latents.channels,
    ];
    b.upload(Shape::from(shape), &latents.to_tokens())
}

/// Adaptive instance normalisation: gives every channel of `latents` the mean and the standard
/// deviation (with Bessel's correction) that it has in `reference`.
pub(crate) fn adain(latents: &mut Latents, reference: &Latents) {
    let size = |l: &Latents| l.frames * l.height * l.width;
    let (own, other) = (size(latents), size(reference));
    let channels = latents.values.chunks_exact_mut(own);
    for (values, reference) in channels.zip(reference.values.chunks_exact(other)) {
        let ((mean, deviation), (target_mean, target)) =
            (mean_and_deviation(values), mean_and_deviation(reference));
        // A single cell has no deviation to take over.
        if deviation > 0.0 && target.is_finite() {
            let (mean, deviation) = (mean as f32, deviation as f32);
            for v in values {
                *v = (*v - mean) / deviation * target as f32 + target_mean as f32;
            }
        }
    }
}
