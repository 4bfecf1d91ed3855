//! Matrix products against f64, on every level and for several thread counts.

use super::super::testing::{Random, assert_close, each_isa, same_bits_for_any_threads};
use super::*;

fn reference(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize, n: usize) -> Vec<f64> {
    let row = |x: &[f32]| -> Vec<f64> {
        (0..n)
            .map(|j| {
                let dot = x
                    .iter()
                    .zip(&w[j * k..])
                    .map(|(&a, &b)| f64::from(a) * f64::from(b));
                dot.sum::<f64>() + bias.map_or(0.0, |bias| f64::from(bias[j]))
            })
            .collect()
    };
    x.chunks(k).flat_map(row).collect()
}

fn activate(epilogue: Epilogue, x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    match epilogue {
        Epilogue::None => x,
        Epilogue::GeluTanh => x / (1.0 + libm::exp(-2.0 * u)),
        Epilogue::Silu => x / (1.0 + libm::exp(-x)),
    }
}

#[test]
fn linear_matches_f64_for_odd_shapes_and_any_threads() {
    let mut random = Random::new(1);
    let mut shapes = vec![
        (1, 1, 1),
        (1, 256, 1536),
        (3, 257, 129),
        (130, 600, 70),
        (300, 31, 48),
    ];
    shapes.extend((0..20).map(|_| (random.size(150), random.size(600), random.size(150))));
    for (case, (m, k, n)) in shapes.into_iter().enumerate() {
        let (x, w, bias) = (random.values(m * k), random.values(n * k), random.values(n));
        let bias = (case % 2 == 0).then_some(&bias[..]);
        let epilogue = [Epilogue::None, Epilogue::GeluTanh, Epilogue::Silu][case % 3];
        let packed = PackedMatrix::pack(&w, n, k);
        let mut exact = reference(&x, &w, bias, k, n);
        exact.iter_mut().for_each(|v| *v = activate(epilogue, *v));
        each_isa(|isa| {
            let y = same_bits_for_any_threads(m * n, |y| {
                linear(isa, &x, &packed, bias, epilogue, y);
            });
            assert_close(&y, &exact, 2e-6, &format!("{isa} {m}x{k}x{n} {epilogue:?}"));
        });
    }
}

#[test]
fn matmul_is_linear_with_the_right_factor_transposed() {
    let mut random = Random::new(2);
    let (m, k, n) = (37, 65, 51);
    let (a, b) = (random.values(m * k), random.values(k * n));
    let w: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
    each_isa(|isa| {
        let mut y = vec![0.0; m * n];
        matmul(isa, &a, &b, k, n, &mut y);
        assert_close(&y, &reference(&a, &w, None, k, n), 2e-6, isa.name());
    });
}

#[test]
fn not_a_number_reaches_its_row_or_column_and_no_other() {
    let (m, k, n) = (20, 33, 50);
    let mut random = Random::new(3);
    let (mut x, mut w) = (random.values(m * k), random.values(n * k));
    x[7 * k + 32] = f32::NAN;
    w[41 * k] = f32::NAN;
    let packed = PackedMatrix::pack(&w, n, k);
    each_isa(|isa| {
        let mut y = vec![0.0; m * n];
        linear(isa, &x, &packed, None, Epilogue::GeluTanh, &mut y);
        for (i, v) in y.iter().enumerate() {
            assert_eq!(v.is_nan(), i / n == 7 || i % n == 41, "{isa}: element {i}");
        }
    });
}

#[test]
fn no_rows_are_no_work() {
    let packed = PackedMatrix::pack(&[1.0], 1, 1);
    linear(Isa::detect(), &[], &packed, None, Epilogue::None, &mut []);
}
