//! Configuration of a Diffusers folder. Absent keys take diffusers' defaults (0.33 and later);
//! what this crate does not compute is refused here, so that no model renders noise.

use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Reads and parses `path`.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::ConfigSyntax {
        path: path.to_owned(),
        source,
    })
}

/// Names the file of a refused key.
struct Checker<'a>(&'a Path);

impl Checker<'_> {
    fn require(
        &self,
        holds: bool,
        key: &str,
        value: impl std::fmt::Debug,
        supported: &str,
    ) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(Error::Unsupported {
            path: self.0.to_owned(),
            key: key.to_owned(),
            value: format!("{value:?}"),
            supported: supported.to_owned(),
        })
    }
}

/// The diffusers pipeline that the folder is made for. They differ in rope times, in the mask
/// inside T5 and in the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineClass {
    /// `LTXPipeline`: latent frame f is at 8 f frames; T5 sees padding; flow-match schedule with
    /// dynamic shift.
    Plain,
    /// `LTXConditionPipeline`: latent frame f is at max(0, 8 f - 7) frames; padding is masked in
    /// T5; linear-quadratic schedule.
    Condition,
}

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class_name: String,
}

impl PipelineClass {
    /// Reads `model_index.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let index: ModelIndex = read_json(path)?;
        match index.class_name.as_str() {
            "LTXPipeline" => Ok(Self::Plain),
            "LTXConditionPipeline" => Ok(Self::Condition),
            other => Err(Error::Unsupported {
                path: path.to_owned(),
                key: "_class_name".into(),
                value: other.to_owned(),
                supported: "LTXPipeline and LTXConditionPipeline are supported".into(),
            }),
        }
    }
}

/// `transformer/config.json` of `LTXVideoTransformer3DModel`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are diffusers'")]
pub struct TransformerConfig {
    pub in_channels: usize,
    pub out_channels: Option<usize>,
    pub patch_size: usize,
    pub patch_size_t: usize,
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub cross_attention_dim: usize,
    pub num_layers: usize,
    pub activation_fn: String,
    pub qk_norm: String,
    pub norm_elementwise_affine: bool,
    pub norm_eps: f32,
    pub caption_channels: usize,
    pub attention_bias: bool,
    pub attention_out_bias: bool,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            in_channels: 128,
            out_channels: Some(128),
            patch_size: 1,
            patch_size_t: 1,
            num_attention_heads: 32,
            attention_head_dim: 64,
            cross_attention_dim: 2048,
            num_layers: 28,
            activation_fn: "gelu-approximate".into(),
            qk_norm: "rms_norm_across_heads".into(),
            norm_elementwise_affine: false,
            norm_eps: 1e-6,
            caption_channels: 4096,
            attention_bias: true,
            attention_out_bias: true,
        }
    }
}

impl TransformerConfig {
    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let c: Self = read_json(path)?;
        let check = Checker(path);
        let only = |holds, key, value: &dyn std::fmt::Debug, s| check.require(holds, key, value, s);
        let out = c.out_channels.unwrap_or(c.in_channels);
        only(
            c.in_channels > 0,
            "in_channels",
            &c.in_channels,
            "it must be positive",
        )?;
        only(
            out == c.in_channels,
            "out_channels",
            &out,
            "it must equal in_channels",
        )?;
        only(
            c.patch_size == 1,
            "patch_size",
            &c.patch_size,
            "only 1 is supported",
        )?;
        only(
            c.patch_size_t == 1,
            "patch_size_t",
            &c.patch_size_t,
            "only 1 is supported",
        )?;
        let heads = c.num_attention_heads;
        only(
            heads > 0,
            "num_attention_heads",
            &heads,
            "it must be positive",
        )?;
        let head_dim = c.attention_head_dim;
        let even = head_dim > 0 && head_dim.is_multiple_of(2);
        only(
            even,
            "attention_head_dim",
            &head_dim,
            "it must be positive and even",
        )?;
        let inner = c.inner_dim();
        let cross = c.cross_attention_dim;
        only(
            cross == inner,
            "cross_attention_dim",
            &cross,
            "it must equal heads x head_dim",
        )?;
        only(
            inner >= 12,
            "attention_head_dim",
            &head_dim,
            "heads x head_dim must be at least 12",
        )?;
        let (act, norm) = (&c.activation_fn, &c.qk_norm);
        only(
            act == "gelu-approximate",
            "activation_fn",
            act,
            "only gelu-approximate is supported",
        )?;
        let known = norm == "rms_norm_across_heads";
        only(
            known,
            "qk_norm",
            norm,
            "only rms_norm_across_heads is supported",
        )?;
        let affine = c.norm_elementwise_affine;
        only(
            !affine,
            "norm_elementwise_affine",
            &affine,
            "only false is supported",
        )?;
        only(
            c.attention_bias,
            "attention_bias",
            &c.attention_bias,
            "only true is supported",
        )?;
        let bias = c.attention_out_bias;
        only(bias, "attention_out_bias", &bias, "only true is supported")?;
        Ok(c)
    }

    /// Channels of a token inside the transformer.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

