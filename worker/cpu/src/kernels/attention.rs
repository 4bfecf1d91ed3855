//! Softmax attention in blocks, with memory linear in the number of tokens.
//!
//! Keys and values are repacked once, head by head. A task is a block of queries of one head: it
//! walks over the keys in blocks of [`KEYS`], keeps each query's running maximum and sum, and
//! rescales its output when the maximum grows. The walk has one order for every query, so the
//! bits do not depend on how queries are divided.

use rayon::prelude::*;

use super::isa::Isa;
use super::math::{dispatch, lane};
use super::scratch::with_scratch;
use super::tile::{Factors, LANES, Start, max_rows, panels, strips, tile};

/// Keys of one block. Part of the arithmetic: a constant.
const KEYS: usize = 128;

/// Most and fewest queries of one task. They affect speed only.
const QUERIES: usize = 56;
const FEWEST_QUERIES: usize = 14;

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

impl<'a> AttentionBias<'a> {
    /// The values for one query and a range of keys.
    fn row(
        self,
        shape: AttentionShape,
        head: usize,
        query: usize,
        first: usize,
        keys: usize,
    ) -> Option<&'a [f32]> {
        match self {
            AttentionBias::None => None,
            AttentionBias::Key(bias) => Some(&bias[first..][..keys]),
            AttentionBias::Full(bias) => {
                Some(&bias[(head * shape.lq + query) * shape.lk + first..][..keys])
            }
        }
    }
}

/// `out = softmax(q k^T * scale + bias) v` per head. Tokens outermost: q and out are
/// `[lq, heads * head_dim]`, k and v are `[lk, heads * head_dim]`.
///
/// A bias of minus infinity removes a key. A query whose keys are all removed, or an empty `k`,
/// gives not-a-number: its softmax is undefined.
pub fn attention(
    isa: Isa,
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
    assert_eq!(
        q.len(),
        lq * width,
        "queries are not [{lq}, {heads} * {head_dim}]"
    );
    assert_eq!(
        out.len(),
        lq * width,
        "the output is not [{lq}, {heads} * {head_dim}]"
    );
    assert_eq!(
        k.len(),
        lk * width,
        "keys are not [{lk}, {heads} * {head_dim}]"
    );
    assert_eq!(
        v.len(),
        lk * width,
        "values are not [{lk}, {heads} * {head_dim}]"
    );
    match bias {
        AttentionBias::None => {}
        AttentionBias::Key(bias) => assert_eq!(bias.len(), lk, "the bias is not [{lk}]"),
        AttentionBias::Full(bias) => {
            assert_eq!(
                bias.len(),
                heads * lq * lk,
                "the bias is not [{heads}, {lq}, {lk}]"
            );
        }
    }
    if out.is_empty() {
        return;
    }
    let packed: Vec<Head> = (0..heads)
        .into_par_iter()
        .map(|h| Head::pack(shape, h, k, v))
        .collect();
    let fair = lq.div_ceil(4 * rayon::current_num_threads());
    let queries = fair.clamp(FEWEST_QUERIES, QUERIES);
    out.par_chunks_mut(queries * width)
        .enumerate()
        .for_each(|(index, out)| {
            let first = index * queries;
            let task = Task {
                isa,
                shape,
                q: &q[first * width..][..out.len()],
                first,
                scale,
                bias,
            };
            for (head, packed) in packed.iter().enumerate() {
                task.run(head, packed, out);
            }
        });
}

/// Keys and values of one head.
struct Head {
    /// Block after block of [`KEYS`] keys, each panel after panel `[head_dim, width]`.
    keys: Vec<f32>,
    /// Panel after panel of channels, `[lk, width]`.
    values: Vec<f32>,
}

impl Head {
    fn pack(shape: AttentionShape, head: usize, k: &[f32], v: &[f32]) -> Head {
        let AttentionShape {
            heads,
            head_dim,
            lk,
            ..
        } = shape;
        let row = |token: usize| (token * heads + head) * head_dim;
        let mut keys = vec![0.0; lk.next_multiple_of(LANES) * head_dim];
        for first in (0..lk).step_by(KEYS) {
            for panel in panels(KEYS.min(lk - first)) {
                let place = &mut keys[(first + panel.first) * head_dim..];
                for i in 0..panel.cols {
                    let key = &k[row(first + panel.first + i)..][..head_dim];
                    for (d, value) in key.iter().enumerate() {
                        place[d * panel.width() + i] = *value;
                    }
                }
            }
        }
        let mut values = vec![0.0; head_dim.next_multiple_of(LANES) * lk];
        for panel in panels(head_dim) {
            let place = values[panel.first * lk..].chunks_mut(panel.width());
            for (token, place) in place.take(lk).enumerate() {
                let value = &v[row(token) + panel.first..][..panel.cols];
                place[..panel.cols].copy_from_slice(value);
            }
        }
        Head { keys, values }
    }
}

/// Some queries' attention.
struct Task<'a> {
    isa: Isa,
    shape: AttentionShape,
    /// The task's queries, all heads.
    q: &'a [f32],
    /// The first of them.
    first: usize,
    scale: f32,
    bias: AttentionBias<'a>,
}

