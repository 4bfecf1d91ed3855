//! Operands that do not fit are refused before a kernel sees them.

use crate::glue::Cells;
use crate::tensor::CpuTensor;
use longtake_tensor::{Error, Result, Shape, Tensor};

/// Row `row` of every set of `table` `[T, R, D]`, as `[T, D]`.
pub(crate) fn table_row(op: &'static str, table: &CpuTensor, row: usize) -> Result<Vec<f32>> {
    let shape = table.shape();
    let &[_, rows, width] = shape.dims() else {
        return Err(Error::operand(op, shape, "a table [T, R, D] is needed"));
    };
    if row >= rows {
        return Err(Error::operand(op, shape, "the table has too few rows"));
    }
    let sets = table.values().chunks_exact(rows * width);
    Ok(sets
        .flat_map(|set| &set[row * width..][..width])
        .copied()
        .collect())
}

/// Checks that `table` and `index` serve the tokens of `x`.
pub(crate) fn check_tokens(op: &'static str, x: Shape, table: Shape, index: &[u32]) -> Result<()> {
    if table.last() != x.last() {
        return Err(Error::mismatch(op, x, table, "as many channels"));
    }
    if index.len() != x.rows() {
        return Err(Error::mismatch(
            op,
            x,
            Shape::from([index.len()]),
            "an index for each token",
        ));
    }
    let sets = table.dims().first().copied().unwrap_or(0);
    if index.iter().any(|&i| i as usize >= sets) {
        return Err(Error::operand(
            op,
            table,
            "the index names a set that the table lacks",
        ));
    }
    Ok(())
}

/// Checks that two shapes are equal.
pub(crate) fn check_same(op: &'static str, x: Shape, y: Shape) -> Result<()> {
    if x == y {
        Ok(())
    } else {
        Err(Error::mismatch(op, x, y, "equal shapes"))
    }
}

/// Checks that `vector` has a value for each channel of `x`.
pub(crate) fn check_vector(op: &'static str, x: Shape, vector: Shape) -> Result<()> {
    if vector.count() == x.last() {
        Ok(())
    } else {
        Err(Error::mismatch(op, x, vector, "one value a channel"))
    }
}

/// Sizes of the VAE activation `[F, H, W, C]`.
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
