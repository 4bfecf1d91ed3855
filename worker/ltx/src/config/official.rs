//! The configuration that official files carry in their metadata, in the terms of a Diffusers
//! folder. What it asks for beyond what this crate computes is refused.

use super::{Checker, T5Config, TransformerConfig, VaeConfig};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Metadata `config` of an official file (`ltx_video/inference.py` and the `from_pretrained` of
/// its models).
#[derive(Clone, Debug, Deserialize)]
pub struct OfficialConfig {
    transformer: OfficialTransformer,
    vae: OfficialVae,
    /// `RectifiedFlowScheduler`, as it is written.
    #[serde(default)]
    pub scheduler: Value,
    /// Noise levels that a distilled model was made for.
    #[serde(default)]
    pub allowed_inference_steps: Option<Vec<f64>>,
}

/// `Transformer3DModel`, with the defaults of its constructor.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct OfficialTransformer {
    num_attention_heads: usize,
    attention_head_dim: usize,
    in_channels: usize,
    out_channels: Option<usize>,
    num_layers: usize,
    cross_attention_dim: usize,
    attention_bias: bool,
    activation_fn: String,
    adaptive_norm: String,
    standardization_norm: String,
    norm_elementwise_affine: bool,
    norm_eps: f32,
    caption_channels: usize,
    qk_norm: Option<String>,
    positional_embedding_type: String,
    positional_embedding_theta: f64,
    positional_embedding_max_pos: Vec<f64>,
    timestep_scale_multiplier: f64,
    causal_temporal_positioning: bool,
}

impl Default for OfficialTransformer {
    fn default() -> Self {
        Self {
            num_attention_heads: 16,
            attention_head_dim: 88,
            in_channels: 128,
            out_channels: None,
            num_layers: 1,
            cross_attention_dim: 0,
            attention_bias: false,
            activation_fn: "geglu".into(),
            adaptive_norm: "single_scale_shift".into(),
            standardization_norm: "layer_norm".into(),
            norm_elementwise_affine: true,
            norm_eps: 1e-5,
            caption_channels: 0,
            qk_norm: None,
            positional_embedding_type: "rope".into(),
            positional_embedding_theta: 0.0,
            positional_embedding_max_pos: Vec::new(),
            timestep_scale_multiplier: 0.0,
            causal_temporal_positioning: false,
        }
    }
}

/// `CausalVideoAutoencoder`, with the defaults of its `from_config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct OfficialVae {
    dims: Value,
    in_channels: usize,
    out_channels: usize,
    latent_channels: usize,
    encoder_blocks: Vec<(String, BlockParameters)>,
    decoder_blocks: Vec<(String, BlockParameters)>,
    encoder_base_channels: usize,
    decoder_base_channels: usize,
    norm_layer: String,
    patch_size: usize,
    latent_log_var: String,
    use_quant_conv: bool,
    normalize_latent_channels: bool,
    causal_decoder: bool,
    timestep_conditioning: bool,
    spatial_padding_mode: String,
    scaling_factor: f32,
}

impl Default for OfficialVae {
    fn default() -> Self {
        Self {
            dims: Value::from(3),
            in_channels: 3,
            out_channels: 3,
            latent_channels: 128,
            encoder_blocks: Vec::new(),
            decoder_blocks: Vec::new(),
            encoder_base_channels: 128,
            decoder_base_channels: 128,
            norm_layer: "group_norm".into(),
            patch_size: 1,
            latent_log_var: "per_channel".into(),
            use_quant_conv: true,
            normalize_latent_channels: false,
            causal_decoder: false,
            timestep_conditioning: false,
            spatial_padding_mode: "zeros".into(),
            scaling_factor: 1.0,
        }
    }
}

/// What stands beside the name of a block: a count of layers, or figures by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum BlockParameters {
    Layers(usize),
    Named {
        num_layers: Option<usize>,
        multiplier: Option<usize>,
        #[serde(default)]
        residual: bool,
        #[serde(default)]
        inject_noise: bool,
    },
}

impl BlockParameters {
    fn layers(&self) -> Option<usize> {
        match self {
            Self::Layers(layers) => Some(*layers),
            Self::Named { num_layers, .. } => *num_layers,
        }
    }

    fn multiplier(&self, default: usize) -> usize {
        match self {
            Self::Named {
                multiplier: Some(multiplier),
                ..
            } => *multiplier,
            _ => default,
        }
    }

    fn is_residual(&self) -> bool {
        matches!(self, Self::Named { residual: true, .. })
    }