impl Task<'_> {
    /// One head's output for the task's queries.
    fn run(&self, head: usize, packed: &Head, out: &mut [f32]) {
        let AttentionShape {
            heads,
            head_dim,
            lk,
            ..
        } = self.shape;
        let count = out.len() / (heads * head_dim);
        let at = |i: usize| (i * heads + head) * head_dim;
        // One cache line more than needed between rows keeps them from falling on one another.
        let stride = head_dim.next_multiple_of(LANES) + LANES;
        let mut running = [(f32::NEG_INFINITY, 0.0f32); QUERIES];
        let sizes = [count * stride, count * stride, count * SCORES];
        with_scratch(sizes.iter().sum(), |memory| {
            let (queries, memory) = memory.split_at_mut(sizes[0]);
            let (sums, scores) = memory.split_at_mut(sizes[1]);
            sums.fill(0.0);
            for i in 0..count {
                let q = &self.q[at(i)..][..head_dim];
                queries[i * stride..]
                    .iter_mut()
                    .zip(q)
                    .for_each(|(to, q)| *to = q * self.scale);
            }
            for first in (0..lk).step_by(KEYS) {
                let keys = KEYS.min(lk - first);
                self.scores(&packed.keys, first, keys, queries, stride, scores);
                for i in 0..count {
                    let bias = self.bias.row(self.shape, head, self.first + i, first, keys);
                    let row = &mut scores[i * SCORES..][..keys];
                    let sums = &mut sums[i * stride..][..head_dim];
                    running[i] = soften(self.isa, running[i], bias, row, sums);
                }
                self.values(&packed.values, first, keys, scores, sums, stride);
            }
            for i in 0..count {
                let (sums, total) = (&sums[i * stride..], running[i].1);
                out[at(i)..][..head_dim]
                    .iter_mut()
                    .zip(sums)
                    .for_each(|(o, s)| *o = s / total);
            }
        });
    }

    /// Scores of all the task's queries against one block of keys.
    fn scores(
        &self,
        packed: &[f32],
        first: usize,
        keys: usize,
        queries: &[f32],
        stride: usize,
        scores: &mut [f32],
    ) {
        let dim = self.shape.head_dim;
        // Only the last block has padding, so the blocks before it are this long.
        let block = &packed[first * dim..];
        let count = scores.len() / SCORES;
        for panel in panels(keys) {
            for (row, rows) in strips(count, max_rows(self.isa, panel)) {
                let factors = Factors {
                    a: queries,
                    origin: row * stride,
                    segments: &[0],
                    row_stride: stride,
                    depth: dim,
                    b: &block[panel.first * dim..],
                    b_stride: panel.width(),
                };
                let scores = &mut scores[row * SCORES + panel.first..];
                tile(self.isa, &factors, panel, rows, Start::Zero, scores, SCORES);
            }
        }
    }

    /// Adds one block's values, weighted by the scores, to the sums.
    fn values(
        &self,
        packed: &[f32],
        first: usize,
        keys: usize,
        scores: &[f32],
        sums: &mut [f32],
        stride: usize,
    ) {
        let AttentionShape { head_dim, lk, .. } = self.shape;
        let count = scores.len() / SCORES;
        for panel in panels(head_dim) {
            for (row, rows) in strips(count, max_rows(self.isa, panel)) {
                let factors = Factors {
                    a: scores,
                    origin: row * SCORES,
                    segments: &[0],
                    row_stride: SCORES,
                    depth: keys,
                    b: &packed[panel.first * lk + first * panel.width()..],
                    b_stride: panel.width(),
                };
                let sums = &mut sums[row * stride + panel.first..];
                tile(self.isa, &factors, panel, rows, Start::Output, sums, stride);
            }
        }
    }
}

/// Distance between rows of scores.
const SCORES: usize = KEYS + LANES;

/// Turns one query's scores of a block into weights exp(score - maximum), in place, and rescales
/// what was summed so far. `running` is (maximum, sum of weights) before the block; returned is
/// the same after it.
fn soften(
    isa: Isa,
    running: (f32, f32),
    bias: Option<&[f32]>,
    scores: &mut [f32],
    sums: &mut [f32],
) -> (f32, f32) {
    dispatch!(isa, soften_body(
        running: (f32, f32) = running,
        bias: Option<&[f32]> = bias,
        scores: &mut [f32] = scores,
        sums: &mut [f32] = sums,
    ) -> (f32, f32))
}

#[inline(always)]
fn soften_body<const FMA: bool>(
    (old, total): (f32, f32),
    bias: Option<&[f32]>,
    scores: &mut [f32],
    sums: &mut [f32],
) -> (f32, f32) {
    if let Some(bias) = bias {
        scores
            .iter_mut()
            .zip(bias)
            .for_each(|(score, bias)| *score += bias);
    }
    // Lanes of their own, so that the order is the same however wide the registers are.
    let mut lanes = [old; LANES];
    let (whole, rest) = scores.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] {
                chunk[i]
            } else {
                lanes[i]
            };
        }
    }
    let highest = lanes
        .iter()
        .chain(rest)
        .fold(old, |high, &v| if v > high { v } else { high });
    // With every key removed so far there is nothing to subtract: weights become exp(-inf) = 0.
    let shift = if highest == f32::NEG_INFINITY {
        0.0
    } else {
        highest
    };
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            chunk[i] = lane::exp::<FMA>(chunk[i] - shift);
            lanes[i] += chunk[i];
        }
    }
    for (score, sum) in rest.iter_mut().zip(&mut lanes) {
        *score = lane::exp::<FMA>(*score - shift);
        *sum += *score;
    }
    let keep = lane::exp::<FMA>(old - shift);
    if keep != 1.0 {
        sums.iter_mut().for_each(|sum| *sum *= keep);
    }
    (highest, total * keep + super::math::tree_sum(lanes))
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
