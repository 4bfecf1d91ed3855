//! The register tile on AVX-512 and AVX2; see [`super::tile`] for the formula and its order.

use std::arch::x86_64::*;

use super::tile::{Factors, LANES, MAX_VECS, Panel};

/// Rows whose addresses are formed from one pointer: bounds the general registers in use.
const GROUP: usize = 7;

/// Picks the kernel compiled for this panel and this many rows.
///
/// # Safety
/// The processor has AVX-512F, AVX2 and FMA. For every row i < rows, segment s and k < depth,
/// `a[origin + segments[s] + i*row_stride + k]` exists; for every step t < segments*depth and
/// column j < `panel.width()`, `b[t*b_stride + j]` and, for every row, `out[i*stride + j]` exist.
#[target_feature(enable = "avx512f,avx2,fma")]
pub unsafe fn avx512(
    factors: &Factors<'_>,
    panel: Panel,
    rows: usize,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    macro_rules! pick {
        ($($vecs:literal $half:literal: $($rows:literal)*;)*) => {
            match (panel.vecs, panel.half, rows) {
                // SAFETY: this function's own contract.
                $($(($vecs, $half, $rows) => unsafe {
                    avx512_tile::<$rows, $vecs, $half>(factors, load, row, out, stride)
                },)*)*
                _ => unreachable!("no tile of {rows} rows for {panel:?}"),
            }
        };
    }
    pick! {
        0 true: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
        1 false: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
        1 true: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
        2 false: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
        2 true: 1 2 3 4 5 6 7 8 9;
        3 false: 1 2 3 4 5 6 7 8 9;
    }
}

/// One tile of `ROWS` rows, `VECS` whole registers each, and a half one if `HALF`.
///
/// # Safety
/// As [`avx512`] with `rows = ROWS` and a panel of that shape.
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn avx512_tile<const ROWS: usize, const VECS: usize, const HALF: bool>(
    factors: &Factors<'_>,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    let out = out.as_mut_ptr();
    let mut sums = [[_mm512_setzero_ps(); VECS]; ROWS];
    let mut halves = [_mm256_setzero_ps(); ROWS];
    for i in 0..ROWS {
        // SAFETY: the panel's columns of `out[i*stride ..]` exist by contract, and no panel is
        // wider than `row`.
        unsafe {
            let from = if load {
                out.add(i * stride).cast_const()
            } else {
                row.as_ptr()
            };
            for j in 0..VECS {
                sums[i][j] = _mm512_loadu_ps(from.add(j * LANES));
            }
            if HALF {
                halves[i] = _mm256_loadu_ps(from.add(VECS * LANES));
            }
        }
    }
    let offset: [usize; GROUP] = std::array::from_fn(|i| i * factors.row_stride);
    let mut b = factors.b.as_ptr();
    for &segment in factors.segments {
        // SAFETY: row i of the segment is `depth` elements from `group[i/7] + offset[i%7]` on,
        // inside `a` by contract (the pointers of groups beyond ROWS are never formed); `b`
        // moves one row a step and stays inside `b` until after its last step.
        unsafe {
            let a = factors.a.as_ptr().add(factors.origin + segment);
            let group: [*const f32; 2] = std::array::from_fn(|g| {
                if g * GROUP < ROWS {
                    a.add(g * GROUP * factors.row_stride)
                } else {
                    a
                }
            });
            for k in 0..factors.depth {
                let columns: [__m512; VECS] =
                    std::array::from_fn(|j| _mm512_loadu_ps(b.add(j * LANES)));
                let last = if HALF {
                    _mm256_loadu_ps(b.add(VECS * LANES))
                } else {
                    _mm256_setzero_ps()
                };
                for i in 0..ROWS {
                    let value = _mm512_set1_ps(*group[i / GROUP].add(offset[i % GROUP] + k));
                    for j in 0..VECS {
                        sums[i][j] = _mm512_fmadd_ps(value, columns[j], sums[i][j]);
                    }
                    if HALF {
                        halves[i] = _mm256_fmadd_ps(_mm512_castps512_ps256(value), last, halves[i]);
                    }
                }
                b = b.wrapping_add(factors.b_stride);
            }
        }
    }
    for i in 0..ROWS {
        // SAFETY: as for the loads above.
        unsafe {
            for j in 0..VECS {
                _mm512_storeu_ps(out.add(i * stride + j * LANES), sums[i][j]);
            }
            if HALF {
                _mm256_storeu_ps(out.add(i * stride + VECS * LANES), halves[i]);
            }
        }
    }
}

/// Picks the kernel compiled for this many rows; one vector after the other.
///
/// # Safety
/// The processor has AVX2 and FMA; the rest as [`avx512`].
#[target_feature(enable = "avx2,fma")]
pub unsafe fn avx2(
    factors: &Factors<'_>,
    panel: Panel,
    rows: usize,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    macro_rules! pick {
        ($registers:literal, $first:expr) => {
            pick!($registers, $first, 1 2 3 4 5 6)
        };
        ($registers:literal, $first:expr, $($rows:literal)*) => {
            match rows {
                // SAFETY: this function's own contract; the columns belong to the panel.
                $($rows => unsafe {
                    avx2_tile::<$rows, $registers>(factors, $first, load, row, out, stride)
                },)*
                _ => unreachable!("no tile of {rows} rows"),
            }
        };
    }
    let whole = panel.vecs * LANES;
    for first in (0..whole).step_by(LANES) {
        pick!(2, first);
    }
    if panel.half {
        pick!(1, whole);
    }
}

/// One tile of `ROWS` rows and the `8 * REGISTERS` columns from `first` on.
///
/// # Safety
/// As [`avx2`] with `rows = ROWS`, for the columns `first..first + 8 * REGISTERS`.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_tile<const ROWS: usize, const REGISTERS: usize>(
    factors: &Factors<'_>,
    first: usize,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    let out = out.as_mut_ptr();
    let mut sums = [[_mm256_setzero_ps(); REGISTERS]; ROWS];
    for i in 0..ROWS {
        for j in 0..REGISTERS {
            // SAFETY: `out[i*stride + first + 8j ..][..8]` exists by contract, and so does
            // `row[first + 8j ..][..8]`, because no panel is wider than `row`.
            sums[i][j] = unsafe {
                let from = if load {
                    out.add(i * stride).cast_const()
                } else {
                    row.as_ptr()
                };
                _mm256_loadu_ps(from.add(first + j * 8))
            };
        }
    }
    let mut b = factors.b.as_ptr().wrapping_add(first);
    for &segment in factors.segments {
        // SAFETY: row i of the segment is `depth` elements from `a + i*row_stride` on, inside
        // `a` by contract; `b` moves one row a step and stays inside `b` until its last step.
        unsafe {
            let a = factors.a.as_ptr().add(factors.origin + segment);
            for k in 0..factors.depth {
                let columns: [__m256; REGISTERS] =
                    std::array::from_fn(|j| _mm256_loadu_ps(b.add(j * 8)));
                for i in 0..ROWS {
                    let value = _mm256_set1_ps(*a.add(i * factors.row_stride + k));
                    for j in 0..REGISTERS {
                        sums[i][j] = _mm256_fmadd_ps(value, columns[j], sums[i][j]);
                    }
                }
                b = b.wrapping_add(factors.b_stride);
            }
        }
    }
    for i in 0..ROWS {
        for j in 0..REGISTERS {
            // SAFETY: as for the loads above.
            unsafe { _mm256_storeu_ps(out.add(i * stride + first + j * 8), sums[i][j]) };
        }
    }
}
