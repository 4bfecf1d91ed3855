//! Decoding in parts of some frames each, where whole activations would take too much memory.
//!
//! Every convolution keeps the two frames that it needs of the part before, and nothing is computed
//! twice: what comes out is what an undivided decode gives.

use super::blocks::Op;
use crate::band::Band;
use longtake_tensor::{Backend, Shape, Tensor, TimePadding};

/// Frames that the next part needs.
pub(super) struct Line<T> {
    held: Option<T>,
    begun: bool,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            held: None,
            begun: false,
        }
    }
}

fn frames(shape: Shape) -> usize {
    shape.dims()[0]
}

impl<T: Tensor> Line<T> {
    /// Whether nothing has come out yet.
    pub fn is_new(&self) -> bool {
        !self.begun
    }

    /// `x` behind what is held.
    fn joined<B: Backend<Tensor = T>>(&mut self, b: &Band<'_, B>, x: T) -> Op<T> {
        match self.held.take() {
            Some(held) => b.join_frames(&held, &x),
            None => Ok(x),
        }
    }

    /// Adds `x`.
    pub fn push<B: Backend<Tensor = T>>(&mut self, b: &Band<'_, B>, x: T) -> Op<()> {
        self.held = Some(self.joined(b, x)?);
        Ok(())
    }

    /// Takes the first `count` frames off; they must be there.
    pub fn take<B: Backend<Tensor = T>>(&mut self, b: &Band<'_, B>, count: usize) -> Op<T> {
        let rule = "fewer frames wait than are asked for";
        let lost = || longtake_tensor::Error::operand("take frames", Shape::from([count]), rule);
        let held = self.held.take().ok_or_else(lost)?;
        match frames(held.shape()) {
            all if all == count => Ok(held),
            all if all < count => Err(lost()),
            all => {
                self.held = Some(b.frames(&held, count..all)?);
                b.frames(&held, 0..count)
            }
        }
    }

    /// A convolution of 3 frames over what comes in: the frames whose neighbours are all there, if any
    /// are. `skip` has the frames that are added.
    pub fn convolve<B: Backend<Tensor = T>>(
        &mut self,
        b: &Band<'_, B>,
        conv: &B::Conv,
        x: T,
        ends: bool,
        skip: Option<&mut Self>,
    ) -> Op<Option<T>> {
        let x = self.joined(b, x)?;
        let (begins, count) = (self.is_new(), frames(x.shape()));
        let out = count + usize::from(begins) + usize::from(ends);
        if out <= 2 {
            self.held = Some(x);
            return Ok(None);
        }
        let padding = TimePadding::Part { begins, ends };
        let y = match skip {
            None => b.conv3d(&x, conv, padding)?,
            Some(skip) => b.conv3d_add(&x, conv, padding, skip.take(b, out - 2)?)?,
        };
        self.begun = true;
        if !ends {
            self.held = Some(b.frames(&x, count - 2..count)?);
        }
        Ok(Some(y))
    }
}