/// `vae/config.json` of `AutoencoderKLLTXVideo`, block layout of LTX-Video 0.9.5 and later.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are diffusers'")]
pub struct VaeConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub down_block_types: Vec<String>,
    pub decoder_block_out_channels: Vec<usize>,
    pub layers_per_block: Vec<usize>,
    pub decoder_layers_per_block: Vec<usize>,
    pub spatio_temporal_scaling: Vec<bool>,
    pub decoder_spatio_temporal_scaling: Vec<bool>,
    pub decoder_inject_noise: Vec<bool>,
    pub downsample_type: Vec<String>,
    pub upsample_residual: Vec<bool>,
    pub upsample_factor: Vec<usize>,
    pub timestep_conditioning: bool,
    pub patch_size: usize,
    pub patch_size_t: usize,
    pub scaling_factor: f32,
    pub encoder_causal: bool,
    pub decoder_causal: bool,
    pub spatial_compression_ratio: Option<usize>,
    pub temporal_compression_ratio: Option<usize>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 128,
            block_out_channels: vec![128, 256, 512, 512],
            down_block_types: vec!["LTXVideoDownBlock3D".into(); 4],
            decoder_block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: vec![4, 3, 3, 3, 4],
            decoder_layers_per_block: vec![4, 3, 3, 3, 4],
            spatio_temporal_scaling: vec![true, true, true, false],
            decoder_spatio_temporal_scaling: vec![true, true, true, false],
            decoder_inject_noise: vec![false; 5],
            downsample_type: vec!["conv".into(); 4],
            upsample_residual: vec![false; 4],
            upsample_factor: vec![1; 4],
            timestep_conditioning: false,
            patch_size: 4,
            patch_size_t: 1,
            scaling_factor: 1.0,
            encoder_causal: true,
            decoder_causal: false,
            spatial_compression_ratio: None,
            temporal_compression_ratio: None,
        }
    }
}

