//! Noise levels as `RectifiedFlowScheduler` of the official code sets them (`schedulers/rf.py`).

use super::linear_quadratic;
use crate::config::{RectifiedFlowConfig, TimeSampler, TimeShifting};

/// Token counts between which SD3's shift grows, and the shift at either.
const TOKENS: [f64; 2] = [1024.0, 4096.0];
const SHIFTS: [f64; 2] = [0.95, 2.05];

/// `count` levels for a window of `token_count` tokens.
pub(super) fn levels(c: &RectifiedFlowConfig, count: usize, token_count: usize) -> Vec<f32> {
    let even = || {
        let last = 1.0 / count as f64;
        let step = (last - 1.0) / (count.max(2) - 1) as f64;
        (0..count).map(move |i| (1.0 + step * i as f64) as f32)
    };
    let levels: Vec<f32> = match c.sampler {
        TimeSampler::Uniform => even().collect(),
        TimeSampler::LinearQuadratic => linear_quadratic(count).iter().map(|&l| l as f32).collect(),
        TimeSampler::Constant => even().map(|t| time_shift(c.shift, t)).collect(),
    };
    match c.shifting {
        None => levels,
        Some(TimeShifting::Sd3) => {
            let slope = (SHIFTS[1] - SHIFTS[0]) / (TOKENS[1] - TOKENS[0]);
            let shift = slope * token_count as f64 + (SHIFTS[0] - slope * TOKENS[0]);
            let shifted = levels.iter().map(|&t| time_shift(shift, t)).collect();
            match c.target_shift_terminal {
                None => shifted,
                Some(terminal) => stretch(shifted, terminal as f32),
            }
        }
        Some(TimeShifting::SimpleDiffusion) => {
            let ratio = token_count as f64 / c.base_resolution as f64;
            levels.iter().map(|&t| resolution_shift(ratio, t)).collect()
        }
    }
}

fn time_shift(mu: f64, t: f32) -> f32 {
    let e = libm::exp(mu) as f32;
    e / (e + (1.0 / t - 1.0))
}

/// Stretches the levels so that the last is `terminal`.
fn stretch(levels: Vec<f32>, terminal: f32) -> Vec<f32> {
    let Some(&last) = levels.last() else {
        return levels;
    };
    let factor = (1.0 - last) / (1.0 - terminal);
    levels.iter().map(|t| 1.0 - (1.0 - t) / factor).collect()
}

/// `sigmoid(log(t / (1 - t)) + log(ratio))`.
fn resolution_shift(ratio: f64, t: f32) -> f32 {
    let t = f64::from(t);
    let odds = t / (1.0 - t) * ratio;
    if odds.is_infinite() {
        return 1.0;
    }
    (odds / (1.0 + odds)) as f32
}
