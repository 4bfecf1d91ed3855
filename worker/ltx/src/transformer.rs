//! The diffusion transformer: `LTXVideoTransformer3DModel` of diffusers
//! (`models/transformers/transformer_ltx.py`).
//!
//! Letters as in [`longtake_tensor::backend`]: `L` tokens, `D` inner channels, `T` distinct
//! timesteps, `N` text tokens.

use crate::config::TransformerConfig;
use crate::embeddings::{TimestepEmbedder, timestep_sinusoid};
use crate::error::{InPart, Result};
use crate::sampling::StgMode;
use crate::shard::Shard;
use crate::types::Prompt;
use crate::weights::Weights;
use longtake_tensor::{Activation, AttentionBias, Backend, Gate, Loader, Modulation, Rope, Shape};

type Op<T> = longtake_tensor::Result<T>;

/// Epsilon of the q and k norms.
const QK_EPS: f32 = 1e-5;
/// Epsilon of the last norm.
const OUT_EPS: f32 = 1e-6;
/// Added to the scores of text tokens that are padding.
const MASKED: f32 = -10000.0;

/// `LTXAttention`: q and k are normed over all heads together.
struct Attention<B: Loader> {
    to_q: B::Matrix,
    to_k: B::Matrix,
    to_v: B::Matrix,
    to_out: B::Matrix,
    norm_q: B::Tensor,
    norm_k: B::Tensor,
    heads: usize,
    scale: f32,
}

impl<B: Loader> Attention<B> {
    fn load(b: &B, w: &Weights, name: &str, c: &TransformerConfig) -> Result<Self> {
        let dim = c.inner_dim();
        let linear = |layer: &str| w.block_matrix(b, &format!("{name}.{layer}"), dim, dim, true);
        let norm = |layer: &str| w.tensor(b, &format!("{name}.{layer}.weight"), &[dim]);
        Ok(Self {
            to_q: linear("to_q")?,
            to_k: linear("to_k")?,
            to_v: linear("to_v")?,
            to_out: linear("to_out.0")?,
            norm_q: norm("norm_q")?,
            norm_k: norm("norm_k")?,
            heads: c.num_attention_heads,
            scale: 1.0 / (c.attention_head_dim as f32).sqrt(),
        })
    }
}

impl<B: Backend> Attention<B> {
    fn query(&self, b: &B, x: &B::Tensor, rope: Option<&Rope<B>>) -> Op<B::Tensor> {
        b.qk_norm_rope(
            b.linear(x, &self.to_q, Activation::None)?,
            &self.norm_q,
            QK_EPS,
            rope,
        )
    }

    fn key_value(
        &self,
        b: &B,
        x: &B::Tensor,
        rope: Option<&Rope<B>>,
    ) -> Op<(B::Tensor, B::Tensor)> {
        let k = b.linear(x, &self.to_k, Activation::None)?;
        let k = b.qk_norm_rope(k, &self.norm_k, QK_EPS, rope)?;
        Ok((k, b.linear(x, &self.to_v, Activation::None)?))
    }

    /// `x` attends to `k`, `v`; `[L, D]`.
    fn forward(
        &self,
        b: &B,
        q: &B::Tensor,
        (k, v): &(B::Tensor, B::Tensor),
        bias: &AttentionBias<'_, B>,
    ) -> Op<B::Tensor> {
        let x = b.attention(q, k, v, self.heads, self.scale, bias)?;
        b.linear(&x, &self.to_out, Activation::None)
    }

    /// The same for this rank's tokens, which attend to those of all ranks: for the attention, ranks
    /// have all tokens of some heads instead of all heads of some tokens.
    fn forward_shared(&self, b: &B, shard: &Shard<'_, B>, qkv: [&B::Tensor; 3]) -> Op<B::Tensor> {
        let [q, k, v] = shard.to_heads(b, qkv)?;
        let heads = self.heads / shard.ranks();
        let x = b.attention(&q, &k, &v, heads, self.scale, &AttentionBias::NONE)?;
        let x = shard.to_tokens(b, &x)?;
        b.linear(&x, &self.to_out, Activation::None)
    }
}

