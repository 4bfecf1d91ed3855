//! Optical flow against motions that are known exactly.

mod common;

use common::{Ball, on_threads, picture, texture};
use longtake_common::Frame;
use longtake_stitch::flow::{FlowField, FlowParams, bidirectional, flow};

/// Motion from picture `b` to picture `a` at a pixel: smooth, up to `size` pixels.
fn motion(x: f64, y: f64, size: f64) -> (f64, f64) {
    (
        size * (x / 75.0 + 0.3).cos() * (y / 65.0).cos(),
        size * (x / 90.0).sin() * (y / 48.0 + 1.0).cos(),
    )
}

fn pair(width: u32, height: u32, size: f64) -> (Frame, Frame) {
    let a = picture(width, height, texture);
    let b = picture(width, height, |x, y| {
        let (u, v) = motion(x, y, size);
        texture(x + u, y + v)
    });
    (a, b)
}

fn mean_error(field: &FlowField, expected: impl Fn(f64, f64) -> (f64, f64)) -> f64 {
    let mut sum = 0.0;
    for y in 0..field.height() {
        for x in 0..field.width() {
            let (u, v) = field.at(x, y);
            let (eu, ev) = expected(f64::from(x), f64::from(y));
            sum += (f64::from(u) - eu).hypot(f64::from(v) - ev);
        }
    }
    sum / f64::from(field.width() * field.height())
}

#[test]
fn a_warp_of_12_pixels_is_found() {
    let (a, b) = pair(480, 272, 12.0);
    let accurate = mean_error(&flow(&b, &a, &FlowParams::ACCURATE), |x, y| {
        motion(x, y, 12.0)
    });
    assert!(accurate < 0.2, "mean end-point error {accurate:.3} px");
    let fast = mean_error(&flow(&b, &a, &FlowParams::FAST), |x, y| motion(x, y, 12.0));
    assert!(fast < 0.4, "mean end-point error {fast:.3} px");
}

#[test]
fn small_pictures_and_large_shifts_work() {
    let a = picture(64, 64, texture);
    let b = picture(64, 64, |x, y| texture(x + 3.0, y - 2.0));
    let error = mean_error(&flow(&b, &a, &FlowParams::ACCURATE), |_, _| (3.0, -2.0));
    assert!(error < 0.25, "mean end-point error {error:.3} px");
    let a = picture(320, 180, texture);
    let b = picture(320, 180, |x, y| texture(x + 31.0, y + 9.0));
    let field = flow(&b, &a, &FlowParams::ACCURATE);
    // In the middle: what moves in over the edge cannot be known.
    let (u, v) = field.at(140, 90);
    assert!((u - 31.0).hypot(v - 9.0) < 0.3, "{u}, {v}");
}

#[test]
fn an_object_of_the_same_brightness_moves_too() {
    // Green and purple of equal luma.
    let at = |x| Ball {
        radius: 18.0,
        x,
        y: 60.0,
        colour: [60.0, 120.0, 60.0],
        ground: [190.0, 76.0, 110.0],
    };
    let (a, b) = (at(60.0).draw(160, 120), at(64.0).draw(160, 120));
    let field = flow(&a, &b, &FlowParams::ACCURATE);
    let (u, v) = field.at(60, 43);
    assert!((u - 4.0).hypot(v) < 0.8, "the rim moves by {u}, {v}");
}

#[test]
fn nothing_moves_in_equal_or_empty_pictures() {
    let a = picture(96, 64, texture);
    assert_eq!(
        flow(&a, &a, &FlowParams::ACCURATE),
        FlowField::still(96, 64)
    );
    let grey = picture(96, 64, |_, _| [90.0; 3]);
    let lighter = picture(96, 64, |_, _| [93.0; 3]);
    let field = flow(&grey, &lighter, &FlowParams::ACCURATE);
    assert!(mean_error(&field, |_, _| (0.0, 0.0)) < 0.01);
}

#[test]
fn hidden_pixels_are_not_trusted() {
    // A textured square moves 10 px to the right over another texture.
    let scene = |shift: f64| {
        picture(160, 120, move |x, y| {
            let (ox, oy) = (x - 50.0 - shift, y - 40.0);
            let inside = (0.0..40.0).contains(&ox) && (0.0..40.0).contains(&oy);
            if inside {
                texture(ox + 400.0, oy)
            } else {
                texture(x, y)
            }
        })
    };
    let flows = bidirectional(&scene(0.0), &scene(10.0), &FlowParams::ACCURATE);
    let mean = |xs: std::ops::Range<u32>| {
        let n = (xs.end - xs.start) as f32 * 20.0;
        let trusted = |x| (50..70).map(|y| flows.forward_trust(x, y)).sum::<f32>();
        xs.map(trusted).sum::<f32>() / n
    };
    // The ground right of the square is covered next; the ground far away and the square are not.
    assert!(mean(92..98) < 0.4, "hidden: {}", mean(92..98));
    assert!(
        mean(120..140) > 0.9 && mean(60..80) > 0.9,
        "{} {}",
        mean(120..140),
        mean(60..80)
    );
}

#[test]
fn odd_sizes_do_not_fail() {
    for (w, h) in [
        (1, 1),
        (1, 9),
        (9, 1),
        (2, 2),
        (7, 3),
        (8, 8),
        (15, 33),
        (17, 16),
        (0, 0),
    ] {
        let a = picture(w, h, texture);
        let b = picture(w, h, |x, y| texture(x + 1.0, y));
        for params in [FlowParams::ACCURATE, FlowParams::FAST] {
            let flows = bidirectional(&a, &b, &params);
            assert_eq!((flows.forward.width(), flows.backward.height()), (w, h));
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (a, b) = pair(230, 131, 6.0);
    let run = |threads| on_threads(threads, || bidirectional(&a, &b, &FlowParams::ACCURATE));
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}
