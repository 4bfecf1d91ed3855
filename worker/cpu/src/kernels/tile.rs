//! The register tile that matrix products, convolutions and attention share.
//!
//! A tile is a block of up to [`max_rows`] rows and up to three vectors of [`LANES`] columns of
//! an output. For every element it computes
//!
//! `out[i][j] = start + sum over segments s, then k, of a[origin + segment[s] + i*row_stride + k] * b[(s*depth + k)*b_stride + j]`
//!
//! in exactly that order, one fused multiply-add a step (separate multiply and add where the
//! level has no fused one). The order does not depend on the tile's shape, so neither do the
//! bits of the result, however an output is cut into tiles.
//!
//! A matrix product has one segment; a convolution has one for each kernel row (kt x kh of
//! them): with channels last, the kw taps of a row and their input channels are one contiguous
//! run, and neighbouring output positions read runs that start `cin` apart.

use super::isa::Isa;
use super::math::{PORTABLE_FMA, fma};

/// Columns of one vector of a tile, on every level (two registers on AVX2, four on SSE or NEON).
pub const LANES: usize = 16;

/// Vectors of the widest tile.
pub const MAX_VECS: usize = 3;

/// Rows of the tallest tile on any level. Longer loops are no longer unrolled by the compiler.
const MAX_ROWS: usize = 14;

/// Rows of the portable tile: as many as keep their sums in registers.
const SCALAR_ROWS: usize = if cfg!(target_arch = "aarch64") { 4 } else { 2 };

/// A panel of packed columns: `vecs` vectors and perhaps half a one, from column `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panel {
    /// First column.
    pub first: usize,
    /// Columns that exist; the rest of the panel is padding.
    pub cols: usize,
    /// Whole vectors.
    pub vecs: usize,
    /// Whether half a vector follows: 24 channels are not worth the work of 32.
    pub half: bool,
}

impl Panel {
    /// Columns including padding.
    pub fn width(self) -> usize {
        self.vecs * LANES + if self.half { LANES / 2 } else { 0 }
    }

    /// Vectors, the half one included.
    fn registers(self) -> usize {
        self.vecs + usize::from(self.half)
    }
}

/// Cuts `columns` into panels of two vectors; the last one takes what is left, up to three.
pub fn panels(columns: usize) -> impl Iterator<Item = Panel> + Clone {
    let halves = columns.div_ceil(LANES / 2);
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = halves - first / (LANES / 2);
        let take = match left {
            0 => return None,
            1..=6 => left,
            _ => 4,
        };
        let (vecs, half) = (take / 2, take % 2 == 1);
        let panel = Panel {
            first,
            cols: 0,
            vecs,
            half,
        };
        let panel = Panel {
            cols: (columns - first).min(panel.width()),
            ..panel
        };
        first += panel.width();
        Some(panel)
    })
}

/// Rows of the tallest tile of a panel.
pub fn max_rows(isa: Isa, panel: Panel) -> usize {
    match isa {
        Isa::Avx512 => [14, 14, 9][panel.registers() - 1],
        Isa::Avx2 => 6,
        Isa::Scalar => SCALAR_ROWS,
    }
}

/// Cuts `rows` into strips of nearly equal height, at most `max`: (first row, rows).
pub fn strips(rows: usize, max: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    let count = rows.div_ceil(max);
    (0..count).map(move |i| {
        let (first, end) = (i * rows / count, (i + 1) * rows / count);
        (first, end - first)
    })
}

/// What a tile's sums start from.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Zero.
    Zero,
    /// The same row for every row of the tile, at least as many values as the panel has columns.
    Row(&'a [f32]),
    /// What the output holds.
    Output,
}

/// The factors of a tile; see the module for the formula.
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// Left factor.
    pub a: &'a [f32],
    /// Where the tile's first row starts in `a`.
    pub origin: usize,
    /// Offsets of the segments.
    pub segments: &'a [usize],
    /// Distance between rows of `a`.
    pub row_stride: usize,
    /// Length of a segment.
    pub depth: usize,
    /// Right factor, rows of at least the panel's width.
    pub b: &'a [f32],
    /// Distance between rows of `b`.
    pub b_stride: usize,
}

impl Factors<'_> {
    /// Panics unless a tile of `rows` rows and `width` columns stays inside both factors.
    fn check(&self, rows: usize, width: usize) {
        let reach = (rows - 1) * self.row_stride + self.depth;
        for &segment in self.segments {
            assert!(
                self.origin + segment + reach <= self.a.len(),
                "tile leaves its left factor"
            );
        }
        let steps = self.segments.len() * self.depth;
        assert!(
            steps == 0 || (steps - 1) * self.b_stride + width <= self.b.len(),
            "tile leaves its right factor"
        );
    }
}