/// `LTXVideoTransformerBlock`.
struct Block<B: Loader> {
    attn1: Attention<B>,
    attn2: Attention<B>,
    ff_in: B::Matrix,
    ff_out: B::Matrix,
    /// `[6, D]`: shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp.
    scale_shift_table: B::Tensor,
    eps: f32,
}

impl<B: Loader> Block<B> {
    fn load(b: &B, w: &Weights, name: &str, c: &TransformerConfig) -> Result<Self> {
        let dim = c.inner_dim();
        Ok(Self {
            attn1: Attention::load(b, w, &format!("{name}.attn1"), c)?,
            attn2: Attention::load(b, w, &format!("{name}.attn2"), c)?,
            ff_in: w.block_matrix(b, &format!("{name}.ff.net.0.proj"), 4 * dim, dim, true)?,
            ff_out: w.block_matrix(b, &format!("{name}.ff.net.2"), dim, 4 * dim, true)?,
            scale_shift_table: w.tensor(b, &format!("{name}.scale_shift_table"), &[6, dim])?,
            eps: c.norm_eps,
        })
    }
}

impl<B: Backend> Block<B> {
    fn forward(
        &self,
        b: &B,
        x: B::Tensor,
        text: &(B::Tensor, B::Tensor),
        step: &Step<'_, B>,
        perturbed: Option<StgMode>,
    ) -> Op<B::Tensor> {
        if perturbed == Some(StgMode::TransformerBlock) {
            return Ok(x);
        }
        let table = &b.add_table(step.temb, &self.scale_shift_table)?; // [T, 6, D]
        let modulation = |shift, scale| Modulation {
            table,
            index: step.index,
            shift,
            scale,
        };
        let gate = |row| Gate {
            table,
            index: step.index,
            row,
        };

        let h = b.rms_norm_modulate(&x, self.eps, &modulation(0, 1))?;
        let h = self.attend_to_self(b, &h, step, perturbed)?;
        let x = b.gated_residual(x, &h, Some(&gate(2)))?;

        // Cross-attention: no norm, no modulation, no gate, as in the reference.
        let q = self.attn2.query(b, &x, None)?;
        let mask = AttentionBias {
            keys: Some(step.text_bias),
            positions: None,
        };
        let h = self.attn2.forward(b, &q, text, &mask)?;
        let x = b.gated_residual(x, &h, None)?;

        let h = b.rms_norm_modulate(&x, self.eps, &modulation(3, 4))?;
        let h = b.linear(&h, &self.ff_in, Activation::GeluTanh)?;
        let h = b.linear(&h, &self.ff_out, Activation::None)?;
        b.gated_residual(x, &h, Some(&gate(5)))
    }

    /// `attn1` of the modulated `h`, or what STG puts in its place.
    fn attend_to_self(
        &self,
        b: &B,
        h: &B::Tensor,
        step: &Step<'_, B>,
        perturbed: Option<StgMode>,
    ) -> Op<B::Tensor> {
        let attn1 = &self.attn1;
        match perturbed {
            Some(StgMode::AttentionSkip) => b.linear(h, &attn1.to_out, Activation::None),
            Some(StgMode::AttentionValues) => {
                let values = b.linear(h, &attn1.to_v, Activation::None)?;
                b.linear(&values, &attn1.to_out, Activation::None)
            }
            _ => {
                let q = attn1.query(b, h, Some(step.rope))?;
                let (k, v) = attn1.key_value(b, h, Some(step.rope))?;
                match step.shard {
                    None => attn1.forward(b, &q, &(k, v), &AttentionBias::NONE),
                    Some(shard) => attn1.forward_shared(b, shard, [&q, &k, &v]),
                }
            }
        }
    }
}

/// Blocks that spatio-temporal guidance disturbs, and how.
#[derive(Clone, Copy, Debug)]
pub struct Perturbation<'a> {
    /// What happens in them.
    pub mode: StgMode,
    /// Their numbers.
    pub blocks: &'a [usize],
}

impl Perturbation<'_> {
    /// Nothing is disturbed.
    pub const NONE: Self = Self {
        mode: StgMode::Residual,
        blocks: &[],
    };

    fn of(&self, block: usize) -> Option<StgMode> {
        self.blocks.contains(&block).then_some(self.mode)
    }
}

