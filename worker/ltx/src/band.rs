//! Pictures and their activations, shared by the ranks of a gang: each has a band of neighbouring
//! rows, from one side to the other, of all frames.
//!
//! What looks at neighbouring rows or at all cells is here, under the backend's own names: a
//! convolution is given the row above and the row below by the neighbours, a norm adds up over all
//! bands. Everything else is the backend's, on the rank's own rows. Rows, not frames, are split: a
//! decode in parts goes through the frames in order, and rows of latents are never cut at an odd place.

use crate::shard::Team;
use crate::types::Video;
use longtake_tensor::{Backend, Collective, Error, GroupNorm, Shape, Tensor, TimePadding};
use std::ops::{Deref, Range};

type Op<T> = longtake_tensor::Result<T>;

/// Rows that a convolution sees above and below its own; all kernels are of 1 or 3 rows.
const EDGE: usize = 1;

/// The backend, for this rank's rows of an activation `[F, H, W, C]`.
pub(crate) struct Band<'a, B: Backend> {
    b: &'a B,
    share: Option<Share<'a, B>>,
}

/// Which rows are whose.
struct Share<'a, B: Backend> {
    gang: &'a dyn Collective<B>,
    /// Rows of latents.
    rows: usize,
}

impl<B: Backend> Deref for Band<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        self.b
    }
}

impl<B: Backend> Share<'_, B> {
    /// Ranks that have rows: the first ones.
    fn active(&self) -> usize {
        self.gang.ranks().min(self.rows)
    }

    /// Rows of latents of rank `rank`; the first ranks have one more than the others.
    fn range(&self, rank: usize) -> Range<usize> {
        let (each, more) = (self.rows / self.active(), self.rows % self.active());
        let begin = |rank: usize| (rank * each + rank.min(more)).min(self.rows);
        begin(rank)..begin(rank + 1)
    }

    /// The same where a row of latents is `scale` rows.
    fn scaled(&self, rank: usize, scale: usize) -> Range<usize> {
        let range = self.range(rank);
        range.start * scale..range.end * scale
    }

    /// `x` between the rows of the neighbours, and where it is among them.
    fn with_edges(&self, b: &B, x: &B::Tensor) -> Op<(B::Tensor, Range<usize>)> {
        let rank = self.gang.rank();
        let height = height(x.shape())?;
        let first = b.rows(x, 0..EDGE)?;
        let last = b.rows(x, height - EDGE..height)?;
        let above = rank.checked_sub(1);
        let below = (rank + 1 < self.active()).then_some(rank + 1);
        let sends = above.map(|to| (to, &first)).into_iter();
        let sends: Vec<_> = sends.chain(below.map(|to| (to, &last))).collect();
        let from = above.into_iter().chain(below);
        let receives: Vec<_> = from.map(|rank| (rank, first.shape())).collect();
        let received = self.gang.exchange(b, &sends, &receives)?;
        let mut received = received.iter();
        let above = above.and_then(|_| received.next());
        let begin = above.map_or(0, |_| EDGE);
        let parts: Vec<_> = above.into_iter().chain([x]).chain(received).collect();
        Ok((b.join_rows(&parts)?, begin..begin + height))
    }
}

fn height(shape: Shape) -> Op<usize> {
    match *shape.dims() {
        [_, height, ..] if height >= EDGE => Ok(height),
        _ => Err(Error::operand("rows", shape, "[F, H, W, C] is needed")),
    }
}

fn with_rows(shape: Shape, rows: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(height) = dims.get_mut(1) {
        *height = rows;
    }
    Shape::new(&dims)
}

impl<'a, B: Backend> Band<'a, B> {
    /// All rows.
    pub fn alone(b: &'a B) -> Self {
        Self { b, share: None }
    }

    /// This rank's part of `rows` rows of latents.
    pub fn new(b: &'a B, team: Option<&'a Team<B>>, rows: usize) -> Self {
        let share = team.map(|team| Share {
            gang: team.gang(),
            rows,
        });
        Self { b, share }
    }

