//! What a window is held to, mixed in around every step, as ComfyUI does it (`KSamplerX0Inpaint` in
//! `comfy/samplers.py`; `LTXV.process_timestep` and `scale_latent_inpaint` in `comfy/model_base.py`):
//! of a token held at strength s, the transformer sees s of the picture and 1 - s of the noisy value,
//! and of its prediction 1 - s counts.

use longtake_tensor::{Backend, Result, Shape};

/// The held tokens of a window.
pub(crate) struct Mixing<B: Backend> {
    /// `[L, C]`, 0 where a token is free.
    held: B::Tensor,
    /// For each kind of token, minus its strength.
    away: Vec<f32>,
    /// For each kind of token, its strength.
    strengths: Vec<f32>,
}

impl<B: Backend> Mixing<B> {
    /// Tokens held to `held` `[L, C]`, by the strength of their kind.
    pub fn new(b: &B, held: &[f32], channels: usize, strengths: Vec<f32>) -> Result<Self> {
        Ok(Self {
            held: b.upload(Shape::from([held.len() / channels, channels]), held)?,
            away: strengths.iter().map(|s| -s).collect(),
            strengths,
        })
    }

    /// `x` `[L, C]` with what is held mixed in.
    pub fn mixed(&self, b: &B, x: &B::Tensor, index: &B::Index) -> Result<B::Tensor> {
        let rest = b.add_scaled_tokens(x.clone(), x, &self.away, index)?;
        b.add_scaled_tokens(rest, &self.held, &self.strengths, index)
    }

    /// The clean picture that velocity `v`, predicted for `seen` at noise level `level`, leads to, with
    /// what is held mixed in.
    pub fn clean(
        &self,
        b: &B,
        seen: &B::Tensor,
        v: &B::Tensor,
        level: f32,
        index: &B::Index,
    ) -> Result<B::Tensor> {
        self.mixed(b, &b.weighted_sum(seen, 1.0, v, -level)?, index)
    }
}