/// What the blocks of one forward pass share.
struct Step<'a, B: Backend> {
    /// `[T, 6 D]`.
    temb: &'a B::Tensor,
    index: &'a B::Index,
    rope: &'a Rope<B>,
    /// `[N]`.
    text_bias: &'a B::Tensor,
    shard: Option<&'a Shard<'a, B>>,
}

/// A prompt as cross-attention sees it: computed once for all steps.
pub struct TextContext<B: Backend> {
    /// Keys and values of each block, `[N, D]`.
    blocks: Vec<(B::Tensor, B::Tensor)>,
    /// Added to the scores, `[N]`.
    bias: B::Tensor,
}

/// What the blocks read besides the tokens and the timesteps.
pub struct Around<'a, B: Backend> {
    /// The prompt.
    pub text: &'a TextContext<B>,
    /// For each token, its place among the distinct timesteps.
    pub index: &'a B::Index,
    /// Where the tokens are.
    pub rope: &'a Rope<B>,
    /// What spatio-temporal guidance disturbs.
    pub perturbation: Perturbation<'a>,
    /// Whose tokens these are, where a gang shares them.
    pub shard: Option<&'a Shard<'a, B>>,
}

/// The timesteps of a forward pass, embedded.
pub struct Told<B: Backend> {
    /// `[T, D]`.
    embedded: B::Tensor,
    /// `[T, 6 D]`.
    temb: B::Tensor,
}

/// The timesteps of a window's tokens.
pub struct TokenTimesteps<B: Backend> {
    /// Distinct timesteps, 0..1000.
    pub distinct: Vec<f32>,
    /// For each token, its place in `distinct`.
    pub index: B::Index,
}

/// The loaded transformer.
pub struct Transformer<B: Loader> {
    proj_in: B::Matrix,
    time_embed: TimestepEmbedder<B>,
    time_linear: B::Matrix,
    caption_1: B::Matrix,
    caption_2: B::Matrix,
    blocks: Vec<Block<B>>,
    /// `[2, D]`: shift, scale.
    scale_shift_table: B::Tensor,
    proj_out: B::Matrix,
    config: TransformerConfig,
}

impl<B: Loader> Transformer<B> {
    /// Loads the weights of folder `transformer`.
    pub fn load(b: &B, w: &Weights, config: &TransformerConfig) -> Result<Self> {
        let dim = config.inner_dim();
        let blocks = (0..config.num_layers)
            .map(|i| Block::load(b, w, &format!("transformer_blocks.{i}"), config))
            .collect::<Result<_>>()?;
        let caption = |i, from| {
            w.matrix(
                b,
                &format!("caption_projection.linear_{i}"),
                dim,
                from,
                true,
            )
        };
        Ok(Self {
            proj_in: w.matrix(b, "proj_in", dim, config.in_channels, true)?,
            time_embed: TimestepEmbedder::load(b, w, "time_embed.emb", dim)?,
            time_linear: w.matrix(b, "time_embed.linear", 6 * dim, dim, true)?,
            caption_1: caption(1, config.caption_channels)?,
            caption_2: caption(2, dim)?,
            blocks,
            scale_shift_table: w.tensor(b, "scale_shift_table", &[2, dim])?,
            proj_out: w.matrix(b, "proj_out", config.in_channels, dim, true)?,
            config: config.clone(),
        })
    }

    /// Configuration that it was loaded with.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }
}

impl<B: Backend> Transformer<B> {
    /// Projects a prompt and computes every block's cross-attention keys and values.
    pub fn text_context(&self, b: &B, prompt: &Prompt) -> Result<TextContext<B>> {
        let part = || "caption projection".to_owned();
        let shape = Shape::from([prompt.tokens, prompt.channels]);
        let x = b.upload(shape, &prompt.states).in_part(part)?;
        let x = b
            .linear(&x, &self.caption_1, Activation::GeluTanh)
            .in_part(part)?;
        let x = b
            .linear(&x, &self.caption_2, Activation::None)
            .in_part(part)?;
        let bias: Vec<f32> = prompt.mask.iter().map(|m| (1.0 - m) * MASKED).collect();
        let bias = b
            .upload(Shape::from([prompt.tokens]), &bias)
            .in_part(part)?;
        let blocks = self
            .blocks
            .iter()
            .map(|block| block.attn2.key_value(b, &x, None));
        let blocks = blocks.collect::<Op<_>>().in_part(part)?;
        Ok(TextContext { blocks, bias })
    }

