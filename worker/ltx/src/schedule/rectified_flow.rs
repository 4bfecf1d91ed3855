//! Noise levels as `RectifiedFlowScheduler` of the official code sets them (`schedulers/rf.py`).

use super::linear_quadratic;
use crate::config::{RectifiedFlowConfig, TimeSampler, TimeShifting};

/// Token counts between which SD3's shift grows, and the shift at either.
const TOKENS: [f64; 2] = [1024.0, 4096.0];
const SHIFTS: [f64; 2] = [0.95, 2.05];

/// `count` levels for a window of `token_count` tokens.
pub(super) fn levels(c: &RectifiedFlowConfig, count: usize, token_count: usize) -> Vec<f32> {
    let levels: Vec<f32> = match c.sampler {
        TimeSampler::Uniform => even(count),
        TimeSampler::LinearQuadratic => linear_quadratic(count).iter().map(|&l| l as f32).collect(),
        TimeSampler::Constant => even(count)
            .iter()
            .map(|&t| time_shift(c.shift, t))
            .collect(),
    };
    match c.shifting {
        None => levels,
        Some(TimeShifting::Sd3) => {
            let slope = (SHIFTS[1] - SHIFTS[0]) / (TOKENS[1] - TOKENS[0]);
            let shift = slope * token_count as f64 + (SHIFTS[0] - slope * TOKENS[0]);
            let shifted = levels.iter().map(|&t| time_shift(shift, t)).collect();
            match c.target_shift_terminal {
                None => shifted,
                Some(terminal) => stretch(shifted, terminal),
            }
        }
        Some(TimeShifting::SimpleDiffusion) => {
            let ratio = token_count as f64 / c.base_resolution as f64;
            levels.iter().map(|&t| resolution_shift(ratio, t)).collect()
        }
    }
}

/// `torch.linspace(1, 1 / count, count)`, rounded as torch rounds: counted from the nearer end, in one
/// multiplication and addition.
fn even(count: usize) -> Vec<f32> {
    let last = (1.0 / count as f64) as f32;
    let step = f64::from((last - 1.0) / (count.max(2) - 1) as f32);
    let level = |i: usize| match i < count / 2 || count == 1 {
        true => 1.0 + step * i as f64,
        false => f64::from(last) - step * (count - 1 - i) as f64,
    };
    (0..count).map(|i| level(i) as f32).collect()
}

fn time_shift(mu: f64, t: f32) -> f32 {
    let e = libm::exp(mu) as f32;
    // torch divides a number by a tensor so: the first level may come out just below 1, and whether it
    // does decides which entry of `guidance_timesteps` holds.
    e * (1.0 / (e + (1.0 / t - 1.0)))
}

/// Stretches the levels so that the last is `terminal`.
fn stretch(levels: Vec<f32>, terminal: f64) -> Vec<f32> {
    let Some(&last) = levels.last() else {
        return levels;
    };
    let factor = (1.0 - last) / (1.0 - terminal) as f32;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of the official scheduler's levels: uniform, shifted by size, stretched to 0.1.
    #[test]
    fn levels_are_torchs_to_the_last_bit() {
        let table: [(usize, &[u32]); 4] = [
            (
                6,
                &[
                    0x3f7fffff, 0x3f609ea4, 0x3f3bcce6, 0x3f0ffe6e, 0x3eb6015e, 0x3dccccd0,
                ],
            ),
            (
                640,
                &[
                    0x3f800000, 0x3f6dd7e5, 0x3f58c0fe, 0x3f3ff56d, 0x3f22630c, 0x3efd05b0,
                    0x3ea42674, 0x3dccccd0,
                ],
            ),
            (
                1536,
                &[
                    0x3f800000, 0x3f715fa8, 0x3f5fc30f, 0x3f4a259f, 0x3f2efd20, 0x3f0bd760,
                    0x3eb9247e, 0x3dccccd0,
                ],
            ),
            (
                13376,
                &[
                    0x3f7ffff5, 0x3f7f4e3d, 0x3f7e88d2, 0x3f7dac5d, 0x3f7cb471, 0x3f7b9bb8,
                    0x3f7a5b1f, 0x3f78e98a, 0x3f773ae9, 0x3f753e9d, 0x3f72dd92, 0x3f6ff68b,
                    0x3f6c57f1, 0x3f67b418, 0x3f618a52, 0x3f58f4f4, 0x3f4c2e13, 0x3f37242f,
                    0x3f0e006c, 0x3dccccc8,
                ],
            ),
        ];
        for (token_count, bits) in table {
            let found = levels(&RectifiedFlowConfig::sd3(0.1), bits.len(), token_count);
            let found: Vec<u32> = found.iter().map(|level| level.to_bits()).collect();
            assert_eq!(found, bits, "{token_count} tokens");
        }
    }
}
