//! Classifier-free guidance.

use longtake_tensor::{Backend, Result};

/// Whether a scale asks for a second, unconditional pass: diffusers does so above 1.
pub fn is_on(guidance_scale: f32) -> bool {
    guidance_scale > 1.0
}

/// `uncond + scale (text - uncond)`.
pub fn combine<B: Backend>(
    b: &B,
    uncond: &B::Tensor,
    text: &B::Tensor,
    scale: f32,
) -> Result<B::Tensor> {
    b.weighted_sum(uncond, 1.0 - scale, text, scale)
}