    /// Whether this rank has no rows: there are more ranks than rows. It only takes part in
    /// [`Self::whole`] and [`Self::gather`].
    pub fn is_idle(&self) -> bool {
        let share = self.share.as_ref();
        share.is_some_and(|share| share.gang.rank() >= share.active())
    }

    /// The largest band's shape, for a band of `shape`.
    pub fn tallest(&self, shape: Shape) -> Shape {
        let share = self.share.as_ref();
        share.map_or(shape, |share| with_rows(shape, share.range(0).len()))
    }

    /// This rank's of the rows of `x`, of which a row of latents is `scale`.
    pub fn own(&self, x: B::Tensor, scale: usize) -> Op<B::Tensor> {
        match &self.share {
            None => Ok(x),
            Some(share) => self.b.rows(&x, share.scaled(share.gang.rank(), scale)),
        }
    }

    /// All rows, on all ranks; idle ones give nothing. `whole` is the shape of all.
    pub fn whole(&self, x: Option<B::Tensor>, whole: Shape) -> Op<B::Tensor> {
        let Some(share) = &self.share else {
            return x.ok_or_else(|| Error::operand("rows", whole, "nobody has them"));
        };
        let (rank, gang) = (share.gang.rank(), share.gang);
        let scale = height(whole)? / share.rows;
        let others = |below: usize| (0..below).filter(move |&other| other != rank);
        let sends = x
            .iter()
            .flat_map(|x| others(gang.ranks()).map(move |to| (to, x)));
        let receives = others(share.active())
            .map(|from| (from, with_rows(whole, share.scaled(from, scale).len())));
        let sends: Vec<_> = sends.collect();
        let received = gang.exchange(self.b, &sends, &receives.collect::<Vec<_>>())?;
        let mut parts: Vec<_> = received.iter().collect();
        if let Some(x) = &x {
            parts.insert(rank, x);
        }
        self.b.join_rows(&parts)
    }

    /// On rank 0, the pictures of which each rank has a band of rows; on the others, none.
    pub fn gather(&self, band: Video) -> Op<Video> {
        let Some(share) = &self.share else {
            return Ok(band);
        };
        let (gang, nothing) = (share.gang, Video::default());
        if gang.rank() > 0 {
            let sends = (!self.is_idle()).then_some((0, &band.rgb[..]));
            gang.exchange_bytes(sends.as_slice(), &[])?;
            return Ok(nothing);
        }
        let from: Vec<usize> = (1..share.active()).collect();
        let mut bands = gang.exchange_bytes(&[], &from)?;
        bands.insert(0, band.rgb);
        // Bytes of a row of latents, in all its rows of pixels.
        let line = 3 * band.width * (band.height / share.range(0).len().max(1));
        let mut rgb = Vec::with_capacity(band.frames * share.rows * line);
        for frame in 0..band.frames {
            for (rank, bytes) in bands.iter().enumerate() {
                let size = share.range(rank).len() * line;
                let Some(rows) = bytes.get(frame * size..(frame + 1) * size) else {
                    let what = format!("has decoded {} bytes, which are too few", bytes.len());
                    return Err(Error::rank(rank, gang.ranks(), what));
                };
                rgb.extend_from_slice(rows);
            }
        }
        let height = share.rows * (band.height / share.range(0).len().max(1));
        Ok(Video {
            height,
            rgb,
            ..band
        })
    }

    /// [`longtake_tensor::VaeOps::conv3d`] of the whole.
    pub fn conv3d(&self, x: &B::Tensor, conv: &B::Conv, padding: TimePadding) -> Op<B::Tensor> {
        let Some(share) = &self.share else {
            return self.b.conv3d(x, conv, padding);
        };
        let (x, own) = share.with_edges(self.b, x)?;
        self.b.rows(&self.b.conv3d(&x, conv, padding)?, own)
    }