impl VaeConfig {
    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let c: Self = read_json(path)?;
        let check = Checker(path);
        check.require(
            c.in_channels == 3,
            "in_channels",
            c.in_channels,
            "only 3 is supported",
        )?;
        check.require(
            c.out_channels == 3,
            "out_channels",
            c.out_channels,
            "only 3 is supported",
        )?;
        check.require(
            c.latent_channels > 0,
            "latent_channels",
            0,
            "it must be positive",
        )?;
        check.require(
            c.patch_size > 0,
            "patch_size",
            c.patch_size,
            "it must be positive",
        )?;
        check.require(
            c.patch_size_t == 1,
            "patch_size_t",
            c.patch_size_t,
            "only 1 is supported",
        )?;
        c.check_encoder(&check)?;
        c.check_decoder(&check)?;
        c.check_ratios(&check)?;
        Ok(c)
    }

    fn check_encoder(&self, check: &Checker<'_>) -> Result<()> {
        let types = &self.down_block_types;
        let known = !types.is_empty() && types.iter().all(|t| t == "LTXVideo095DownBlock3D");
        let only = "only LTXVideo095DownBlock3D is supported (LTX-Video 0.9.5 and later)";
        check.require(known, "down_block_types", types, only)?;
        let blocks = types.len();
        let channels = &self.block_out_channels;
        let fits = channels.len() == blocks + 1 && channels.iter().all(|&c| c > 0);
        check.require(
            fits,
            "block_out_channels",
            channels,
            "one more than blocks are needed",
        )?;
        let layers = &self.layers_per_block;
        let fits = layers.len() == blocks + 1;
        check.require(
            fits,
            "layers_per_block",
            layers,
            "one more than blocks are needed",
        )?;
        let scaling = &self.spatio_temporal_scaling;
        let fits = scaling.len() == blocks && scaling.iter().all(|&s| s);
        check.require(
            fits,
            "spatio_temporal_scaling",
            scaling,
            "true for each block is needed",
        )?;
        let kinds = &self.downsample_type;
        let fits = kinds.len() == blocks && kinds.iter().all(|k| downsample_stride(k).is_some());
        let only = "spatial, temporal or spatiotemporal is needed for each block";
        check.require(fits, "downsample_type", kinds, only)?;
        for (pair, kind) in channels.windows(2).zip(kinds) {
            let stride = downsample_stride(kind).unwrap_or([1; 3]);
            let block: usize = stride.iter().product();
            let fits = pair[1].is_multiple_of(block) && pair[0].is_multiple_of(pair[1] / block);
            let rule = "each width must divide by its stride, and divide that of the skip";
            check.require(fits, "block_out_channels", channels, rule)?;
        }
        Ok(())
    }

    fn check_decoder(&self, check: &Checker<'_>) -> Result<()> {
        let channels = &self.decoder_block_out_channels;
        let blocks = channels.len();
        check.require(
            blocks > 0,
            "decoder_block_out_channels",
            channels,
            "none are given",
        )?;
        let layers = &self.decoder_layers_per_block;
        let one_more = "one more than decoder blocks are needed";
        check.require(
            layers.len() == blocks + 1,
            "decoder_layers_per_block",
            layers,
            one_more,
        )?;
        let noise = &self.decoder_inject_noise;
        check.require(
            !noise.contains(&true),
            "decoder_inject_noise",
            noise,
            "only false is supported",
        )?;
        let scaling = &self.decoder_spatio_temporal_scaling;
        let fits = scaling.len() == blocks && scaling.iter().all(|&s| s);
        let each = "true for each decoder block is needed";
        check.require(fits, "decoder_spatio_temporal_scaling", scaling, each)?;
        let residual = &self.upsample_residual;
        let one_each = "one value for each decoder block is needed";
        check.require(
            residual.len() == blocks,
            "upsample_residual",
            residual,
            one_each,
        )?;
        let factor = &self.upsample_factor;
        let fits = factor.len() == blocks && factor.iter().all(|&f| f > 0);
        check.require(fits, "upsample_factor", factor, one_each)?;
        let mut width = channels[blocks - 1];
        for (&out, &factor) in channels.iter().zip(factor).rev() {
            let rule =
                "blocks that change their width by a shortcut (LTX-Video 0.9.1) are not supported";
            check.require(
                width / factor == out / factor,
                "decoder_block_out_channels",
                channels,
                rule,
            )?;
            width = out / factor;
        }
        Ok(())
    }

    fn check_ratios(&self, check: &Checker<'_>) -> Result<()> {
        let ([time, space], blocks) = (self.ratios(), self.decoder_block_out_channels.len() as u32);
        let decoder = [2usize.pow(blocks), self.patch_size * 2usize.pow(blocks)];
        let rule = "encoder and decoder must change sizes by the same factors";
        check.require(
            [time, space] == decoder,
            "downsample_type",
            &self.downsample_type,
            rule,
        )?;
        let stated = self.spatial_compression_ratio;
        let rule = "it does not agree with the blocks";
        check.require(
            stated.is_none_or(|r| r == space),
            "spatial_compression_ratio",
            stated,
            rule,
        )?;
        let stated = self.temporal_compression_ratio;
        check.require(
            stated.is_none_or(|r| r == time),
            "temporal_compression_ratio",
            stated,
            rule,
        )
    }

    /// `[frames, pixels]` to one latent frame and cell.
    pub fn ratios(&self) -> [usize; 2] {
        let strides = self
            .downsample_type
            .iter()
            .filter_map(|kind| downsample_stride(kind));
        strides.fold([1, self.patch_size], |[time, space], [st, sh, _]| {
            [time * st, space * sh]
        })
    }
}

/// `[st, sh, sw]` of a downsampler.
pub(crate) fn downsample_stride(kind: &str) -> Option<[usize; 3]> {
    match kind {
        "spatial" => Some([1, 2, 2]),
        "temporal" => Some([2, 1, 1]),
        "spatiotemporal" => Some([2, 2, 2]),
        _ => None,
    }
}

/// `text_encoder/config.json` of `T5EncoderModel`; T5 v1.1 only.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are transformers'")]
pub struct T5Config {
    pub vocab_size: usize,
    pub d_model: usize,
    pub d_kv: usize,
    pub d_ff: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub relative_attention_num_buckets: usize,
    pub relative_attention_max_distance: usize,
    pub layer_norm_epsilon: f32,
    pub feed_forward_proj: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".into(),
        }
    }
}

