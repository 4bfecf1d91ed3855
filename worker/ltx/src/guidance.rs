//! How the predictions of a step are combined: classifier-free guidance, CFG*, spatio-temporal
//! guidance and its rescaling, in the order of the official pipeline. Sums over all values are
//! taken in f64, one after the other.

use crate::sampling::GuidanceStep;
use longtake_tensor::{Backend, Result};

/// Keeps a division by the norm of a prediction from failing.
const NORM_EPS: f64 = 1e-8;

/// The predictions that a step may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Branch {
    /// For the negative prompt.
    Negative,
    /// For the prompt.
    Text,
    /// For the prompt, with blocks disturbed.
    Perturbed,
}

/// Velocities `[L, C]` of one step.
pub(crate) struct Predictions<T> {
    pub text: T,
    /// Present when classifier-free guidance is on.
    pub negative: Option<T>,
    /// Present when STG is on and disturbs a block.
    pub perturbed: Option<T>,
}

/// The velocity that the step takes.
pub(crate) fn combine<B: Backend>(
    b: &B,
    p: Predictions<B::Tensor>,
    now: &GuidanceStep,
    cfg_star_rescale: bool,
) -> Result<B::Tensor> {
    let guided = match &p.negative {
        None => p.text.clone(),
        Some(negative) => {
            let share = match cfg_star_rescale {
                true => projection(b, &p.text, negative)?,
                false => 1.0,
            };
            let scale = now.guidance_scale;
            b.weighted_sum(negative, (1.0 - scale) * share, &p.text, scale)?
        }
    };
    if now.stg_scale <= 0.0 {
        return Ok(guided);
    }
    let guided = match &p.perturbed {
        None => guided,
        Some(perturbed) => {
            let s = now.stg_scale;
            let guided = b.weighted_sum(&guided, 1.0, &p.text, s)?;
            b.weighted_sum(&guided, 1.0, perturbed, -s)?
        }
    };
    if now.rescaling_scale == 1.0 {
        return Ok(guided);
    }
    let factor = deviation(&b.download(&p.text)?) / deviation(&b.download(&guided)?);
    let scale = now.rescaling_scale;
    let factor = scale * factor as f32 + (1.0 - scale);
    b.weighted_sum(&guided, factor, &guided, 0.0)
}

/// `<text, negative> / |negative|^2`: how much of the negative prediction is in the positive one.
fn projection<B: Backend>(b: &B, text: &B::Tensor, negative: &B::Tensor) -> Result<f32> {
    let (text, negative) = (b.download(text)?, b.download(negative)?);
    let pairs = text.iter().zip(&negative);
    let dot: f64 = pairs.map(|(&t, &n)| f64::from(t) * f64::from(n)).sum();
    let norm: f64 = negative.iter().map(|&n| f64::from(n) * f64::from(n)).sum();
    Ok((dot / (norm + NORM_EPS)) as f32)
}

/// Standard deviation with Bessel's correction, as `torch.std`.
pub(crate) fn deviation(values: &[f32]) -> f64 {
    mean_and_deviation(values).1
}

/// Mean and standard deviation of at least two values.
pub(crate) fn mean_and_deviation(values: &[f32]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2));
    (mean, (squares.sum::<f64>() / (count - 1.0)).sqrt())
}
