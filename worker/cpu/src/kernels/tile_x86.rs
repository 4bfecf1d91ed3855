//! The register tile on AVX-512 and AVX2; see [`super::tile`] for the formula and its order.

use std::arch::x86_64::*;

use super::tile::{Factors, LANES, MAX_VECS};

/// Rows whose addresses are formed from one pointer: bounds the general registers in use.
const GROUP: usize = 7;

/// Picks the kernel compiled for this many rows and vectors.
///
/// # Safety
/// The processor has AVX-512F. For every row i < rows, segment s and k < depth,
/// `a[origin + segments[s] + i*row_stride + k]` exists; for every step t < segments*depth and
/// column j < 16*vecs, `b[t*b_stride + j]` and, for every row, `out[i*stride + j]` exist.
#[target_feature(enable = "avx512f")]
pub unsafe fn avx512(
    factors: &Factors<'_>,
    vecs: usize,
    rows: usize,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    macro_rules! pick {
        ($($vecs:literal: $($rows:literal)*;)*) => {
            match (vecs, rows) {
                // SAFETY: this function's own contract.
                $($(($vecs, $rows) => unsafe {
                    avx512_tile::<$rows, $vecs>(factors, load, row, out, stride)
                },)*)*
                _ => unreachable!("no tile of {rows} rows and {vecs} vectors"),
            }
        };
    }
    pick! {
        1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
        2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
        3: 1 2 3 4 5 6 7 8 9;
    }
}

/// One tile of `ROWS` rows and `VECS` registers each.
///
/// # Safety
/// As [`avx512`] with `rows = ROWS`, `vecs = VECS`.
#[target_feature(enable = "avx512f")]
unsafe fn avx512_tile<const ROWS: usize, const VECS: usize>(
    factors: &Factors<'_>,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    let out = out.as_mut_ptr();
    let mut sums = [[_mm512_setzero_ps(); VECS]; ROWS];
    for i in 0..ROWS {
        for j in 0..VECS {
            // SAFETY: `out[i*stride + 16j ..][..16]` exists by contract; VECS <= MAX_VECS.
            sums[i][j] = unsafe {
                let from = if load {
                    out.add(i * stride).cast_const()
                } else {
                    row.as_ptr()
                };
                _mm512_loadu_ps(from.add(j * LANES))
            };
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
                for i in 0..ROWS {
                    let value = _mm512_set1_ps(*group[i / GROUP].add(offset[i % GROUP] + k));
                    for j in 0..VECS {
                        sums[i][j] = _mm512_fmadd_ps(value, columns[j], sums[i][j]);
                    }
                }
                b = b.wrapping_add(factors.b_stride);
            }
        }
    }
    for i in 0..ROWS {
        for j in 0..VECS {
            // SAFETY: as for the loads above.
            unsafe { _mm512_storeu_ps(out.add(i * stride + j * LANES), sums[i][j]) };
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
    vecs: usize,
    rows: usize,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    for j in (0..vecs * LANES).step_by(LANES) {
        macro_rules! pick {
            ($($rows:literal)*) => {
                match rows {
                    // SAFETY: this function's own contract; j + 16 <= 16*vecs.
                    $($rows => unsafe {
                        avx2_tile::<$rows>(factors, j, load, row, out, stride)
                    },)*
                    _ => unreachable!("no tile of {rows} rows"),
                }
            };
        }
        pick!(1 2 3 4 5 6);
    }
}

/// One tile of `ROWS` rows and the 16 columns from `first` on.
///
/// # Safety
/// As [`avx2`] with `rows = ROWS`, for the columns `first..first + 16`.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_tile<const ROWS: usize>(
    factors: &Factors<'_>,
    first: usize,
    load: bool,
    row: &[f32; MAX_VECS * LANES],
    out: &mut [f32],
    stride: usize,
) {
    let out = out.as_mut_ptr();
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for i in 0..ROWS {
        for j in 0..2 {
            // SAFETY: `out[i*stride + first + 8j ..][..8]` exists by contract, and so does
            // `row[first + 8j ..][..8]`, because first + 16 <= 16 * MAX_VECS.
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
                let columns = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for i in 0..ROWS {
                    let value = _mm256_set1_ps(*a.add(i * factors.row_stride + k));
                    for j in 0..2 {
                        sums[i][j] = _mm256_fmadd_ps(value, columns[j], sums[i][j]);
                    }
                }
                b = b.wrapping_add(factors.b_stride);
            }
        }
    }
    for i in 0..ROWS {
        for j in 0..2 {
            // SAFETY: as for the loads above.
            unsafe { _mm256_storeu_ps(out.add(i * stride + first + j * 8), sums[i][j]) };
        }
    }
}
