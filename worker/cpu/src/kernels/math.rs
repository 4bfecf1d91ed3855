//! Element-wise functions with own polynomials.
//!
//! Each function is one branch-free expression of a lane; the compiler vectorises the loop over
//! a slice for the level asked for. The result of an element depends on nothing but the element,
//! so a slice may be cut anywhere. Not a number in, not a number out.
//!
//! Largest errors against f64, measured by the tests of this module over dense sweeps
//! (ulp: units in the last place of the exact result):
//!
//! | function | range | error |
//! |---|---|---|
//! | `exp` | everything that is normal | 2 ulp |
//! | `sigmoid` | above -87 | 3 ulp |
//! | `tanh` | everything | 2 ulp |
//! | `silu` | above -87 | 4 ulp |
//! | `gelu_tanh` | above -5 | 3e-6 relative (rounding of the exponent); below, 1e-11 absolute |

use rayon::prelude::*;

use super::isa::Isa;

/// `a * b + c`, rounded once where `FMA`, else twice.
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Whether the portable level has a fused multiply-add: a call into a software routine would be
/// slower by orders of magnitude.
pub(super) const PORTABLE_FMA: bool = cfg!(target_arch = "aarch64");

/// The sum of all lanes, in halves: the same order however wide the registers are.
#[inline(always)]
pub(super) fn tree_sum(lanes: [f32; 16]) -> f32 {
    let mut eight = [0.0; 8];
    for i in 0..8 {
        eight[i] = lanes[i] + lanes[i + 8];
    }
    let mut four = [0.0; 4];
    for i in 0..4 {
        four[i] = eight[i] + eight[i + 4];
    }
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Calls `$body::<FMA>(args)`, compiled for the level.
macro_rules! dispatch {
    ($isa:expr, $body:ident($($arg:ident: $ty:ty = $value:expr),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        #[allow(clippy::too_many_arguments)]
        fn avx512($($arg: $ty),*) $(-> $ret)? {
            $body::<true>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        #[allow(clippy::too_many_arguments)]
        fn avx2($($arg: $ty),*) $(-> $ret)? {
            $body::<true>($($arg),*)
        }
        $isa.assert_available();
        match $isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: safe code; the processor has its instructions, as asserted above.
            $crate::kernels::isa::Isa::Avx512 => unsafe { avx512($($value),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::kernels::isa::Isa::Avx2 => unsafe { avx2($($value),*) },
            _ => $body::<{ $crate::kernels::math::PORTABLE_FMA }>($($value),*),
        }
    }};
}
pub(super) use dispatch;

/// The functions of one lane, for kernels that fuse them into their own loops.
pub(super) mod lane {
    use super::fma;

    /// 1.5 * 2^23: adding it rounds a small number to an integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 to 15 bits, so that products with exponents are exact.
    const LN2_HIGH: f32 = 0.693_145_75;
    /// ln 2 - LN2_HIGH.
    const LN2_LOW: f32 = 1.428_606_8e-6;

    /// 2^n for -126 <= n <= 127, n integral.
    #[inline(always)]
    fn power_of_two(n: i32) -> f32 {
        f32::from_bits((n.wrapping_add(127) << 23) as u32)
    }

    /// The larger one; `x` if it is not a number.
    #[inline(always)]
    fn at_least(x: f32, low: f32) -> f32 {
        if x < low { low } else { x }
    }

    /// The smaller one; `x` if it is not a number.
    #[inline(always)]
    fn at_most(x: f32, high: f32) -> f32 {
        if x > high { high } else { x }
    }

    /// exp: x = n ln 2 + r, |r| <= ln 2 / 2, exp(r) by a minimax polynomial.
    #[inline(always)]
    pub fn exp<const FMA: bool>(x: f32) -> f32 {
        // Beyond these the result is infinite, or zero after rounding.
        let x = at_most(at_least(x, -104.0), 89.0);
        let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
        let mut p = 1.991_618_3e-4;
        for c in [
            1.394_731_5e-3,
            8.333_269e-3,
            4.166_625e-2,
            1.666_666_7e-1,
            0.5,
        ] {
            p = fma::<FMA>(p, r, c);
        }
        let p = fma::<FMA>(p * r, r, r) + 1.0;
        // n reaches 128 and -150: two factors, so that neither leaves the range of exponents.
        // For not a number the bits are arbitrary, but p is not a number already.
        let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let half = n >> 1;
        p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
    }

    /// 1 / (1 + exp(-x)).
    #[inline(always)]
    pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
        1.0 / (1.0 + exp::<FMA>(-x))
    }

    /// x sigmoid(x).
    #[inline(always)]
    pub fn silu<const FMA: bool>(x: f32) -> f32 {
        x / (1.0 + exp::<FMA>(-x))
    }

    /// x/2 (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): no cancellation.
    #[inline(always)]
    pub fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
        /// 2 sqrt(2/pi)
        const LINEAR: f32 = 1.595_769_2;
        /// 0.044715 * LINEAR
        const CUBIC: f32 = 0.071_354_82;
        // Where exp would overflow the result is zero anyway; x * 0 instead of x / inf keeps
        // infinities from turning into 0/0.
        let u = at_least(x, -20.0);
        let u = u * fma::<FMA>(u * u, CUBIC, LINEAR);
        x * (1.0 / (1.0 + exp::<FMA>(-u)))
    }

    /// tanh: an odd polynomial near zero, 1 - 2/(exp(2|x|) + 1) elsewhere.
    #[inline(always)]
    pub fn tanh<const FMA: bool>(x: f32) -> f32 {
        let z = x * x;
        let mut p = 2.064_636_7e-3;
        for c in [
            -8.091_932e-3,
            2.166_633e-2,
            -5.394_056e-2,
            1.333_315_8e-1,
            -3.333_333e-1,
        ] {
            p = fma::<FMA>(p, z, c);
        }
        let near = fma::<FMA>(p * z, x, x);
        let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * x.abs()) + 1.0);
        let magnitude = if x.abs() < 0.65 { near } else { far };
        magnitude.copysign(x)
    }
}

/// Elements of one task, where a slice is long enough to be divided among threads.
const TASK_ELEMENTS: usize = 1 << 14;

macro_rules! over_slice {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(isa: Isa, x: &mut [f32]) {
            #[inline(always)]
            fn body<const FMA: bool>(x: &mut [f32]) {
                let (whole, rest) = x.as_chunks_mut::<16>();
                for chunk in whole {
                    for value in chunk {
                        *value = lane::$name::<FMA>(*value);
                    }
                }
                let mut padded = [0.0; 16];
                padded[..rest.len()].copy_from_slice(rest);
                for value in &mut padded {
                    *value = lane::$name::<FMA>(*value);
                }
                rest.copy_from_slice(&padded[..rest.len()]);
            }
            if x.len() > 2 * TASK_ELEMENTS && rayon::current_num_threads() > 1 {
                x.par_chunks_mut(TASK_ELEMENTS)
                    .for_each(|x| dispatch!(isa, body(x: &mut [f32] = x)));
            } else {
                dispatch!(isa, body(x: &mut [f32] = x));
            }
        }
    )*};
}

over_slice! {
    /// `x = exp(x)` for each element.
    exp;
    /// `x = 1 / (1 + exp(-x))` for each element.
    sigmoid;
    /// `x = x / (1 + exp(-x))` for each element.
    silu;
    /// `x = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))` for each element.
    gelu_tanh;
    /// `x = tanh(x)` for each element.
    tanh;
}

#[cfg(test)]
#[path = "math_tests.rs"]
mod tests;
