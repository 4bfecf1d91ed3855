//! Norms against f64, on every level and for several thread counts.

use super::super::testing::{Random, assert_close, each_isa, same_bits_for_any_threads};
use super::*;

fn exact(norm: &Norm<'_>, x: &[f32]) -> Vec<f64> {
    let dim = norm.dim;
    let mut y = Vec::new();
    for (i, row) in x.chunks(dim).enumerate() {
        let row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
        let mean = if norm.centre {
            row.iter().sum::<f64>() / dim as f64
        } else {
            0.0
        };
        let squares = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / dim as f64;
        for (c, v) in row.iter().enumerate() {
            let mut v = (v - mean) / (squares + f64::from(norm.eps)).sqrt();
            v *= norm.weight.map_or(1.0, |weight| f64::from(weight[c]));
            if let Some(m) = norm.modulate {
                let at = m.set_of_row.map_or(0, |sets| sets[i] as usize) * dim + c;
                v = v * (1.0 + f64::from(m.scale[at])) + f64::from(m.shift[at]);
            }
            y.push(if norm.silu {
                v / (1.0 + libm::exp(-v))
            } else {
                v
            });
        }
    }
    y
}

#[test]
fn every_combination_matches_f64() {
    let mut random = Random::new(31);
    let mut shapes = vec![(1, 1), (3000, 16), (200, 256), (7, 2048), (1, 40000)];
    shapes.extend((0..12).map(|_| (random.size(90), random.size(700))));
    for (case, (rows, dim)) in shapes.into_iter().enumerate() {
        let x: Vec<f32> = random
            .values(rows * dim)
            .iter()
            .map(|v| v * 3.0 + 0.5)
            .collect();
        let (weight, scale, shift) = (
            random.values(dim),
            random.values(3 * dim),
            random.values(3 * dim),
        );
        let sets: Vec<u32> = (0..rows).map(|_| random.size(3) as u32 - 1).collect();
        let modulate = Modulate {
            scale: &scale,
            shift: &shift,
            set_of_row: (case % 2 == 0).then_some(&sets[..]),
        };
        for choice in 0..8 {
            let norm = Norm {
                dim,
                eps: [1e-6, 1e-5][case % 2],
                centre: choice % 2 == 0,
                weight: (choice / 2 % 2 == 0).then_some(&weight[..]),
                modulate: (choice / 4 == 0).then_some(modulate),
                silu: case % 3 == 0,
            };
            let exact = exact(&norm, &x);
            each_isa(|isa| {
                let y = same_bits_for_any_threads(x.len(), |y| norm.run(isa, &x, y));
                assert_close(
                    &y,
                    &exact,
                    2e-6,
                    &format!("{isa} {rows}x{dim} choice {choice}"),
                );
            });
        }
    }
}

#[test]
fn public_functions_do_what_they_say() {
    let x = [3.0, 4.0, 0.0, 0.0];
    let modulate = Modulate {
        scale: &[1.0; 4],
        shift: &[0.5; 4],
        set_of_row: None,
    };
    each_isa(|isa| {
        let mut y = [0.0; 4];
        rms_norm(isa, &x, 4, 0.0, Some(&[1.0, 1.0, 1.0, 2.0]), None, &mut y);
        assert_close(&y, &[1.2, 1.6, 0.0, 0.0], 1e-6, "rms");
        layer_norm(isa, &x, 2, 0.75, None, None, &mut y);
        assert_close(&y, &[-0.5, 0.5, 0.0, 0.0], 1e-6, "layer");
        pixel_norm(isa, &x, 4, 0.0, Some(modulate), false, &mut y);
        assert_close(&y, &[2.9, 3.7, 0.5, 0.5], 1e-6, "pixel");
        pixel_norm(isa, &[0.0; 4], 4, 1e-8, Some(modulate), true, &mut y);
        let silu = 0.5 / (1.0 + libm::exp(-0.5));
        assert_close(&y, &[silu; 4], 1e-6, "pixel of nothing");
    });
}

#[test]
fn not_a_number_reaches_its_row_only() {
    let mut x = Random::new(32).values(9 * 33);
    x[4 * 33 + 32] = f32::NAN;
    each_isa(|isa| {
        let mut y = vec![0.0; x.len()];
        pixel_norm(isa, &x, 33, 1e-8, None, true, &mut y);
        for (i, v) in y.iter().enumerate() {
            assert_eq!(v.is_nan(), i / 33 == 4, "{isa}: element {i}");
        }
    });
}
