//! Matrix products with packed weights.

use rayon::prelude::*;

use super::isa::Isa;
use super::math;
use super::scratch::with_scratch;
use super::tile::{Factors, Panel, Start, max_rows, panels, strips, tile};

/// Inner dimension of one block: a panel of it stays in the first-level cache. It fixes where
/// sums pass through memory, not their order.
const DEPTH: usize = 256;

/// Distance between rows of a packed left block: one cache line more than the block is deep, so
/// that rows do not fall on one another in the cache.
const BLOCK_STRIDE: usize = DEPTH + 16;

/// Fewest and most rows of a block.
const FEWEST_BLOCK_ROWS: usize = 14;
const MAX_BLOCK_ROWS: usize = 112;

/// Multiplications below which a product is not worth dividing among threads.
const SERIAL_WORK: usize = 1 << 18;

/// A weight matrix `[n, k]` (PyTorch `Linear`: y = x W^T), packed once into column panels.
/// The layout does not depend on the instruction-set level.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    n: usize,
    k: usize,
    /// Panel after panel, each `[k, width]`, padded with zeros.
    data: Vec<f32>,
}

impl PackedMatrix {
    /// Packs row-major `weights[n, k]`.
    pub fn pack(weights: &[f32], n: usize, k: usize) -> PackedMatrix {
        assert!(n * k > 0, "a [{n}, {k}] matrix has no elements");
        assert_eq!(weights.len(), n * k, "the weights are not [{n}, {k}]");
        let data = pack_panels(n, k, |column, row| weights[column * k + row]);
        PackedMatrix { n, k, data }
    }

    /// Packs row-major `b[k, n]`, the right factor of a product `a b`.
    pub fn pack_transposed(b: &[f32], k: usize, n: usize) -> PackedMatrix {
        assert!(n * k > 0, "a [{k}, {n}] matrix has no elements");
        assert_eq!(b.len(), k * n, "the matrix is not [{k}, {n}]");
        PackedMatrix {
            n,
            k,
            data: pack_panels(n, k, |column, row| b[row * n + column]),
        }
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes that the packed weights occupy.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// Rows `depth` of a panel.
    fn block(&self, panel: Panel, depth: std::ops::Range<usize>) -> &[f32] {
        let start = panel.first * self.k;
        &self.data[start + depth.start * panel.width()..start + depth.end * panel.width()]
    }
}

/// Lays `value(column, row)` out panel after panel, each `[rows, width]`, padded with zeros.
pub(super) fn pack_panels(
    columns: usize,
    rows: usize,
    value: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let mut data = Vec::new();
    for panel in panels(columns) {
        data.reserve(rows * panel.width());
        for row in 0..rows {
            data.extend((panel.first..panel.first + panel.cols).map(|column| value(column, row)));
            data.resize(data.len() + panel.width() - panel.cols, 0.0);
        }
    }
    data
}

/// What is applied to a linear layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Epilogue {
    /// Nothing.
    #[default]
    None,
    /// GELU, tanh approximation.
    GeluTanh,
    /// x * sigmoid(x).
    Silu,
}

impl Epilogue {
    /// Applies it to `y`.
    pub fn apply(self, isa: Isa, y: &mut [f32]) {
        match self {
            Epilogue::None => {}
            Epilogue::GeluTanh => math::gelu_tanh(isa, y),
            Epilogue::Silu => math::silu(isa, y),
        }
    }
}

/// `y[m, n] = epilogue(x[m, k] W^T + bias[n])`; m follows from the length of `y`.
pub fn linear(
    isa: Isa,
    x: &[f32],
    weights: &PackedMatrix,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    y: &mut [f32],
) {
    let (n, k) = (weights.n, weights.k);
    assert!(y.len().is_multiple_of(n), "the output has no rows of {n}");
    let m = y.len() / n;
    assert_eq!(x.len(), m * k, "the input is not [{m}, {k}]");
    assert!(
        bias.is_none_or(|bias| bias.len() == n),
        "the bias is not [{n}]"
    );
    let layer = Layer {
        isa,
        weights,
        bias,
        epilogue,
    };
    let threads = rayon::current_num_threads();
    if threads == 1 || m * n * k <= SERIAL_WORK {
        let rows = MAX_BLOCK_ROWS.min(m).max(1);
        for (x, y) in x.chunks(rows * k).zip(y.chunks_mut(rows * n)) {
            layer.rows(x, panels(n), y, n);
        }
    } else if m >= 4 * FEWEST_BLOCK_ROWS * threads || n <= m {
        let rows = m
            .div_ceil(4 * threads)
            .clamp(FEWEST_BLOCK_ROWS.min(m), MAX_BLOCK_ROWS);
        let blocks = x.par_chunks(rows * k).zip(y.par_chunks_mut(rows * n));
        blocks.for_each(|(x, y)| layer.rows(x, panels(n), y, n));
    } else {
        layer.by_columns(x, m, 4 * threads, y);
    }
}