/// Computes a tile of `rows` rows and the panel's columns into `out`, whose rows lie `stride`
/// apart. `panel.first` is ignored: `factors.b` and `out` start at the panel.
pub fn tile(
    isa: Isa,
    factors: &Factors<'_>,
    panel: Panel,
    rows: usize,
    start: Start<'_>,
    out: &mut [f32],
    stride: usize,
) {
    let (cols, width) = (panel.cols, panel.width());
    assert!(
        rows >= 1 && rows <= max_rows(isa, panel),
        "tile of {rows} rows"
    );
    assert!(
        (rows - 1) * stride + cols <= out.len(),
        "tile leaves its output"
    );
    factors.check(rows, width);
    let mut row = [0.0; MAX_VECS * LANES];
    if let Start::Row(values) = start {
        row[..cols].copy_from_slice(&values[..cols]);
    }
    let load = matches!(start, Start::Output);
    if cols == width {
        return kernel(isa, factors, panel, rows, load, &row, out, stride);
    }
    let mut whole = [0.0; MAX_ROWS * MAX_VECS * LANES];
    if load {
        for i in 0..rows {
            whole[i * width..][..cols].copy_from_slice(&out[i * stride..][..cols]);
        }
    }
    kernel(isa, factors, panel, rows, load, &row, &mut whole, width);
    for i in 0..rows {
        out[i * stride..][..cols].copy_from_slice(&whole[i * width..][..cols]);
    }
}

/// Runs the level's kernel on whole vectors. The caller has checked the factors' bounds.
fn kernel(
    isa: Isa,
    factors: &Factors<'_>,
    panel: Panel,
    rows: usize,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    assert!(
        (rows - 1) * stride + panel.width() <= out.len(),
        "tile leaves its output"
    );
    isa.assert_available();
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is available (asserted above); `tile` checked that every element of
        // the factors that a tile of this shape reads exists, and the assertion above that
        // every element of `out` does; `out` is borrowed mutably, so it overlaps neither factor.
        Isa::Avx512 => unsafe {
            super::tile_x86::avx512(factors, panel, rows, load, row, out, stride)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { super::tile_x86::avx2(factors, panel, rows, load, row, out, stride) },
        _ => scalar(factors, panel, rows, load, row, out, stride),
    }
}

/// The portable kernel.
fn scalar(
    factors: &Factors<'_>,
    panel: Panel,
    rows: usize,
    load: bool,
    row: &[f32],
    out: &mut [f32],
    stride: usize,
) {
    let whole = panel.vecs * LANES;
    for (i, rows) in strips(rows, SCALAR_ROWS) {
        let factors = Factors {
            origin: factors.origin + i * factors.row_stride,
            ..*factors
        };
        let out = &mut out[i * stride..];
        for j in (0..whole).step_by(LANES) {
            if rows == SCALAR_ROWS {
                scalar_tile::<SCALAR_ROWS, LANES>(&factors, j, load, row, out, stride);
            } else {
                for i in 0..rows {
                    let origin = factors.origin + i * factors.row_stride;
                    let (one, out) = (Factors { origin, ..factors }, &mut out[i * stride..]);
                    scalar_tile::<1, LANES>(&one, j, load, row, out, stride);
                }
            }
        }
        for i in 0..if panel.half { rows } else { 0 } {
            let origin = factors.origin + i * factors.row_stride;
            let (one, out) = (Factors { origin, ..factors }, &mut out[i * stride..]);
            scalar_tile::<1, { LANES / 2 }>(&one, whole, load, row, out, stride);
        }
    }
}

/// `ROWS` rows of the `WIDTH` columns from `j` on.
fn scalar_tile<const ROWS: usize, const WIDTH: usize>(
    factors: &Factors<'_>,
    j: usize,
    load: bool,
    row: &[f32],
    out: &mut [f32],
    stride: usize,
) {
    let mut sums = [[0.0f32; WIDTH]; ROWS];
    for (i, sums) in sums.iter_mut().enumerate() {
        let from = if load {
            &out[i * stride + j..]
        } else {
            &row[j..]
        };
        sums.copy_from_slice(&from[..WIDTH]);
    }
    let mut b = factors.b[j.min(factors.b.len())..].chunks(factors.b_stride);
    for &segment in factors.segments {
        let a: [&[f32]; ROWS] = std::array::from_fn(|i| {
            &factors.a[factors.origin + segment + i * factors.row_stride..][..factors.depth]
        });
        for (k, b) in b.by_ref().take(factors.depth).enumerate() {
            let b = &b[..WIDTH];
            for i in 0..ROWS {
                for lane in 0..WIDTH {
                    sums[i][lane] = fma::<PORTABLE_FMA>(a[i][k], b[lane], sums[i][lane]);
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        out[i * stride + j..][..WIDTH].copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_all_columns_with_less_than_half_a_vector_of_padding() {
        for columns in 1..400 {
            let mut next = 0;
            for panel in panels(columns) {
                assert_eq!(panel.first, next, "{columns}");
                assert!(
                    panel.cols >= 1 && panel.registers() <= MAX_VECS,
                    "{columns}"
                );
                assert!(panel.width() - panel.cols < LANES / 2, "{columns}");
                next += panel.cols;
            }
            assert_eq!(next, columns);
        }
    }

    #[test]
    fn strips_cover_all_rows_evenly() {
        for (rows, max) in (0..100).flat_map(|rows| (1..15).map(move |max| (rows, max))) {
            let heights: Vec<usize> = strips(rows, max).map(|(_, height)| height).collect();
            assert_eq!(heights.iter().sum::<usize>(), rows);
            let (low, high) = (heights.iter().min(), heights.iter().max());
            assert!(high <= Some(&max) && high.copied() <= low.map(|low| low + 1));
        }
    }
}