    /// Velocity of the tokens `x` `[L, C]`: noise less picture.
    pub fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        text: &TextContext<B>,
        timesteps: &TokenTimesteps<B>,
        rope: &Rope<B>,
    ) -> Result<B::Tensor> {
        let around = Around {
            text,
            index: &timesteps.index,
            rope,
            perturbation: Perturbation::NONE,
            shard: None,
        };
        self.forward_at(b, x, &timestep_sinusoid(b, &timesteps.distinct)?, &around)
    }

    /// The same for timesteps whose sinusoid is on the device: moves nothing from or to the host.
    pub fn forward_at(
        &self,
        b: &B,
        x: &B::Tensor,
        sinusoid: &B::Tensor,
        around: &Around<'_, B>,
    ) -> Result<B::Tensor> {
        let (x, told) = self.enter(b, x, sinusoid)?;
        let x = self.run_blocks(b, x, &told, around)?;
        self.leave(b, &x, &told, around.index)
    }

    /// Tokens `[L, D]` as the first block sees them, and the embedded timesteps.
    pub fn enter(
        &self,
        b: &B,
        x: &B::Tensor,
        sinusoid: &B::Tensor,
    ) -> Result<(B::Tensor, Told<B>)> {
        let part = || "timestep embedding".to_owned();
        let embedded = self.time_embed.embed(b, sinusoid).in_part(part)?; // [T, D]
        let temb = b.silu(&embedded).in_part(part)?;
        let temb = b
            .linear(&temb, &self.time_linear, Activation::None)
            .in_part(part)?;
        let x = b
            .linear(x, &self.proj_in, Activation::None)
            .in_part(|| "proj_in".into())?;
        Ok((x, Told { embedded, temb }))
    }

    /// All blocks, in order.
    pub fn run_blocks(
        &self,
        b: &B,
        mut x: B::Tensor,
        told: &Told<B>,
        around: &Around<'_, B>,
    ) -> Result<B::Tensor> {
        let step = Step {
            temb: &told.temb,
            index: around.index,
            rope: around.rope,
            text_bias: &around.text.bias,
            shard: around.shard,
        };
        for (i, (block, text)) in self.blocks.iter().zip(&around.text.blocks).enumerate() {
            x = block
                .forward(b, x, text, &step, around.perturbation.of(i))
                .in_part(|| format!("transformer block {i}"))?;
        }
        Ok(x)
    }

    /// Velocity for tokens that come out of the last block.
    pub fn leave(
        &self,
        b: &B,
        x: &B::Tensor,
        told: &Told<B>,
        index: &B::Index,
    ) -> Result<B::Tensor> {
        self.project_out(b, x, &told.embedded, index)
            .in_part(|| "proj_out".into())
    }

    /// The first block's self-attention input `[L, D]`, for tokens that [`Self::enter`] gave; with
    /// no blocks, the tokens themselves.
    pub fn first_input(
        &self,
        b: &B,
        h: &B::Tensor,
        told: &Told<B>,
        index: &B::Index,
    ) -> Result<B::Tensor> {
        let Some(block) = self.blocks.first() else {
            return Ok(h.clone());
        };
        let modulated = || {
            let table = &b.add_table(&told.temb, &block.scale_shift_table)?;
            let modulation = Modulation {
                table,
                index,
                shift: 0,
                scale: 1,
            };
            b.rms_norm_modulate(h, block.eps, &modulation)
        };
        modulated().in_part(|| "transformer block 0".into())
    }

    /// Number of blocks.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    fn project_out(
        &self,
        b: &B,
        x: &B::Tensor,
        embedded: &B::Tensor,
        index: &B::Index,
    ) -> Op<B::Tensor> {
        // The two rows of the table share one embedding.
        let table = &b.add_table(embedded, &self.scale_shift_table)?;
        let modulation = Modulation {
            table,
            index,
            shift: 0,
            scale: 1,
        };
        let x = b.layer_norm_modulate(x, OUT_EPS, &modulation)?;
        b.linear(&x, &self.proj_out, Activation::None)
    }
}