/// `y[m, n] = a[m, k] b[k, n]`, all row-major. Packs `b` on each call.
pub fn matmul(isa: Isa, a: &[f32], b: &[f32], k: usize, n: usize, y: &mut [f32]) {
    linear(
        isa,
        a,
        &PackedMatrix::pack_transposed(b, k, n),
        None,
        Epilogue::None,
        y,
    );
}

/// A linear layer at work.
#[derive(Clone, Copy)]
struct Layer<'a> {
    isa: Isa,
    weights: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    epilogue: Epilogue,
}

impl Layer<'_> {
    /// Few rows: the columns are divided among threads, and the parts put together at the end.
    fn by_columns(&self, x: &[f32], m: usize, parts: usize, y: &mut [f32]) {
        let n = self.weights.n;
        let all: Vec<Panel> = panels(n).collect();
        let done: Vec<(usize, usize, Vec<f32>)> = all
            .par_chunks(all.len().div_ceil(parts))
            .map(|group| {
                let (first, last) = (group[0].first, group[group.len() - 1]);
                let cols = last.first + last.cols - first;
                let mut part = vec![0.0; m * cols];
                let k = self.weights.k;
                for (x, part) in x
                    .chunks(MAX_BLOCK_ROWS * k)
                    .zip(part.chunks_mut(MAX_BLOCK_ROWS * cols))
                {
                    self.rows(x, group.iter().copied(), part, cols);
                }
                (first, cols, part)
            })
            .collect();
        for (first, cols, part) in done {
            for (y, part) in y.chunks_mut(n).zip(part.chunks(cols)) {
                y[first..][..cols].copy_from_slice(part);
            }
        }
    }

    /// At most [`MAX_BLOCK_ROWS`] rows and some neighbouring panels into `y`, whose rows are
    /// `stride` long and begin with the first panel's first column.
    fn rows(
        &self,
        x: &[f32],
        panels: impl Iterator<Item = Panel> + Clone,
        y: &mut [f32],
        stride: usize,
    ) {
        let k = self.weights.k;
        let rows = y.len() / stride;
        with_scratch(rows * BLOCK_STRIDE, |block| {
            for start in (0..k).step_by(DEPTH) {
                let end = (start + DEPTH).min(k);
                for (x, block) in x.chunks(k).zip(block.chunks_mut(BLOCK_STRIDE)) {
                    block[..end - start].copy_from_slice(&x[start..end]);
                }
                let mut first = None;
                for panel in panels.clone() {
                    let column = panel.first - *first.get_or_insert(panel.first);
                    self.panel(block, start..end, panel, rows, &mut y[column..], stride);
                }
            }
            self.epilogue.apply(self.isa, y);
        });
    }

    /// One panel's share of the inner dimension.
    fn panel(
        &self,
        block: &[f32],
        depth: std::ops::Range<usize>,
        panel: Panel,
        rows: usize,
        y: &mut [f32],
        stride: usize,
    ) {
        let start = match self.bias {
            _ if depth.start > 0 => Start::Output,
            Some(bias) => Start::Row(&bias[panel.first..][..panel.cols]),
            None => Start::Zero,
        };
        for (row, rows) in strips(rows, max_rows(self.isa, panel)) {
            let factors = Factors {
                a: block,
                origin: row * BLOCK_STRIDE,
                segments: &[0],
                row_stride: BLOCK_STRIDE,
                depth: depth.len(),
                b: self.weights.block(panel, depth.clone()),
                b_stride: panel.width(),
            };
            let y = &mut y[row * stride..];
            tile(self.isa, &factors, panel, rows, start, y, stride);
        }
    }
}

#[cfg(test)]
#[path = "gemm_tests.rs"]
mod tests;
