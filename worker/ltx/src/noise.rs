//! The draws of a render, in the order of the reference implementations.
//!
//! diffusers draws everything from the generator that its caller gives. Lightricks' code draws
//! from two: the noise of windows and of images from the caller's generator, the VAE's samples,
//! the decoder's noise and stochastic steps from torch's own. Both are seeded alike.

use crate::rng::TorchRng;
use serde::{Deserialize, Serialize};

/// How many values were drawn in each draw, so that a later stage goes on where one ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// From the caller's generator.
    pub generator: Vec<usize>,
    /// From torch's own, where that is another one.
    pub ambient: Vec<usize>,
}

impl Drawn {
    /// Nothing yet.
    pub const NOTHING: Self = Self {
        generator: Vec::new(),
        ambient: Vec::new(),
    };

    /// The same, to refer to.
    pub fn nothing() -> &'static Self {
        static NOTHING: Drawn = Drawn::NOTHING;
        &NOTHING
    }
}

/// The generators of a window.
pub(crate) struct Noise {
    generator: TorchRng,
    ambient: Option<TorchRng>,
    drawn: Drawn,
}

impl Noise {
    /// Generators for `seed`, after `drawn`; `separate` if the ambient one is another.
    pub fn new(seed: u64, separate: bool, drawn: &Drawn) -> Self {
        let after = |counts: &[usize]| {
            let mut rng = TorchRng::new(seed);
            counts.iter().for_each(|&count| rng.skip_randn(count));
            rng
        };
        Self {
            generator: after(&drawn.generator),
            ambient: separate.then(|| after(&drawn.ambient)),
            drawn: drawn.clone(),
        }
    }

    /// `count` values from the caller's generator.
    pub fn draw(&mut self, count: usize) -> Vec<f32> {
        self.drawn.generator.push(count);
        self.generator.randn(count)
    }

    /// `count` values from torch's own generator.
    pub fn draw_ambient(&mut self, count: usize) -> Vec<f32> {
        let Some(ambient) = &mut self.ambient else {
            return self.draw(count);
        };
        self.drawn.ambient.push(count);
        ambient.randn(count)
    }

    /// The last draw from torch's own generator, for a tensor that does not lie in one run.
    pub fn draw_ambient_last(&mut self, count: usize) -> Vec<f32> {
        let rng = self.ambient.as_mut().unwrap_or(&mut self.generator);
        rng.randn_one_by_one(count)
    }

    /// What was drawn so far, with what came before.
    pub fn drawn(&self) -> &Drawn {
        &self.drawn
    }

    /// What was drawn, with what came before.
    pub fn into_drawn(self) -> Drawn {
        self.drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_stage_goes_on_where_one_ended() {
        for separate in [false, true] {
            let mut whole = Noise::new(7, separate, &Drawn::default());
            let first = (whole.draw(100), whole.draw_ambient(32));
            assert_eq!(first.0[..32] == first.1[..], separate);
            let second = (whole.draw(33), whole.draw_ambient(5));
            let mut start = Noise::new(7, separate, &Drawn::default());
            assert_eq!((start.draw(100), start.draw_ambient(32)), first);
            let mut later = Noise::new(7, separate, &start.into_drawn());
            assert_eq!((later.draw(33), later.draw_ambient(5)), second);
        }
    }
}
