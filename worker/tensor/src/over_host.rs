//! What a gang needs moved, by way of the host: right on every backend, and what one that is fast
//! at it is held to.

use crate::backend::{Backend, Tensor};
use crate::error::{Error, Result};
use crate::shape::Shape;
use std::ops::Range;

/// See [`Backend::pack_heads`].
pub fn pack_heads<B: Backend>(b: &B, xs: &[&B::Tensor], ranks: usize) -> Result<B::Tensor> {
    let op = "pack_heads";
    let Some(&first) = xs.first() else {
        return Err(Error::operand(op, Shape::new(&[0]), "nothing is given"));
    };
    let (rows, width) = (first.shape().rows(), first.shape().last());
    if ranks == 0 || !width.is_multiple_of(ranks) {
        let rule = "the channels must divide by the ranks";
        return Err(Error::operand(op, first.shape(), rule));
    }
    if let Some(other) = xs.iter().find(|x| x.shape() != first.shape()) {
        return Err(Error::mismatch(
            op,
            first.shape(),
            other.shape(),
            "equal shapes",
        ));
    }
    let part = width / ranks;
    let mut packed = vec![0.0; rows * width * xs.len()];
    for (i, x) in xs.iter().enumerate() {
        let values = b.download(x)?;
        for (row, values) in values.chunks_exact(width.max(1)).enumerate() {
            for (rank, values) in values.chunks_exact(part).enumerate() {
                let place = ((rank * rows + row) * xs.len() + i) * part;
                packed[place..place + part].copy_from_slice(values);
            }
        }
    }
    b.upload(Shape::from([ranks, rows, xs.len(), part]), &packed)
}

/// See [`Backend::unpack_heads`].
pub fn unpack_heads<B: Backend>(b: &B, x: &B::Tensor, count: usize) -> Result<Vec<B::Tensor>> {
    let (rows, width) = (x.shape().rows(), x.shape().last());
    if count == 0 || !width.is_multiple_of(count) {
        let rule = "the channels must divide by the tensors";
        return Err(Error::operand("unpack_heads", x.shape(), rule));
    }
    let (values, part) = (b.download(x)?, width / count);
    let tensor = |i: usize| {
        let rows = values.chunks_exact(width.max(1));
        let own: Vec<f32> = rows
            .flat_map(|row| &row[i * part..(i + 1) * part])
            .copied()
            .collect();
        b.upload(Shape::from([x.shape().rows(), part]), &own)
    };
    debug_assert_eq!(values.len(), rows * width);
    (0..count).map(tensor).collect()
}

/// See [`Backend::join_heads`].
pub fn join_heads<B: Backend>(b: &B, x: &B::Tensor) -> Result<B::Tensor> {
    let &[ranks, rows, part] = x.shape().dims() else {
        let rule = "[ranks, L, D] is needed";
        return Err(Error::operand("join_heads", x.shape(), rule));
    };
    let values = b.download(x)?;
    let mut joined = vec![0.0; values.len()];
    for (i, values) in values.chunks_exact(part.max(1)).enumerate() {
        let place = (i % rows * ranks + i / rows) * part;
        joined[place..place + part].copy_from_slice(values);
    }
    b.upload(Shape::from([rows, ranks * part]), &joined)
}

/// Sizes of `[F, H, W, C]`: frames, rows, values of a row.
fn lines(op: &'static str, shape: Shape) -> Result<[usize; 3]> {
    match *shape.dims() {
        [frames, height, width, channels] => Ok([frames, height, width * channels]),
        _ => Err(Error::operand(op, shape, "[F, H, W, C] is needed")),
    }
}

/// See [`Backend::rows`].
pub fn rows<B: Backend>(b: &B, x: &B::Tensor, range: Range<usize>) -> Result<B::Tensor> {
    let [_, height, line] = lines("rows", x.shape())?;
    if range.is_empty() || range.end > height {
        return Err(Error::operand("rows", x.shape(), "there are fewer rows"));
    }
    let values = b.download(x)?;
    let frames = values.chunks_exact((height * line).max(1));
    let own: Vec<f32> = frames
        .flat_map(|frame| &frame[range.start * line..range.end * line])
        .copied()
        .collect();
    b.upload(with_rows(x.shape(), range.len()), &own)
}

/// See [`Backend::join_rows`].
pub fn join_rows<B: Backend>(b: &B, parts: &[&B::Tensor]) -> Result<B::Tensor> {
    let op = "join_rows";
    let Some(&first) = parts.first() else {
        return Err(Error::operand(op, Shape::new(&[0]), "nothing is given"));
    };
    let [frames, _, line] = lines(op, first.shape())?;
    let (mut values, mut height) = (Vec::with_capacity(parts.len()), 0);
    for part in parts {
        let [_, rows, _] = lines(op, part.shape())?;
        if with_rows(part.shape(), 1) != with_rows(first.shape(), 1) {
            let rule = "equal frames and columns";
            return Err(Error::mismatch(op, first.shape(), part.shape(), rule));
        }
        height += rows;
        values.push((b.download(part)?, rows * line));
    }
    let mut joined = Vec::with_capacity(frames * height * line);
    for frame in 0..frames {
        for (values, size) in &values {
            joined.extend_from_slice(&values[frame * size..(frame + 1) * size]);
        }
    }
    b.upload(with_rows(first.shape(), height), &joined)
}

/// The same shape `[F, H, W, C]` with so many rows.
fn with_rows(shape: Shape, rows: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(height) = dims.get_mut(1) {
        *height = rows;
    }
    Shape::new(&dims)
}
