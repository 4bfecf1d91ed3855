//! Operands that do not fit are refused before a kernel sees them.

use crate::tensor::{CudaIndex, CudaTensor};
use longtake_tensor::{Error, Result, Shape, Tensor};

pub(crate) fn check_same(op: &'static str, x: Shape, y: Shape) -> Result<()> {
    if x == y {
        Ok(())
    } else {
        Err(Error::mismatch(op, x, y, "equal shapes"))
    }
}

pub(crate) fn check_vector(op: &'static str, x: Shape, vector: Shape) -> Result<()> {
    if vector.count() == x.last() {
        Ok(())
    } else {
        Err(Error::mismatch(op, x, vector, "one value a channel"))
    }
}

/// Checks that `table` `[T, R, D]` has `row` and, with `index`, serves the tokens of `x`.
pub(crate) fn check_table(
    op: &'static str,
    x: Shape,
    table: &CudaTensor,
    index: &CudaIndex,
    row: usize,
) -> Result<()> {
    let shape = table.shape();
    let &[sets, rows, width] = shape.dims() else {
        return Err(Error::operand(op, shape, "a table [T, R, D] is needed"));
    };
    if row >= rows {
        return Err(Error::operand(op, shape, "the table has too few rows"));
    }
    if width != x.last() {
        return Err(Error::mismatch(op, x, shape, "as many channels"));
    }
    check_index(op, x, sets, index)
}

/// Checks that `index` has an entry below `sets` for each token of `x`.
pub(crate) fn check_index(
    op: &'static str,
    x: Shape,
    sets: usize,
    index: &CudaIndex,
) -> Result<()> {
    if index.count != x.rows() {
        let found = Shape::from([index.count]);
        return Err(Error::mismatch(op, x, found, "an index for each token"));
    }
    if index.count > 0 && index.most as usize >= sets {
        return Err(Error::operand(
            op,
            x,
            "the index names a set that the table lacks",
        ));
    }
    Ok(())
}

/// Sizes of a VAE activation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cells {
    pub frames: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

/// Sizes of `[F, H, W, C]`.
pub(crate) fn cells(op: &'static str, shape: Shape) -> Result<Cells> {
    match *shape.dims() {
        [frames, height, width, channels] if shape.count() > 0 => Ok(Cells {
            frames,
            height,
            width,
            channels,
        }),
        _ => Err(Error::operand(
            op,
            shape,
            "[F, H, W, C] is needed, none of them 0",
        )),
    }
}
