//! The judge against frames whose contents are known.

use super::*;

const WIDTH: u32 = 256;
const HEIGHT: u32 = 160;

const BALL: Scene = Scene {
    size: (WIDTH, HEIGHT),
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
