//! Sizes of a tensor, outermost first.

use std::fmt;

/// Most axes that a tensor has: `[B, C, F, H, W]`.
pub const RANK_MAX: usize = 5;

/// Sizes of a row-major dense tensor, outermost axis first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; RANK_MAX],
    rank: usize,
}

impl Shape {
    /// Shape with these sizes. Panics on more than [`RANK_MAX`] axes: ranks are fixed by the code
    /// of the model, never by input; sizes read from files go through [`Shape::try_new`].
    pub fn new(dims: &[usize]) -> Self {
        Self::try_new(dims).expect("the model uses at most five axes")
    }

    /// Shape with these sizes, or `None` when there are too many axes or too many elements to count.
    pub fn try_new(dims: &[usize]) -> Option<Self> {
        if dims.len() > RANK_MAX {
            return None;
        }
        dims.iter()
            .try_fold(1usize, |count, &d| count.checked_mul(d))?;
        let mut all = [1; RANK_MAX];
        all[..dims.len()].copy_from_slice(dims);
        Some(Self {
            dims: all,
            rank: dims.len(),
        })
    }

    /// The sizes.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.dims().iter().product()
    }

    /// Size of the innermost axis; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// Number of rows when all axes but the innermost are seen as one.
    pub fn rows(&self) -> usize {
        self.dims()[..self.rank.saturating_sub(1)].iter().product()
    }

    /// The same shape with another innermost size.
    pub fn with_last(&self, size: usize) -> Self {
        let mut shape = *self;
        if shape.rank > 0 {
            shape.dims[shape.rank - 1] = size;
        }
        shape
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::new(&dims)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn counts_rows_and_elements() {
        let shape = Shape::from([2, 3, 4]);
        assert_eq!(
            (shape.count(), shape.rows(), shape.last(), shape.rank()),
            (24, 6, 4, 3)
        );
        assert_eq!(shape.with_last(5).dims(), [2, 3, 5]);
        assert_eq!(Shape::new(&[]).count(), 1);
        assert_eq!(shape.to_string(), "[2, 3, 4]");
    }

    #[test]
    fn refuses_what_cannot_be_counted() {
        assert!(Shape::try_new(&[usize::MAX, 2]).is_none());
        assert!(Shape::try_new(&[1; 6]).is_none());
    }
}