    fn injects_noise(&self) -> bool {
        matches!(
            self,
            Self::Named {
                inject_noise: true,
                ..
            }
        )
    }
}

impl OfficialConfig {
    /// Reads the text of the metadata; `path` is the file's.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        serde_json::from_str(text).map_err(|source| Error::ConfigSyntax {
            path: path.to_owned(),
            source,
        })
    }

    /// The transformer's part.
    pub fn transformer(&self, path: &Path) -> Result<TransformerConfig> {
        let t = &self.transformer;
        let check = Checker(path);
        check.require(
            t.qk_norm.as_deref() == Some("rms_norm"),
            "qk_norm",
            &t.qk_norm,
            "only rms_norm is supported",
        )?;
        check.only("standardization_norm", &t.standardization_norm, "rms_norm")?;
        check.only("adaptive_norm", &t.adaptive_norm, "single_scale_shift")?;
        check.only(
            "positional_embedding_type",
            &t.positional_embedding_type,
            "rope",
        )?;
        let (theta, reach) = (
            t.positional_embedding_theta,
            &t.positional_embedding_max_pos,
        );
        let only = "only 10000 is supported";
        check.require(theta == 10_000.0, "positional_embedding_theta", theta, only)?;
        let only = "only [20, 2048, 2048] is supported";
        let fits = *reach == [20.0, 2048.0, 2048.0];
        check.require(fits, "positional_embedding_max_pos", reach, only)?;
        let scale = t.timestep_scale_multiplier;
        let only = "only 1000 is supported";
        check.require(scale == 1000.0, "timestep_scale_multiplier", scale, only)?;
        let config = TransformerConfig {
            in_channels: t.in_channels,
            out_channels: t.out_channels,
            num_attention_heads: t.num_attention_heads,
            attention_head_dim: t.attention_head_dim,
            cross_attention_dim: t.cross_attention_dim,
            num_layers: t.num_layers,
            activation_fn: t.activation_fn.clone(),
            norm_elementwise_affine: t.norm_elementwise_affine,
            norm_eps: t.norm_eps,
            caption_channels: t.caption_channels,
            attention_bias: t.attention_bias,
            ..TransformerConfig::default()
        };
        config.check(path)?;
        Ok(config)
    }

    /// Whether latent 0 of a window is placed as the one frame that it is.
    pub fn causal_temporal_positioning(&self) -> bool {
        self.transformer.causal_temporal_positioning
    }

    /// The VAE's part.
    pub fn vae(&self, path: &Path) -> Result<VaeConfig> {
        let v = &self.vae;
        let check = Checker(path);
        check.require(v.dims == 3, "dims", &v.dims, "only 3 is supported")?;
        check.only("norm_layer", &v.norm_layer, "pixel_norm")?;
        let rule = "only zeros is supported, which the published checkpoints have: a model trained with \
                    another padding would get frames around its pictures";
        let mode = &v.spatial_padding_mode;
        check.require(mode == "zeros", "spatial_padding_mode", mode, rule)?;
        let (factor, only) = (v.scaling_factor, "only 1 is supported");
        check.require(factor == 1.0, "scaling_factor", factor, only)?;
        let shared = ["uniform", "constant"].contains(&v.latent_log_var.as_str());
        let only = "uniform and constant are supported";
        check.require(shared, "latent_log_var", &v.latent_log_var, only)?;
        for (key, on) in [
            ("use_quant_conv", v.use_quant_conv),
            ("normalize_latent_channels", v.normalize_latent_channels),
        ] {
            check.require(!on, key, on, "only false is supported")?;
        }
        let mut config = VaeConfig {
            in_channels: v.in_channels,
            out_channels: v.out_channels,
            latent_channels: v.latent_channels,
            timestep_conditioning: v.timestep_conditioning,
            patch_size: v.patch_size,
            decoder_causal: v.causal_decoder,
            ..VaeConfig::default()
        };
        v.encoder(&check, &mut config)?;
        v.decoder(&check, &mut config)?;
        config.check(path)?;
        Ok(config)
    }
}

/// Counts of residual layers, and the resamplers between them.
type Turns<'a> = (Vec<usize>, Vec<&'a (String, BlockParameters)>);