    /// [`longtake_tensor::VaeOps::conv3d_add`] of the whole.
    pub fn conv3d_add(
        &self,
        x: &B::Tensor,
        conv: &B::Conv,
        padding: TimePadding,
        skip: B::Tensor,
    ) -> Op<B::Tensor> {
        let Some(share) = &self.share else {
            return self.b.conv3d_add(x, conv, padding, skip);
        };
        let b = self.b;
        let (x, own) = share.with_edges(b, x)?;
        let (rows, height) = (height(x.shape())?, own.len());
        // What the skip is beyond the own rows does not matter: it is cut off again.
        let above = (own.start > 0)
            .then(|| b.rows(&skip, 0..EDGE))
            .transpose()?;
        let below = (own.end < rows).then(|| b.rows(&skip, height - EDGE..height));
        let below = below.transpose()?;
        let parts: Vec<_> = above.iter().chain([&skip]).chain(&below).collect();
        let skip = b.join_rows(&parts)?;
        b.rows(&b.conv3d_add(&x, conv, padding, skip)?, own)
    }

    /// [`longtake_tensor::VaeOps::group_norm_silu`] of the whole.
    pub fn group_norm_silu(
        &self,
        x: &B::Tensor,
        norm: &GroupNorm<'_, B>,
        skip: Option<&B::Tensor>,
    ) -> Op<B::Tensor> {
        let Some(share) = &self.share else {
            return self.b.group_norm_silu(x, norm, skip);
        };
        let b = self.b;
        let frames = x.shape().dims()[0];
        let mut normed: Option<B::Tensor> = None;
        for (first, [scale, shift]) in share.affine(b, x, norm)?.into_iter().enumerate() {
            let own = if norm.by_frame {
                first..first + 1
            } else {
                0..frames
            };
            let part = b.channel_affine(&b.frames(x, own)?, &scale, &shift)?;
            normed = Some(match normed {
                None => part,
                Some(before) => b.join_frames(&before, &part)?,
            });
        }
        let rule = "frames are needed";
        let y = normed.ok_or_else(|| Error::operand("group_norm_silu", x.shape(), rule))?;
        match skip {
            None => b.silu(&y),
            Some(skip) => b.silu(&b.gated_residual(y, skip, None)?),
        }
    }
}

