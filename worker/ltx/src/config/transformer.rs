//! Configuration of the transformer.

use super::{Checker, LAYERS_MAX, read_json};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Channels of the sinusoid that the timestep embedding reads.
const SINUSOID: usize = 256;

/// `transformer/config.json` of `LTXVideoTransformer3DModel`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Whether latent 0 of a window is placed as one frame; official files say so, the pipeline
    /// classes of diffusers imply it.
    pub causal_temporal_positioning: bool,
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
            causal_temporal_positioning: true,
        }
    }
}

impl TransformerConfig {
    /// Reads and checks `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let c: Self = read_json(path)?;
        c.check(path)?;
        Ok(c)
    }

    /// Fails on what is not computed; `path` is where it was read.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let c = self;
        let check = Checker(path);
        let only = |holds, key, value: Value, s| check.require(holds, key, value, s);
        let out = c.out_channels.unwrap_or(c.in_channels);
        only(
            c.in_channels > 0,
            "in_channels",
            json!(c.in_channels),
            "it must be positive",
        )?;
        only(
            c.num_layers <= LAYERS_MAX,
            "num_layers",
            json!(c.num_layers),
            "at most 1024 are supported",
        )?;
        only(
            out == c.in_channels,
            "out_channels",
            json!(out),
            "it must equal in_channels",
        )?;
        only(
            c.patch_size == 1,
            "patch_size",
            json!(c.patch_size),
            "only 1 is supported",
        )?;
        only(
            c.patch_size_t == 1,
            "patch_size_t",
            json!(c.patch_size_t),
            "only 1 is supported",
        )?;
        let heads = c.num_attention_heads;
        only(
            heads > 0,
            "num_attention_heads",
            json!(heads),
            "it must be positive",
        )?;
        let head_dim = c.attention_head_dim;
        let even = head_dim > 0 && head_dim.is_multiple_of(2);
        only(
            even,
            "attention_head_dim",
            json!(head_dim),
            "it must be positive and even",
        )?;
        let inner = c.inner_dim();
        let cross = c.cross_attention_dim;
        only(
            cross == inner,
            "cross_attention_dim",
            json!(cross),
            "it must equal heads x head_dim",
        )?;
        only(
            inner >= 12,
            "attention_head_dim",
            json!(head_dim),
            "heads x head_dim must be at least 12",
        )?;
        let (act, norm) = (&c.activation_fn, &c.qk_norm);
        only(
            act == "gelu-approximate",
            "activation_fn",
            json!(act),
            "only gelu-approximate is supported",
        )?;
        let known = norm == "rms_norm_across_heads";
        only(
            known,
            "qk_norm",
            json!(norm),
            "only rms_norm_across_heads is supported",
        )?;
        let affine = c.norm_elementwise_affine;
        only(
            !affine,
            "norm_elementwise_affine",
            json!(affine),
            "only false is supported",
        )?;
        only(
            c.attention_bias,
            "attention_bias",
            json!(c.attention_bias),
            "only true is supported",
        )?;
        let bias = c.attention_out_bias;
        only(
            bias,
            "attention_out_bias",
            json!(bias),
            "only true is supported",
        )
    }

    /// The linear layers by name, with their `[outputs, inputs]`.
    pub fn linear_layers(&self) -> BTreeMap<String, [usize; 2]> {
        let dim = self.inner_dim();
        let mut layers = BTreeMap::from(
            [
                ("proj_in", [dim, self.in_channels]),
                ("proj_out", [self.in_channels, dim]),
                ("time_embed.emb.timestep_embedder.linear_1", [dim, SINUSOID]),
                ("time_embed.emb.timestep_embedder.linear_2", [dim, dim]),
                ("time_embed.linear", [6 * dim, dim]),
                ("caption_projection.linear_1", [dim, self.caption_channels]),
                ("caption_projection.linear_2", [dim, dim]),
            ]
            .map(|(name, shape)| (name.to_owned(), shape)),
        );
        for i in 0..self.num_layers {
            let block = |layer: &str| format!("transformer_blocks.{i}.{layer}");
            for attention in ["attn1", "attn2"] {
                for layer in ["to_q", "to_k", "to_v", "to_out.0"] {
                    layers.insert(block(&format!("{attention}.{layer}")), [dim, dim]);
                }
            }
            layers.insert(block("ff.net.0.proj"), [4 * dim, dim]);
            layers.insert(block("ff.net.2"), [dim, 4 * dim]);
        }
        layers
    }

    /// Channels of a token inside the transformer.
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}
