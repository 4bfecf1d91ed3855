//! The judge against frames whose contents are known.

use super::*;

#[derive(Clone, Copy)]
struct Scene {
    shape: &'static str,
    colour: usize,
    background: usize,
    radius: f64,
    x: f64,
    y: f64,
    /// Pixels a frame.
    velocity: (f64, f64),
    /// Grey levels of noise.
    noise: f64,
}

const WIDTH: u32 = 256;
const HEIGHT: u32 = 160;

/// Sum of four uniform draws: close enough to a Gaussian of deviation 1.
fn noise(state: &mut u64) -> f64 {
    (0..4)
        .map(|_| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (*state >> 33) as f64 / f64::from(1u32 << 31) - 0.5
        })
        .sum::<f64>()
        * 3f64.sqrt()
}

impl Scene {
    fn centre(&self, frame: u32) -> (f64, f64) {
        let t = f64::from(frame);
        (
            (self.x + self.velocity.0 * t).rem_euclid(f64::from(WIDTH)),
            (self.y + self.velocity.1 * t).rem_euclid(f64::from(HEIGHT)),
        )
    }

    fn draw(&self, frame: u32) -> Frame {
        let (cx, cy) = self.centre(frame);
        let mut state = u64::from(frame) + 1;
        let mut out = Frame::black(WIDTH, HEIGHT);
        let (w, h) = (f64::from(WIDTH), f64::from(HEIGHT));
        for (i, pixel) in out.data_mut().chunks_exact_mut(3).enumerate() {
            let (x, y) = (
                (i % WIDTH as usize) as f64 + 0.5,
                (i / WIDTH as usize) as f64 + 0.5,
            );
            let dx = (x - cx + w / 2.0).rem_euclid(w) - w / 2.0;
            let dy = (y - cy + h / 2.0).rem_euclid(h) - h / 2.0;
            let m = ideal_coverage(self.shape, self.radius, dx, dy);
            for c in 0..3 {
                let ground = BACKGROUNDS[self.background].1[c] * gradient(y / h);
                let value = ground + m * (COLOURS[self.colour].1[c] - ground);
                pixel[c] = (255.0 * value + self.noise * noise(&mut state))
                    .round()
                    .clamp(0.0, 255.0) as u8;
            }
        }
        out
    }

    fn track(&self, frames: u32) -> Track {
        let mut track = Track::new(WIDTH, HEIGHT, 24.0);
        (0..frames).for_each(|f| track.push(look(&self.draw(f))));
        track
    }
}

const BALL: Scene = Scene {
    shape: "ball",
    colour: 0,
    background: 3,
    radius: 18.0,
    x: 250.0,
    y: 20.0,
    velocity: (90.0 / 24.0, 0.0),
    noise: 3.0,
};

#[test]
fn every_kind_is_recognised_wherever_it_is() {
    let mut case = 0u32;
    for shape in SHAPES {
        for colour in 0..COLOURS.len() {
            for background in 0..BACKGROUNDS.len() {
                for radius in [18.0, 30.0] {
                    case += 1;
                    let scene = Scene {
                        shape,
                        colour,
                        background,
                        radius,
                        x: f64::from(case * 37 % WIDTH) + 0.3,
                        y: f64::from(case * 53 % HEIGHT) + 0.7,
                        ..BALL
                    };
                    let s = look(&scene.draw(case)).expect("there is a shape");
                    let name = format!("{case}: {s:?}");
                    assert_eq!(s.colour, COLOURS[colour].0, "{name}");
                    assert_eq!(s.background, BACKGROUNDS[background].0, "{name}");
                    assert_eq!(s.shape, shape, "{name}");
                    assert_eq!(
                        s.size(),
                        if radius < 24.0 { "small" } else { "big" },
                        "{name}"
                    );
                }
            }
        }
    }
}

#[test]
fn positions_are_known_to_a_third_of_a_pixel_on_the_torus() {
    for shape in SHAPES {
        let scene = Scene {
            shape,
            velocity: (2.3, 1.7),
            ..BALL
        };
        for frame in 0..60 {
            let s = look(&scene.draw(frame)).expect("there is a shape");
            let (cx, cy) = scene.centre(frame);
            let below = gravity_below_centre(shape) * scene.radius;
            let off = |d: f64, n: u32| {
                (d + f64::from(n) / 2.0).rem_euclid(f64::from(n)) - f64::from(n) / 2.0
            };
            let (dx, dy) = (off(s.x - cx, WIDTH), off(s.y - cy - below, HEIGHT));
            assert!(
                dx.hypot(dy) < 0.34,
                "{shape} at frame {frame} is {dx:.2}, {dy:.2} off"
            );
        }
    }
}

#[test]
fn motion_is_read_across_the_edges() {
    for (name, speed, velocity) in [
        ("left", "quickly", (-3.75, 0.0)),
        ("right", "slowly", (1.67, 0.0)),
        ("up", "slowly", (0.0, -1.67)),
        ("down", "quickly", (0.0, 3.75)),
    ] {
        let track = Scene { velocity, ..BALL }.track(72);
        assert_eq!(track.direction(), Some(name));
        assert_eq!(track.speed(), Some(speed));
        let (vx, vy) = track.velocity().expect("seen in every frame");
        assert!((vx / 24.0 - velocity.0).hypot(vy / 24.0 - velocity.1) < 0.02);
    }
}

#[test]
fn an_empty_picture_shows_nothing() {
    let empty = Scene {
        radius: -10.0,
        ..BALL
    };
    assert_eq!(look(&empty.draw(0)), None);
    assert_eq!(look(&Frame::black(4, 4)), None);
    let mut track = Track::new(WIDTH, HEIGHT, 24.0);
    (0..30).for_each(|_| track.push(None));
    let verdict = continuity(&track, &[(10, 9)]);
    assert!(!verdict.holds());
    assert_eq!(verdict.other_colour.len(), 30);
}

#[test]
fn an_unbroken_film_is_continuous() {
    let verdict = continuity(&BALL.track(90), &[(40, 17)]);
    assert!(verdict.holds(), "{verdict:?}");
    assert!(
        verdict.seams[0].deviation_px < 0.8 && verdict.seams[0].jump_px < 0.8,
        "{verdict:?}"
    );
}

/// The film of one scene that becomes that of another at frame 48.
fn spliced(after: Scene) -> Continuity {
    let mut track = Track::new(WIDTH, HEIGHT, 24.0);
    for frame in 0..90 {
        let scene = if frame < 48 { BALL } else { after };
        track.push(look(&scene.draw(frame)));
    }
    continuity(&track, &[(40, 17)])
}

#[test]
fn breaks_are_found() {
    let near = spliced(Scene {
        y: BALL.y + 2.0,
        ..BALL
    });
    assert!(near.holds() && near.seams[0].deviation_px > 1.5, "{near:?}");
    let jump = spliced(Scene {
        x: BALL.x + 5.0,
        ..BALL
    });
    assert!(!jump.holds() && jump.seams[0].jump_px > 4.0, "{jump:?}");
    let colour = spliced(Scene { colour: 5, ..BALL });
    assert_eq!((colour.holds(), colour.other_colour.len()), (false, 42));
    let shape = spliced(Scene {
        shape: "square",
        ..BALL
    });
    assert!(!shape.holds() && !shape.other_shape.is_empty());
    let turned = spliced(Scene {
        velocity: (-3.75, 0.0),
        ..BALL
    });
    assert!(
        !turned.holds() && turned.seams[0].deviation_px > 10.0,
        "{turned:?}"
    );
}
