//! Configuration of the text encoder.

use super::{Checker, LAYERS_MAX, read_json};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `text_encoder/config.json` of `T5EncoderModel`; T5 v1.1 only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
        c.check(path)?;
        Ok(c)
    }

    /// Fails on what is not computed; `path` is where it was read.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let c = self;
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
        check.require(
            c.num_layers <= LAYERS_MAX,
            "num_layers",
            c.num_layers,
            "at most 1024 are supported",
        )?;
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
        )
    }
}
