//! Errors of the element-wise functions over dense sweeps, on every level.

use super::*;

/// Every 997th float of either sign between the bounds' magnitudes, and some round numbers.
fn sweep(low: f32, high: f32) -> Vec<f32> {
    let mut x: Vec<f32> = (0..0x7f80_0000u32)
        .step_by(997)
        .map(f32::from_bits)
        .collect();
    x.extend(x.clone().iter().map(|v| -v));
    x.extend((-4000..=4000).map(|i| i as f32 / 32.0));
    x.retain(|v| (low..=high).contains(v));
    x
}

/// Largest error in units in the last place of the exact result.
fn worst_ulp(run: impl Fn(&mut [f32]), exact: impl Fn(f64) -> f64, x: &[f32]) -> f64 {
    let mut y = x.to_vec();
    run(&mut y);
    let mut worst = 0.0f64;
    for (&x, &y) in x.iter().zip(&y) {
        let exact = exact(f64::from(x));
        let unit = f64::from((exact as f32).abs().max(f32::MIN_POSITIVE).next_up())
            - f64::from((exact as f32).abs().max(f32::MIN_POSITIVE));
        let error = (f64::from(y) - exact).abs() / unit;
        assert!(!error.is_nan(), "f({x}) = {y}, not {exact}");
        worst = worst.max(error);
    }
    worst
}

fn exact_sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn exact_gelu(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    x / (1.0 + libm::exp(-2.0 * u))
}

#[test]
fn errors_stay_within_the_documented_bounds() {
    for isa in Isa::available() {
        let everything = sweep(f32::MIN, f32::MAX);
        let upper = sweep(-87.0, f32::MAX);
        let exp = worst_ulp(|x| exp(isa, x), libm::exp, &sweep(-87.3, 88.7));
        let sigmoid = worst_ulp(|x| sigmoid(isa, x), exact_sigmoid, &upper);
        let silu = worst_ulp(|x| silu(isa, x), |x| x * exact_sigmoid(x), &upper);
        let tanh = worst_ulp(|x| tanh(isa, x), libm::tanh, &everything);
        println!("{isa}: exp {exp:.2} sigmoid {sigmoid:.2} silu {silu:.2} tanh {tanh:.2} ulp");
        assert!(exp <= 2.0 && sigmoid <= 3.0 && silu <= 4.0 && tanh <= 2.0);
    }
}

#[test]
fn gelu_stays_within_its_bounds() {
    for isa in Isa::available() {
        let x = sweep(f32::MIN, f32::MAX);
        let mut y = x.clone();
        gelu_tanh(isa, &mut y);
        let mut worst = 0.0f64;
        for (&x, &y) in x.iter().zip(&y) {
            let exact = exact_gelu(f64::from(x));
            let error = (f64::from(y) - exact).abs();
            if x >= -5.0 {
                // The smallest numbers have no relative precision left.
                worst = worst.max(error / exact.abs().max(f64::from(f32::MIN_POSITIVE)));
            } else {
                assert!(error <= 1e-11, "{isa}: gelu({x}) = {y}, not {exact}");
            }
        }
        println!("{isa}: gelu {worst:.2e} relative");
        assert!(worst <= 3e-6, "{isa}: gelu is off by {worst}");
    }
}

#[test]
fn ends_of_the_range() {
    for isa in Isa::available() {
        let mut x = [
            f32::NEG_INFINITY,
            -200.0,
            -103.0,
            0.0,
            -0.0,
            88.8,
            200.0,
            f32::INFINITY,
        ];
        exp(isa, &mut x);
        let tiny = f32::from_bits(1);
        let inf = f32::INFINITY;
        assert_eq!(x, [0.0, 0.0, tiny, 1.0, 1.0, inf, inf, inf], "{isa}");
        let mut x = [f32::NEG_INFINITY, f32::INFINITY, -0.0, 30.0];
        tanh(isa, &mut x);
        assert_eq!(x, [-1.0, 1.0, 0.0, 1.0], "{isa}");
        assert!(x[2].is_sign_negative(), "{isa}: tanh(-0)");
        let mut x = [-100.0, -1e30, 1e30, f32::INFINITY];
        gelu_tanh(isa, &mut x);
        assert_eq!(x, [0.0, 0.0, 1e30, f32::INFINITY], "{isa}");
    }
}

#[test]
fn not_a_number_stays_so_and_slices_may_be_cut_anywhere() {
    for isa in Isa::available() {
        for run in [exp, sigmoid, silu, gelu_tanh, tanh] {
            for bits in [0x7fc0_0000u32, 0xffc0_0000, 0x7f80_0001, 0x7fff_ffff] {
                let mut x = [f32::from_bits(bits); 17];
                run(isa, &mut x);
                assert!(x.iter().all(|v| v.is_nan()), "{isa}: {bits:x}");
            }
            let x: Vec<f32> = (0..103).map(|i| (i as f32 - 50.0) * 0.37).collect();
            let mut whole = x.clone();
            run(isa, &mut whole);
            for len in [1, 3, 16, 50] {
                let mut cut = x.clone();
                cut.chunks_mut(len).for_each(|part| run(isa, part));
                assert_eq!(cut, whole, "{isa}");
            }
        }
    }
}
