//! Attention against f64, on every level and for several thread counts.

use super::super::testing::{Random, assert_close, each_isa, same_bits_for_any_threads};
use super::*;

struct Inputs {
    shape: AttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    key_bias: Vec<f32>,
    full_bias: Vec<f32>,
}

impl Inputs {
    fn new(heads: usize, head_dim: usize, lq: usize, lk: usize, seed: u64) -> Inputs {
        let mut random = Random::new(seed);
        let width = heads * head_dim;
        // Large queries, so that the softmax has something to decide.
        let q = random
            .values(lq * width)
            .into_iter()
            .map(|v| 4.0 * v)
            .collect();
        Inputs {
            shape: AttentionShape {
                heads,
                head_dim,
                lq,
                lk,
            },
            q,
            k: random.values(lk * width),
            v: random.values(lk * width),
            key_bias: random.values(lk),
            full_bias: random.values(heads * lq * lk),
        }
    }

    fn exact(&self, scale: f32, bias: AttentionBias<'_>) -> Vec<f64> {
        let AttentionShape {
            heads,
            head_dim,
            lq,
            lk,
        } = self.shape;
        let at = |token: usize, head: usize| (token * heads + head) * head_dim;
        let mut out = vec![0.0; lq * heads * head_dim];
        for (head, i) in (0..heads).flat_map(|head| (0..lq).map(move |i| (head, i))) {
            let score = |j: usize| {
                let (q, k) = (&self.q[at(i, head)..], &self.k[at(j, head)..]);
                let dot = (0..head_dim)
                    .map(|d| f64::from(q[d]) * f64::from(k[d]))
                    .sum::<f64>();
                dot * f64::from(scale)
                    + match bias {
                        AttentionBias::None => 0.0,
                        AttentionBias::Key(bias) => f64::from(bias[j]),
                        AttentionBias::Full(bias) => f64::from(bias[(head * lq + i) * lk + j]),
                    }
            };
            let scores: Vec<f64> = (0..lk).map(score).collect();
            let high = scores
                .iter()
                .fold(f64::NEG_INFINITY, |high, v| high.max(*v));
            let weights: Vec<f64> = scores.iter().map(|v| libm::exp(v - high)).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..head_dim {
                let value = |j: usize| weights[j] * f64::from(self.v[at(j, head) + d]);
                out[at(i, head) + d] = (0..lk).map(value).sum::<f64>() / total;
            }
        }
        out
    }

    fn run(&self, isa: Isa, scale: f32, bias: AttentionBias<'_>, out: &mut [f32]) {
        attention(isa, self.shape, &self.q, &self.k, &self.v, scale, bias, out);
    }
}

#[test]
fn shapes_and_biases_match_f64() {
    let mut random = Random::new(21);
    let mut shapes = vec![
        (4, 64, 100, 300),
        (2, 32, 57, 129),
        (1, 128, 60, 128),
        (3, 40, 1, 1),
    ];
    shapes.extend((0..10).map(|_| {
        (
            random.size(4),
            random.size(80),
            random.size(130),
            random.size(400),
        )
    }));
    for (case, (heads, dim, lq, lk)) in shapes.into_iter().enumerate() {
        let inputs = Inputs::new(heads, dim, lq, lk, case as u64);
        let scale = 1.0 / (dim as f32).sqrt();
        let biases = [
            AttentionBias::None,
            AttentionBias::Key(&inputs.key_bias),
            AttentionBias::Full(&inputs.full_bias),
        ];
        for bias in biases {
            let exact = inputs.exact(scale, bias);
            each_isa(|isa| {
                let out = same_bits_for_any_threads(exact.len(), |out| {
                    inputs.run(isa, scale, bias, out);
                });
                assert_close(&out, &exact, 5e-6, &format!("{isa} {:?}", inputs.shape));
            });
        }
    }
}

#[test]
fn removed_keys_do_not_count() {
    let mut inputs = Inputs::new(2, 32, 9, 300, 3);
    // Whole blocks before and behind the keys that stay.
    let bias: Vec<f32> = (0..300)
        .map(|j| {
            if (140..160).contains(&j) {
                0.0
            } else {
                f32::NEG_INFINITY
            }
        })
        .collect();
    let finite: Vec<f32> = bias.iter().map(|b| b.max(-10000.0)).collect();
    let exact = inputs.exact(0.2, AttentionBias::Key(&bias));
    each_isa(|isa| {
        for bias in [&bias, &finite] {
            let mut out = vec![0.0; exact.len()];
            inputs.run(isa, 0.2, AttentionBias::Key(bias), &mut out);
            assert_close(&out, &exact, 5e-6, isa.name());
        }
    });
    inputs.key_bias.fill(f32::NEG_INFINITY);
    each_isa(|isa| {
        let mut out = vec![0.0; exact.len()];
        inputs.run(isa, 0.2, AttentionBias::Key(&inputs.key_bias), &mut out);
        assert!(
            out.iter().all(|v| v.is_nan()),
            "{isa}: a softmax of nothing has a value"
        );
    });
}

#[test]
fn large_scores_do_not_overflow() {
    let mut inputs = Inputs::new(1, 32, 5, 200, 4);
    inputs.q.iter_mut().for_each(|q| *q *= 100.0);
    let exact = inputs.exact(1.0, AttentionBias::None);
    each_isa(|isa| {
        let mut out = vec![0.0; exact.len()];
        inputs.run(isa, 1.0, AttentionBias::None, &mut out);
        // Scores of about a thousand carry errors of 1e-4.
        assert_close(&out, &exact, 1e-3, isa.name());
    });
}

#[test]
fn not_a_number_reaches_its_query_or_its_channel() {
    let mut inputs = Inputs::new(2, 32, 70, 140, 5);
    inputs.q[(3 * 2) * 32 + 5] = f32::NAN;
    inputs.v[(130 * 2 + 1) * 32 + 7] = f32::NAN;
    each_isa(|isa| {
        let mut out = vec![0.0; 70 * 64];
        inputs.run(isa, 0.2, AttentionBias::None, &mut out);
        for (i, v) in out.iter().enumerate() {
            let (query, head, channel) = (i / 64, i / 32 % 2, i % 32);
            let hit = if head == 0 { query == 3 } else { channel == 7 };
            assert_eq!(
                v.is_nan(),
                hit,
                "{isa}: query {query}, head {head}, channel {channel}"
            );
        }
    });
}
