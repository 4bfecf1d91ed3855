//! Prompts of the moving-shapes world that ltxv-tiny was never trained on, and what they ask for.

use crate::detect::{BACKGROUNDS, COLOURS, SHAPES, Scene};

/// Frames a second of what is drawn.
const FPS: f64 = 24.0;

/// A prompt of the main grammar with the words that its film is judged by.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The whole prompt.
    pub prompt: String,
    /// `small` or `big`.
    pub size: String,
    /// One of [`COLOURS`].
    pub colour: String,
    /// One of [`SHAPES`](crate::detect::SHAPES).
    pub shape: String,
    /// `slowly` or `quickly`.
    pub speed: String,
    /// `left`, `right`, `up` or `down`.
    pub direction: String,
    /// One of [`BACKGROUNDS`].
    pub background: String,
}

/// The prompts that ltxv-tiny was never trained on.
pub fn held_out() -> Vec<Wanted> {
    let list = include_str!("../../configs/models/ltxv-tiny/held_out.txt");
    list.lines()
        .map(|line| {
            // a SIZE COLOUR SHAPE rolls SPEED DIRECTION over a BACKGROUND background
            let word: Vec<&str> = line.split(' ').collect();
            let word = |index: usize| word[index].to_owned();
            Wanted {
                prompt: line.to_owned(),
                size: word(1),
                colour: word(2),
                shape: word(3),
                speed: word(5),
                direction: word(6),
                background: word(9),
            }
        })
        .collect()
}

impl Wanted {
    /// The world of this prompt in pictures of `size`, with the shape's centre at `at` in frame 0, as
    /// `world.py` has it.
    ///
    /// # Panics
    /// When the prompt is not of the main grammar.
    pub fn scene(&self, size: (u32, u32), at: (f64, f64)) -> Scene {
        let number = |table: &[&str], name: &str| {
            let found = table.iter().position(|entry| *entry == name);
            found.unwrap_or_else(|| panic!("{name} is not a word of the world"))
        };
        let speed = if self.speed == "slowly" { 40.0 } else { 90.0 } / FPS;
        Scene {
            size,
            shape: SHAPES[number(&SHAPES, &self.shape)],
            colour: number(&COLOURS.map(|c| c.0), &self.colour),
            background: number(&BACKGROUNDS.map(|c| c.0), &self.background),
            radius: if self.size == "small" { 18.0 } else { 30.0 },
            x: at.0,
            y: at.1,
            velocity: match self.direction.as_str() {
                "left" => (-speed, 0.0),
                "right" => (speed, 0.0),
                "up" => (0.0, -speed),
                _ => (0.0, speed),
            },
            noise: 0.0,
        }
    }
}