impl<B: Backend> Share<'_, B> {
    /// By frame, or for all frames, the factor and the offset of every channel that give groups mean
    /// 0 and deviation 1, and then the norm's own.
    ///
    /// Values are summed row by row and then over the rows, in f64, as by one rank.
    fn affine(&self, b: &B, x: &B::Tensor, norm: &GroupNorm<'_, B>) -> Op<Vec<[B::Tensor; 2]>> {
        let &[frames, height, width, channels] = x.shape().dims() else {
            let rule = "[F, H, W, C] is needed";
            return Err(Error::operand("group_norm_silu", x.shape(), rule));
        };
        let values = b.download(x)?;
        let (weight, bias) = (b.download(norm.weight)?, b.download(norm.bias)?);
        let (groups, size) = (norm.groups, channels / norm.groups);
        let sets = if norm.by_frame { frames } else { 1 };
        let together = frames / sets;
        // Sums over all ranks' rows, `[sets, groups]`, of what `f` makes of a value.
        let sums = |f: &dyn Fn(usize, f64) -> f64| -> Op<Vec<f64>> {
            let mut rows = vec![0.0; frames * height * groups];
            for (row, sums) in rows.chunks_exact_mut(groups).enumerate() {
                let set = row / (height * together);
                let cells = &values[row * width * channels..][..width * channels];
                for (group, sum) in sums.iter_mut().enumerate() {
                    for cell in cells.chunks_exact(channels) {
                        for &v in &cell[group * size..(group + 1) * size] {
                            *sum += f(set * groups + group, f64::from(v));
                        }
                    }
                }
            }
            self.add_rows(&rows, frames, sets, groups)
        };
        let total: usize = (0..self.active()).map(|rank| self.range(rank).len()).sum();
        let rows = height / self.range(self.gang.rank()).len() * total;
        let count = (together * rows * width * size) as f64;
        let means = sums(&|_, v| v)?;
        let means: Vec<f64> = means.iter().map(|sum| sum / count).collect();
        let squares = sums(&|place, v| (v - means[place]).powi(2))?;
        let mut affine = Vec::with_capacity(sets);
        for (means, squares) in means.chunks_exact(groups).zip(squares.chunks_exact(groups)) {
            let (mut scale, mut shift) = (Vec::new(), Vec::new());
            for channel in 0..channels {
                let group = channel / size;
                let deviation = (squares[group] / count + f64::from(norm.eps)).sqrt();
                let factor = f64::from(weight[channel]) / deviation;
                scale.push(factor as f32);
                shift.push((f64::from(bias[channel]) - means[group] * factor) as f32);
            }
            let upload = |values: &[f32]| b.upload(Shape::from([channels]), values);
            affine.push([upload(&scale)?, upload(&shift)?]);
        }
        Ok(affine)
    }

    /// Sums `[sets, groups]` of this rank's `[F, rows, groups]` and those of the others.
    fn add_rows(&self, own: &[f64], frames: usize, sets: usize, groups: usize) -> Op<Vec<f64>> {
        let bytes = longtake_tensor::collective::f64_bytes(own);
        let all = self.gang.all_gather_bytes(self.active(), bytes)?;
        let all: Vec<_> = all
            .iter()
            .map(|bytes| longtake_tensor::collective::f64_values(bytes))
            .collect();
        let mut sums = vec![0.0; sets * groups];
        for frame in 0..frames {
            let sums = &mut sums[frame * sets / frames * groups..][..groups];
            for rows in &all {
                let rows = &rows[frame * rows.len() / frames..(frame + 1) * rows.len() / frames];
                for row in rows.chunks_exact(groups) {
                    sums.iter_mut().zip(row).for_each(|(sum, row)| *sum += row);
                }
            }
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use longtake_cpu::gang::threads;
    use longtake_cpu::{CpuBackend, CpuTensor, Isa};
    use longtake_tensor::Loader;
    use std::path::Path;
    use std::sync::Arc;

    /// Rows of the pictures that come out of parts of some frames each.
    fn in_parts(model: &Model<CpuBackend>, band: &Band<'_, CpuBackend>) -> Vec<CpuTensor> {
        let shape = Shape::from([5, 3, 2, 128]);
        let values: Vec<f32> = (0..shape.count())
            .map(|i| (i as f32 * 0.71).sin())
            .collect();
        let latents = model.backend().upload(shape, &values).expect("latents");
        let own = band.own(latents, 1).expect("own rows");
        let mut parts = Vec::new();
        let mut take = |part| {
            parts.push(part);
            Ok(())
        };
        let decoder = model.decoder().expect("decoder");
        decoder
            .decode_in_parts(band, &own, 0.05, 20_000, &mut take)
            .expect("pictures");
        parts
    }

    #[test]
    fn bands_are_decoded_in_parts() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/model");
        let b = CpuBackend::new(2, Isa::detect()).expect("the detected level is available");
        let model = Model::load(&golden, b.clone()).expect("the golden model loads");
        let alone = in_parts(&model, &Band::alone(&b));
        assert!(alone.len() > 2, "{} parts", alone.len());
        let ends = threads(2).into_iter();
        let teams: Vec<_> = ends
            .filter_map(|end| Team::new(Arc::new(end), false))
            .collect();
        let bands: Vec<Vec<CpuTensor>> = std::thread::scope(|scope| {
            let rank = |team| {
                let (model, b) = (&model, &b);
                scope.spawn(move || in_parts(model, &Band::new(b, Some(team), 3)))
            };
            let ranks: Vec<_> = teams.iter().map(rank).collect();
            let ended = ranks.into_iter().map(|rank| rank.join().expect("a rank"));
            ended.collect()
        });
        let joined = |bands: &[Vec<CpuTensor>]| -> Vec<f32> {
            let parts = bands[0].iter().zip(&bands[1]);
            let joined = parts.map(|(top, bottom)| b.join_rows(&[top, bottom]).expect("joined"));
            joined.flat_map(|part| part.values().to_vec()).collect()
        };
        let whole: Vec<f32> = alone.iter().flat_map(|p| p.values().to_vec()).collect();
        assert!(joined(&bands) == whole);
    }
}
