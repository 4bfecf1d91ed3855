//! The text encoder: the encoder of T5 v1.1 (`transformers`, `models/t5/modeling_t5.py`).
//!
//! No bias in any layer, no scaling of scores, positions as a bias that the first block owns and
//! all blocks add, gated GELU.

use crate::config::T5Config;
use crate::error::{Error, InPart, Result};
use crate::weights::Weights;
use longtake_tensor::{Activation, AttentionBias, Backend, Loader, Shape};

type Op<T> = longtake_tensor::Result<T>;

/// Added to the scores of padding: far below every score, yet finite.
const MASKED: f32 = -1e30;

struct Block<B: Loader> {
    attention_norm: B::Tensor,
    q: B::Matrix,
    k: B::Matrix,
    v: B::Matrix,
    o: B::Matrix,
    ff_norm: B::Tensor,
    wi_0: B::Matrix,
    wi_1: B::Matrix,
    wo: B::Matrix,
}

impl<B: Loader> Block<B> {
    fn load(b: &B, w: &Weights, name: &str, c: &T5Config) -> Result<Self> {
        let inner = c.num_heads * c.d_kv;
        let attention = format!("{name}.layer.0.SelfAttention");
        let ff = format!("{name}.layer.1.DenseReluDense");
        let project = |layer: &str| {
            w.block_matrix(b, &format!("{attention}.{layer}"), inner, c.d_model, false)
        };
        let widen =
            |layer: &str| w.block_matrix(b, &format!("{ff}.{layer}"), c.d_ff, c.d_model, false);
        let norm = |i: usize| {
            w.tensor(
                b,
                &format!("{name}.layer.{i}.layer_norm.weight"),
                &[c.d_model],
            )
        };
        Ok(Self {
            attention_norm: norm(0)?,
            q: project("q")?,
            k: project("k")?,
            v: project("v")?,
            o: w.block_matrix(b, &format!("{attention}.o"), c.d_model, inner, false)?,
            ff_norm: norm(1)?,
            wi_0: widen("wi_0")?,
            wi_1: widen("wi_1")?,
            wo: w.block_matrix(b, &format!("{ff}.wo"), c.d_model, c.d_ff, false)?,
        })
    }
}

impl<B: Backend> Block<B> {
    fn forward(
        &self,
        b: &B,
        x: B::Tensor,
        c: &T5Config,
        bias: &AttentionBias<'_, B>,
    ) -> Op<B::Tensor> {
        let plain = Activation::None;
        let h = b.rms_norm(&x, &self.attention_norm, c.layer_norm_epsilon)?;
        let q = b.linear(&h, &self.q, plain)?;
        let k = b.linear(&h, &self.k, plain)?;
        let v = b.linear(&h, &self.v, plain)?;
        let h = b.attention(&q, &k, &v, c.num_heads, 1.0, bias)?;
        let x = b.gated_residual(x, &b.linear(&h, &self.o, plain)?, None)?;

        let h = b.rms_norm(&x, &self.ff_norm, c.layer_norm_epsilon)?;
        let gate = b.linear(&h, &self.wi_0, Activation::GeluTanh)?;
        let h = b.multiply(&gate, &b.linear(&h, &self.wi_1, plain)?)?;
        b.gated_residual(x, &b.linear(&h, &self.wo, plain)?, None)
    }
}

/// The loaded encoder.
pub struct T5Encoder<B: Loader> {
    blocks: Vec<Block<B>>,
    final_layer_norm: B::Tensor,
    /// `[buckets, heads]`.
    relative_attention_bias: Vec<f32>,
    /// Keeps the embedding table mapped: only the rows of a prompt are ever read.
    weights: Weights,
    config: T5Config,
}