impl T5Config {
    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let c: Self = read_json(path)?;
        let check = Checker(path);
        let act = &c.feed_forward_proj;
        check.require(
            act == "gated-gelu",
            "feed_forward_proj",
            act,
            "only gated-gelu is supported",
        )?;
        let sizes = [
            ("vocab_size", c.vocab_size),
            ("d_model", c.d_model),
            ("d_kv", c.d_kv),
            ("d_ff", c.d_ff),
            ("num_heads", c.num_heads),
        ];
        for (key, size) in sizes {
            check.require(size > 0, key, size, "it must be positive")?;
        }
        let (buckets, far) = (
            c.relative_attention_num_buckets,
            c.relative_attention_max_distance,
        );
        let fits = buckets >= 4 && buckets.is_multiple_of(4);
        check.require(
            fits,
            "relative_attention_num_buckets",
            buckets,
            "a multiple of 4 is needed",
        )?;
        let rule = "it must be larger than a quarter of the buckets";
        check.require(
            far > buckets / 4,
            "relative_attention_max_distance",
            far,
            rule,
        )?;
        Ok(c)
    }
}

/// `scheduler/scheduler_config.json` of `FlowMatchEulerDiscreteScheduler`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are diffusers'")]
pub struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    pub class_name: String,
    pub num_train_timesteps: usize,
    pub shift: f64,
    pub use_dynamic_shifting: bool,
    pub base_shift: Option<f64>,
    pub max_shift: Option<f64>,
    pub base_image_seq_len: usize,
    pub max_image_seq_len: usize,
    pub invert_sigmas: bool,
    pub shift_terminal: Option<f64>,
    pub use_karras_sigmas: bool,
    pub use_exponential_sigmas: bool,
    pub use_beta_sigmas: bool,
    pub time_shift_type: String,
    pub stochastic_sampling: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: "FlowMatchEulerDiscreteScheduler".into(),
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: Some(0.5),
            max_shift: Some(1.15),
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            invert_sigmas: false,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            time_shift_type: "exponential".into(),
            stochastic_sampling: false,
        }
    }
}

impl SchedulerConfig {
    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let c: Self = read_json(path)?;
        let check = Checker(path);
        let known = c.class_name == "FlowMatchEulerDiscreteScheduler";
        let only = "only FlowMatchEulerDiscreteScheduler is supported";
        check.require(known, "_class_name", &c.class_name, only)?;
        let train = c.num_train_timesteps;
        check.require(
            train == 1000,
            "num_train_timesteps",
            train,
            "only 1000 is supported",
        )?;
        let off = [
            ("invert_sigmas", c.invert_sigmas),
            ("use_karras_sigmas", c.use_karras_sigmas),
            ("use_exponential_sigmas", c.use_exponential_sigmas),
            ("use_beta_sigmas", c.use_beta_sigmas),
            ("stochastic_sampling", c.stochastic_sampling),
        ];
        for (key, on) in off {
            check.require(!on, key, on, "only false is supported")?;
        }
        let kind = &c.time_shift_type;
        let known = kind == "exponential" || kind == "linear";
        check.require(
            known,
            "time_shift_type",
            kind,
            "exponential and linear are supported",
        )?;
        let terminal = c.shift_terminal.unwrap_or(0.0);
        let fits = (0.0..1.0).contains(&terminal);
        check.require(
            fits,
            "shift_terminal",
            terminal,
            "it must be at least 0 and below 1",
        )?;
        Ok(c)
    }
}

/// All configuration of a model folder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which pipeline's conventions hold.
    pub pipeline: PipelineClass,
    /// The transformer.
    pub transformer: TransformerConfig,
    /// The VAE.
    pub vae: VaeConfig,
    /// The text encoder.
    pub text_encoder: T5Config,
    /// The schedule.
    pub scheduler: SchedulerConfig,
}

/// The configuration files of a model folder, in the order of [`crate::model_hash`].
pub(crate) fn config_files(dir: &Path) -> [PathBuf; 5] {
    [
        dir.join("model_index.json"),
        dir.join("scheduler/scheduler_config.json"),
        dir.join("text_encoder/config.json"),
        dir.join("transformer/config.json"),
        dir.join("vae/config.json"),
    ]
}

impl ModelConfig {
    /// Reads and checks the configuration of model folder `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let [index, scheduler, text_encoder, transformer, vae] = config_files(dir);
        let config = Self {
            pipeline: PipelineClass::read(&index)?,
            scheduler: SchedulerConfig::read(&scheduler)?,
            text_encoder: T5Config::read(&text_encoder)?,
            transformer: TransformerConfig::read(&transformer)?,
            vae: VaeConfig::read(&vae)?,
        };
        let check = Checker(&transformer);
        let (caption, text) = (
            config.transformer.caption_channels,
            config.text_encoder.d_model,
        );
        let rule = "it must equal the text encoder's d_model";
        check.require(caption == text, "caption_channels", caption, rule)?;
        let (channels, latent) = (config.transformer.in_channels, config.vae.latent_channels);
        let rule = "it must equal the VAE's latent_channels";
        check.require(channels == latent, "in_channels", channels, rule)?;
        Ok(config)
    }
}