/// Blocks in turns: residual layers, a resampler, residual layers, and so on.
fn in_turns<'a>(
    check: &Checker<'_>,
    key: &'static str,
    blocks: &'a [(String, BlockParameters)],
) -> Result<Turns<'a>> {
    let (mut layers, mut resamplers) = (Vec::new(), Vec::new());
    for (i, block) in blocks.iter().enumerate() {
        match (i % 2, block.0.as_str(), block.1.layers()) {
            (0, "res_x", Some(count)) if !block.1.injects_noise() => layers.push(count),
            (1, ..) => resamplers.push(block),
            _ => {
                let rule = "res_x without noise and a compressing block in turns are supported \
                            (LTX-Video 0.9.5 and later)";
                check.require(false, key, block, rule)?;
            }
        }
    }
    let rule = "residual blocks are needed at both ends";
    check.require(
        layers.len() == resamplers.len() + 1,
        key,
        blocks.len(),
        rule,
    )?;
    Ok((layers, resamplers))
}

impl OfficialVae {
    fn encoder(&self, check: &Checker<'_>, config: &mut VaeConfig) -> Result<()> {
        let key = "encoder_blocks";
        let (layers, resamplers) = in_turns(check, key, &self.encoder_blocks)?;
        let mut width = self.encoder_base_channels;
        let (mut widths, mut kinds) = (vec![width], Vec::new());
        for block in &resamplers {
            let kind = match block.0.as_str() {
                "compress_space_res" => "spatial",
                "compress_time_res" => "temporal",
                "compress_all_res" => "spatiotemporal",
                _ => {
                    let rule =
                        "compress_space_res, compress_time_res and compress_all_res are supported";
                    return check.require(false, key, block, rule);
                }
            };
            width = width.saturating_mul(block.1.multiplier(2));
            widths.push(width);
            kinds.push(kind.to_owned());
        }
        config.down_block_types = vec!["LTXVideo095DownBlock3D".to_owned(); kinds.len()];
        config.spatio_temporal_scaling = vec![true; kinds.len()];
        config.block_out_channels = widths;
        config.downsample_type = kinds;
        config.layers_per_block = layers;
        Ok(())
    }

    fn decoder(&self, check: &Checker<'_>, config: &mut VaeConfig) -> Result<()> {
        let key = "decoder_blocks";
        let (layers, resamplers) = in_turns(check, key, &self.decoder_blocks)?;
        // Listed from the outside in, as diffusers does; each width is that of the inner side.
        let mut width = self.decoder_base_channels;
        let (mut widths, mut factors, mut residuals) = (Vec::new(), Vec::new(), Vec::new());
        for block in &resamplers {
            let is_known = block.0 == "compress_all";
            check.require(is_known, key, block, "only compress_all is supported")?;
            let factor = block.1.multiplier(1);
            width = width.saturating_mul(factor);
            widths.push(width);
            factors.push(factor);
            residuals.push(block.1.is_residual());
        }
        config.decoder_spatio_temporal_scaling = vec![true; widths.len()];
        config.decoder_inject_noise = vec![false; layers.len()];
        config.decoder_block_out_channels = widths;
        config.upsample_factor = factors;
        config.upsample_residual = residuals;
        config.decoder_layers_per_block = layers;
        Ok(())
    }
}

/// The configuration of a T5 encoder whose file has none, from the shapes of its tensors.
pub(crate) fn t5_from_shapes<'a>(
    path: &Path,
    shape: impl Fn(&str) -> Option<Vec<usize>>,
    names: impl Iterator<Item = &'a str>,
) -> Result<T5Config> {
    let missing = |tensor: &str| Error::Weight {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
        message: "is missing, so this is no T5 encoder; give t5xxl or the folder of one".to_owned(),
    };
    let pair = |name: &str| -> Result<[usize; 2]> {
        let found = shape(name).ok_or_else(|| missing(name))?;
        <[usize; 2]>::try_from(found).map_err(|_| missing(name))
    };
    let block = |name: &str| format!("encoder.block.0.layer.{name}.weight");
    let [vocab_size, d_model] = pair("shared.weight")?;
    let [buckets, num_heads] = pair(&block("0.SelfAttention.relative_attention_bias"))?;
    let [inner, _] = pair(&block("0.SelfAttention.q"))?;
    let [d_ff, _] = pair(&block("1.DenseReluDense.wi_0"))?;
    let index = |name: &str| {
        name.strip_prefix("encoder.block.")?
            .split('.')
            .next()?
            .parse()
            .ok()
    };
    let last: Option<usize> = names.filter_map(index).max();
    let config = T5Config {
        vocab_size,
        d_model,
        d_kv: inner / num_heads.max(1),
        d_ff,
        num_layers: last.map_or(0, |last| last + 1),
        num_heads,
        relative_attention_num_buckets: buckets,
        feed_forward_proj: "gated-gelu".to_owned(),
        ..T5Config::default()
    };
    config.check(path)?;
    Ok(config)
}
