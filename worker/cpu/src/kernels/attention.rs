//! Softmax attention.

use super::isa::Isa;

/// Shape of an attention call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Heads.
    pub heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// Query tokens.
    pub lq: usize,
    /// Key and value tokens.
    pub lk: usize,
}

/// What is added to the scores before the softmax.
#[derive(Clone, Copy, Debug, Default)]
pub enum AttentionBias<'a> {
    /// Nothing.
    #[default]
    None,
    /// One value per key, `[lk]`: a mask.
    Key(&'a [f32]),
    /// One value per head, query and key, `[heads, lq, lk]`: T5's relative positions.
    Full(&'a [f32]),
}

/// `out = softmax(q k^T * scale + bias) v` per head. Tokens outermost: q and out are
/// `[lq, heads * head_dim]`, k and v are `[lk, heads * head_dim]`.
pub fn attention(
    _isa: Isa,
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    scale: f32,
    bias: AttentionBias<'_>,
    out: &mut [f32],
) {
    let AttentionShape {
        heads,
        head_dim,
        lq,
        lk,
    } = shape;
    let width = heads * head_dim;
    for h in 0..heads {
        for i in 0..lq {
            let q = &q[i * width + h * head_dim..][..head_dim];
            let mut p: Vec<f32> = (0..lk)
                .map(|j| {
                    let k = &k[j * width + h * head_dim..][..head_dim];
                    let add = match bias {
                        AttentionBias::None => 0.0,
                        AttentionBias::Key(b) => b[j],
                        AttentionBias::Full(b) => b[(h * lq + i) * lk + j],
                    };
                    q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>() * scale + add
                })
                .collect();
            let max = p.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
            p.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f32 = p.iter().sum();
            for d in 0..head_dim {
                let o: f32 = (0..lk)
                    .map(|j| p[j] * v[j * width + h * head_dim + d])
                    .sum();
                out[i * width + h * head_dim + d] = o / sum;
            }
        }
    }
}