impl<B: Loader> T5Encoder<B> {
    /// Loads the weights of folder `text_encoder`.
    pub fn load(b: &B, weights: Weights, config: &T5Config) -> Result<Self> {
        let blocks = (0..config.num_layers)
            .map(|i| Block::load(b, &weights, &format!("encoder.block.{i}"), config))
            .collect::<Result<_>>()?;
        let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let buckets = [config.relative_attention_num_buckets, config.num_heads];
        weights.with_view(
            "shared.weight",
            &[config.vocab_size, config.d_model],
            |_| Ok(()),
        )?;
        Ok(Self {
            blocks,
            final_layer_norm: weights.tensor(
                b,
                "encoder.final_layer_norm.weight",
                &[config.d_model],
            )?,
            relative_attention_bias: weights.values(bias, &buckets)?,
            weights,
            config: config.clone(),
        })
    }

    /// Configuration that it was loaded with.
    pub fn config(&self) -> &T5Config {
        &self.config
    }
}

impl<B: Backend> T5Encoder<B> {
    /// States `[L, d_model]` of the tokens `ids`; with `mask` (1 a token, 0 padding) nothing
    /// attends to padding.
    pub fn forward(&self, b: &B, ids: &[u32], mask: Option<&[f32]>) -> Result<Vec<f32>> {
        let c = &self.config;
        let embedded = self.embed(ids)?;
        let part = || "text encoder".to_owned();
        let mut x = b
            .upload(Shape::from([ids.len(), c.d_model]), &embedded)
            .in_part(part)?;
        let shape = Shape::from([c.num_heads, ids.len(), ids.len()]);
        let positions = b
            .upload(shape, &self.position_bias(ids.len()))
            .in_part(part)?;
        let keys = mask.map(|mask| {
            let bias: Vec<f32> = mask.iter().map(|m| (1.0 - m) * MASKED).collect();
            b.upload(Shape::from([ids.len()]), &bias)
        });
        let keys = keys.transpose().in_part(part)?;
        let bias = AttentionBias {
            keys: keys.as_ref(),
            positions: Some(&positions),
        };
        for (i, block) in self.blocks.iter().enumerate() {
            x = block
                .forward(b, x, c, &bias)
                .in_part(|| format!("text encoder block {i}"))?;
        }
        let x = b
            .rms_norm(&x, &self.final_layer_norm, c.layer_norm_epsilon)
            .in_part(part)?;
        b.download(&x).in_part(part)
    }

    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let (vocab, width) = (self.config.vocab_size, self.config.d_model);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Request {
                what: "prompt",
                message: format!(
                    "the tokenizer gave token {id}, the text encoder knows {vocab}: the two are \
                     not of the same model"
                ),
            });
        }
        self.weights
            .with_view("shared.weight", &[vocab, width], |table| {
                let mut rows = vec![0.0; ids.len() * width];
                for (row, &id) in rows.chunks_exact_mut(width).zip(ids) {
                    table.row_to_f32(id as usize, row);
                }
                Ok(rows)
            })
    }

    /// `[heads, L, L]`.
    fn position_bias(&self, length: usize) -> Vec<f32> {
        let heads = self.config.num_heads;
        let mut bias = Vec::with_capacity(heads * length * length);
        for head in 0..heads {
            for query in 0..length {
                for key in 0..length {
                    let bucket = self.bucket(key as i64 - query as i64);
                    bias.push(self.relative_attention_bias[bucket * heads + head]);
                }
            }
        }
        bias
    }

    /// Bucket of a relative position: exact up to a quarter of the buckets each way, then
    /// logarithmic up to the largest distance.
    fn bucket(&self, relative: i64) -> usize {
        let half = self.config.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let later = if relative > 0 { half } else { 0 };
        let distance = relative.unsigned_abs() as usize;
        if distance < exact {
            return later + distance;
        }
        let far = self.config.relative_attention_max_distance as f64 / exact as f64;
        // transformers takes this logarithm in f32; a distance on a bucket's edge depends on it.
        let ratio = libm::log(f64::from(distance as f32 / exact as f32)) as f32;
        let step = (ratio / libm::log(far) as f32 * (half - exact) as f32) as usize;
        later + (exact + step).min(half - 1)
    }
}
