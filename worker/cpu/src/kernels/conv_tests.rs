//! Convolutions against f64, on every level and for several thread counts.

use super::super::testing::{Random, assert_close, each_isa, same_bits_for_any_threads};
use super::*;

struct Case {
    size: [usize; 3],
    cin: usize,
    cout: usize,
    kernel: [usize; 3],
    padding: TemporalPadding,
}

fn reference(case: &Case, x: &[f32], w: &[f32], bias: &[f32], residual: &[f32]) -> Vec<f64> {
    let ([t, h, wd], [kt, kh, kw]) = (case.size, case.kernel);
    let (cin, cout, taps) = (case.cin, case.cout, kt * kh * kw);
    let front = match case.padding {
        TemporalPadding::Causal => kt - 1,
        TemporalPadding::Symmetric | TemporalPadding::Zeros => (kt - 1) / 2,
        TemporalPadding::Part { begins, .. } => (kt - 1) / 2 * usize::from(begins),
    };
    let mut y = Vec::new();
    for i in 0..residual.len() {
        let (position, co) = (i / cout, i % cout);
        let (ot, oy, ox) = (position / (h * wd), position / wd % h, position % wd);
        let mut sum = f64::from(bias[co]) + f64::from(residual[i]);
        for tap in 0..taps {
            let it = ot + tap / (kh * kw);
            if case.padding == TemporalPadding::Zeros && (it < front || it - front >= t) {
                continue;
            }
            let it = it.saturating_sub(front).min(t - 1);
            let iy = (oy + tap / kw % kh).wrapping_sub(kh / 2);
            let ix = (ox + tap % kw).wrapping_sub(kw / 2);
            for ci in 0..if iy < h && ix < wd { cin } else { 0 } {
                let x = x[((it * h + iy) * wd + ix) * cin + ci];
                sum += f64::from(x) * f64::from(w[(co * cin + ci) * taps + tap]);
            }
        }
        y.push(sum);
    }
    y
}

fn check(case: &Case, seed: u64) {
    let mut random = Random::new(seed);
    let [t, h, wd] = case.size;
    let len = case.padding.output_frames(t, case.kernel[0]) * h * wd * case.cout;
    let x = random.values(t * h * wd * case.cin);
    let w = random.values(case.cout * case.cin * case.kernel.iter().product::<usize>());
    let (bias, residual) = (random.values(case.cout), random.values(len));
    let packed = PackedConv::pack(&w, case.cout, case.cin, case.kernel);
    let (nothing, none) = (vec![0.0; case.cout], vec![0.0; len]);
    for (with_bias, with_residual) in [(true, true), (true, false), (false, false)] {
        let b = if with_bias { &bias } else { &nothing };
        let r = if with_residual { &residual } else { &none };
        let exact = reference(case, &x, &w, b, r);
        each_isa(|isa| {
            let y = same_bits_for_any_threads(len, |y| {
                let bias = with_bias.then_some(&bias[..]);
                let residual = with_residual.then_some(&residual[..]);
                conv3d(isa, &x, case.size, &packed, case.padding, bias, residual, y);
            });
            let what = format!(
                "{isa} {:?} {}->{} {:?} {:?}",
                case.size, case.cin, case.cout, case.kernel, case.padding
            );
            assert_close(&y, &exact, 2e-6, &what);
        });
    }
}

const PADDINGS: [TemporalPadding; 6] = [
    TemporalPadding::Causal,
    TemporalPadding::Symmetric,
    TemporalPadding::Zeros,
    part(false, false),
    part(true, false),
    part(false, true),
];

const fn part(begins: bool, ends: bool) -> TemporalPadding {
    TemporalPadding::Part { begins, ends }
}

#[test]
fn random_shapes_match_f64() {
    let mut random = Random::new(11);
    for seed in 0..24 {
        let kernel = [[3, 3, 3], [1, 1, 1], [1, 3, 3], [3, 1, 1], [2, 5, 3]][seed as usize % 5];
        let size = [
            random.size(4) + kernel[0] - 1,
            random.size(9),
            random.size(40),
        ];
        let (cin, cout) = (random.size(20), random.size(70));
        let padding = PADDINGS[random.size(3) - 1];
        check(
            &Case {
                size,
                cin,
                cout,
                kernel,
                padding,
            },
            seed,
        );
    }
}

#[test]
fn channel_counts_of_the_model_match_f64() {
    for (i, (cin, cout)) in [(24, 24), (24, 40), (16, 48), (48, 16), (32, 129), (128, 16)]
        .into_iter()
        .enumerate()
    {
        let case = Case {
            size: [3, 4, 7],
            cin,
            cout,
            kernel: [3; 3],
            padding: PADDINGS[i % 3],
        };
        check(&case, 100 + i as u64);
    }
}

#[test]
fn large_frames_are_cut_into_lines() {
    let padding = TemporalPadding::Symmetric;
    check(
        &Case {
            size: [2, 21, 65],
            cin: 33,
            cout: 17,
            kernel: [3; 3],
            padding,
        },
        7,
    );
}

#[test]
fn valid_padding_gives_the_inner_frames_bit_for_bit() {
    let mut random = Random::new(5);
    let (size, cin, cout) = ([7, 5, 9], 6, 20);
    let (x, w) = (
        random.values(7 * 5 * 9 * cin),
        random.values(cin * cout * 27),
    );
    let packed = PackedConv::pack(&w, cout, cin, [3; 3]);
    let frame = 5 * 9 * cout;
    each_isa(|isa| {
        let (mut whole, mut inner) = (vec![0.0; 7 * frame], vec![0.0; 5 * frame]);
        let symmetric = TemporalPadding::Symmetric;
        conv3d(isa, &x, size, &packed, symmetric, None, None, &mut whole);
        conv3d(
            isa,
            &x,
            size,
            &packed,
            part(false, false),
            None,
            None,
            &mut inner,
        );
        assert_eq!(whole[frame..6 * frame], inner, "{isa}");
    });
}

#[test]
fn not_a_number_reaches_its_neighbourhood_and_no_further() {
    let (size, cin, cout) = ([5, 6, 7], 4, 18);
    let mut random = Random::new(6);
    let (mut x, w) = (
        random.values(5 * 6 * 7 * cin),
        random.values(cin * cout * 27),
    );
    x[((2 * 6 + 3) * 7 + 3) * cin + 1] = f32::NAN;
    let packed = PackedConv::pack(&w, cout, cin, [3; 3]);
    each_isa(|isa| {
        let mut y = vec![0.0; 5 * 6 * 7 * cout];
        conv3d(
            isa,
            &x,
            size,
            &packed,
            TemporalPadding::Causal,
            None,
            None,
            &mut y,
        );
        for (i, v) in y.iter().enumerate() {
            let (t, line, column) = (i / cout / 42, i / cout / 7 % 6, i / cout % 7);
            let near = (2..=4).contains(&t) && line.abs_diff(3) <= 1 && column.abs_diff(3) <= 1;
            assert_eq!(
                v.is_nan(),
                near,
                "{isa}: frame {t}, line {line}, column {column}"
            );
        }
    });
}
