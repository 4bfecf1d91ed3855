//! [`VaeOps`]: activations are `[F, H, W, C]` in bf16.

use crate::arena::Block;
use crate::backend::{CudaBackend, unsupported};
use crate::check::{cells, check_same, check_vector};
use crate::device::Arg;
use crate::error::{InOp, Result};
use crate::kernels::{norm_lanes, pixel_norm_spec};
use crate::options::values_max;
use crate::small::With;
use crate::tensor::{Buffer, CudaConv, CudaTensor, Element, Pending, Samples};
use half::bf16;
use longtake_tensor::{ChannelModulation, Error, GroupNorm, Shape, Tensor, TimePadding, VaeOps};
use std::ops::Range;
use std::sync::Arc;

type Op<T> = longtake_tensor::Result<T>;

impl CudaBackend {
    /// Norm over channels, modulation and SiLU, `front` and `back` frames of padding around it.
    pub(crate) fn pixel_norm(
        &self,
        x: &CudaTensor,
        eps: f32,
        modulation: Option<&(CudaTensor, usize, usize)>,
        front: usize,
        back: usize,
    ) -> Result<Block> {
        let shape = x.shape();
        let (c, frames) = (shape.last(), shape.dims()[0]);
        if !c.is_multiple_of(8) {
            return unsupported(format!(
                "a norm over {c} channels: a multiple of 8 is needed"
            ));
        }
        let values = self.bf16(x)?;
        let (scale, shift, _table) = match modulation {
            None => (0, 0, None),
            Some((table, shift, scale)) => {
                let table = self.f32(table)?;
                let row = |row: &usize| table.block.address() + (row * c * 4) as u64;
                (row(scale), row(shift), Some(table))
            }
        };
        let rows = shape.rows();
        let in_frame = rows / frames;
        let out = self
            .device()
            .take((front + frames + back) * in_frame * c * 2)?;
        let function = self
            .device()
            .function(&pixel_norm_spec(c, true), "")?
            .moving((2 * frames + front + back) * in_frame * c * 2);
        let blocks = (rows * norm_lanes(c) as usize).div_ceil(256);
        let args = [
            Arg::U64(values.block.address()),
            Arg::U64(out.address()),
            Arg::U64(scale),
            Arg::U64(shift),
            Arg::F32(eps),
            Arg::I32(rows as i32),
            Arg::I32(in_frame as i32),
            Arg::I32(frames as i32),
            Arg::I32(front as i32),
            Arg::I32(back as i32),
        ];
        // SAFETY: `values` has rows * c values, `out` room for the padding too, the table's rows c
        // values each; arguments as in `norms.cu`.
        unsafe {
            self.device()
                .launch(function, [blocks as u32, 1], 256, 0, &args)
        }?;
        Ok(out)
    }

    /// Frames behind others, in bf16.
    pub(crate) fn joined(&self, before: &CudaTensor, x: &CudaTensor) -> Result<Arc<Buffer>> {
        let (first, second) = (self.bf16(before)?, self.bf16(x)?);
        let [a, b] = [before, x].map(|x| x.shape().count() * 2);
        let block = self.device().take(a + b)?;
        self.device()
            .copy(block.address(), first.block.address(), a)?;
        let to = block.address() + a as u64;
        self.device().copy(to, second.block.address(), b)?;
        Ok(Arc::new(Buffer {
            block,
            element: Element::Bf16,
        }))
    }

    /// Pixels in f32.
    pub(crate) fn unpatch(&self, x: &CudaTensor, patch: usize) -> Result<Block> {
        let values = self.bf16(x)?;
        let shape = x.shape();
        let (dims, stride) = (shape.dims(), shape.last());
        let channels = stride / (patch * patch);
        let block = self.device().take(shape.count() * 4)?;
        let args = [
            Arg::U64(values.block.address()),
            Arg::U64(block.address()),
            Arg::U64(shape.count() as u64),
            Arg::I32(dims[1] as i32),
            Arg::I32(dims[2] as i32),
            Arg::I32(channels as i32),
            Arg::I32(patch as i32),
            Arg::I32(stride as i32),
        ];
        self.layout("unpatchify", shape.count(), &args)?;
        Ok(block)
    }

    /// 8-bit samples of `x`; straight from the cells where the pixels were never needed.
    pub(crate) fn samples(&self, x: &CudaTensor) -> Result<Arc<Samples>> {
        if let Some(samples) = &x.node.lock().samples {
            return Ok(Arc::clone(samples));
        }
        let count = x.shape().count();
        let block = self.device().take(count)?;
        let note = {
            let state = x.node.lock();
            match (&state.values, &state.pending) {
                (None, Some(Pending::Unpatched { x: cells, patch })) if x.shape().last() == 3 => {
                    Some((cells.clone(), *patch))
                }
                _ => None,
            }
        };
        if let Some((cells, patch)) = note {
            let values = self.bf16(&cells)?;
            let shape = cells.shape();
            let threads = shape.rows() * patch;
            let args = [
                Arg::U64(values.block.address()),
                Arg::U64(block.address()),
                Arg::U64(threads as u64),
                Arg::I32(shape.dims()[1] as i32),
                Arg::I32(shape.dims()[2] as i32),
                Arg::I32(patch as i32),
                Arg::I32(shape.last() as i32),
            ];
            self.layout("unpatchify_rgb8", threads, &args)?;
        } else {
            let values = self.values(x)?;
            let args = [
                Arg::U64(values.block.address()),
                Arg::U64(block.address()),
                Arg::I32(i32::from(values.element.is_f32())),
                Arg::U64(count as u64),
            ];
            self.layout("rgb8", count, &args)?;
        }
        let ready = self.device().ready()?;
        let samples = Arc::new(Samples { block, ready });
        x.node.lock().samples = Some(Arc::clone(&samples));
        Ok(samples)
    }

    /// Appends 8-bit samples of `x`.
    pub(crate) fn pictures_out(&self, x: &CudaTensor, rgb: &mut Vec<u8>) -> Result<()> {
        let samples = self.samples(x)?;
        let count = x.shape().count();
        rgb.reserve(count);
        let room = &mut rgb.spare_capacity_mut()[..count];
        self.device()
            .download_after(&samples.ready, samples.block.address(), room)?;
        // SAFETY: `download` has written all of the `count` bytes behind those that were there.
        unsafe { rgb.set_len(rgb.len() + count) };
        Ok(())
    }

    pub(crate) fn pictures_in(&self, shape: Shape, rgb: &[u8]) -> Result<CudaTensor> {
        let stored = self.device().take(rgb.len())?;
        self.device().upload(stored.address(), rgb)?;
        let block = self.device().take(rgb.len() * 4)?;
        let args = [
            Arg::U64(stored.address()),
            Arg::U64(block.address()),
            Arg::U64(rgb.len() as u64),
        ];
        self.layout("from_rgb8", rgb.len(), &args)?;
        Ok(CudaTensor::ready(shape, block, Element::F32))
    }

    pub(crate) fn download_f32(&self, x: &CudaTensor) -> Result<Vec<f32>> {
        let values = self.values(x)?;
        let count = x.shape().count();
        let size = count * values.element.bytes();
        let mut bytes: Vec<u8> = Vec::with_capacity(size);
        let room = &mut bytes.spare_capacity_mut()[..size];
        self.device().download(values.block.address(), room)?;
        // SAFETY: `download` has written all of them.
        unsafe { bytes.set_len(size) };
        Ok(match values.element {
            Element::F32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Element::Bf16 => {
                let wide = |b: &[u8; 2]| bf16::from_le_bytes(*b).to_f32();
                bytes.as_chunks::<2>().0.iter().map(wide).collect()
            }
        })
    }

    /// The first `n` channels of `x`, plus `skip`: what is left of padded channels.
    pub(crate) fn cut_channels(
        &self,
        x: &CudaTensor,
        n: usize,
        skip: Option<&CudaTensor>,
    ) -> Result<CudaTensor> {
        let shape = x.shape().with_last(n);
        let values = self.values(x)?;
        let block = self.device().take(shape.count() * 2)?;
        let with = With {
            width: n,
            stride: x.shape().last(),
            ..With::default()
        };
        self.elementwise(
            7,
            Some(&values),
            None,
            &block,
            Element::Bf16,
            shape.count(),
            &with,
        )?;
        let cut = CudaTensor::ready(shape, block, Element::Bf16);
        let Some(skip) = skip else {
            return Ok(cut);
        };
        let (a, b) = (self.values(&cut)?, self.values(skip)?);
        let block = self.device().take(shape.count() * 2)?;
        let sum = With {
            a: 1.0,
            b: 1.0,
            ..With::default()
        };
        self.elementwise(
            3,
            Some(&a),
            Some(&b),
            &block,
            Element::Bf16,
            shape.count(),
            &sum,
        )?;
        Ok(CudaTensor::ready(shape, block, Element::Bf16))
    }
}

impl VaeOps for CudaBackend {
    fn values_max(&self) -> Option<usize> {
        values_max(self.options().memory_limit)
    }

    fn conv3d(&self, x: &CudaTensor, conv: &CudaConv, padding: TimePadding) -> Op<CudaTensor> {
        self.convolve(x, conv, padding, None)
    }

    fn conv3d_add(
        &self,
        x: &CudaTensor,
        conv: &CudaConv,
        padding: TimePadding,
        skip: CudaTensor,
    ) -> Op<CudaTensor> {
        self.convolve(x, conv, padding, Some(&skip))
    }

    fn pixel_norm_silu(
        &self,
        x: &CudaTensor,
        eps: f32,
        modulation: Option<&ChannelModulation<'_, Self>>,
    ) -> Op<CudaTensor> {
        let op = "pixel_norm_silu";
        cells(op, x.shape())?;
        let mut noted = None;
        if let Some(m) = modulation {
            let table = m.table.shape();
            if table.last() != x.shape().last() || table.rows() <= m.shift.max(m.scale) {
                return Err(Error::mismatch(op, x.shape(), table, "a table [R, C]"));
            }
            noted = Some((m.table.clone(), m.shift, m.scale));
        }
        let note = Pending::PixelNorm {
            x: x.clone(),
            eps,
            modulation: noted,
        };
        Ok(CudaTensor::pending(x.shape(), note))
    }

    fn group_norm_silu(
        &self,
        x: &CudaTensor,
        norm: &GroupNorm<'_, Self>,
        skip: Option<&CudaTensor>,
    ) -> Op<CudaTensor> {
        let op = "group_norm_silu";
        let from = cells(op, x.shape())?;
        for side in [norm.weight, norm.bias] {
            check_vector(op, x.shape(), side.shape())?;
        }
        if norm.groups == 0 || !from.channels.is_multiple_of(norm.groups) {
            let rule = "the channels must divide by the groups";
            return Err(Error::operand(op, x.shape(), rule));
        }
        if let Some(skip) = skip {
            check_same(op, x.shape(), skip.shape())?;
        }
        self.group_normed(x, norm, skip).in_op(op)
    }

    fn frames(&self, x: &CudaTensor, range: Range<usize>) -> Op<CudaTensor> {
        let op = "frames";
        let from = cells(op, x.shape())?;
        if range.is_empty() || range.end > from.frames {
            return Err(Error::operand(op, x.shape(), "there are fewer frames"));
        }
        let shape = Shape::from([range.len(), from.height, from.width, from.channels]);
        let go = || -> Result<CudaTensor> {
            let values = self.values(x)?;
            let frame = shape.count() / range.len() * values.element.bytes();
            let (offset, size) = (range.start * frame, range.len() * frame);
            let (address, element) = (values.block.address(), values.element);
            // A small part is copied, so that the whole need not be kept for it.
            if range.len() * 2 < from.frames {
                let block = self.device().take(size)?;
                self.device()
                    .copy(block.address(), address + offset as u64, size)?;
                return Ok(CudaTensor::ready(shape, block, element));
            }
            let block = Block::part_of(values, address, offset, size);
            Ok(CudaTensor::ready(shape, block, element))
        };
        go().in_op(op)
    }

    fn join_frames(&self, before: &CudaTensor, x: &CudaTensor) -> Op<CudaTensor> {
        let op = "join_frames";
        let (first, from) = (cells(op, before.shape())?, cells(op, x.shape())?);
        let frame = |cells: &crate::check::Cells| [cells.height, cells.width, cells.channels];
        if frame(&first) != frame(&from) {
            return Err(Error::mismatch(
                op,
                before.shape(),
                x.shape(),
                "equal frames",
            ));
        }
        let frames = first.frames + from.frames;
        let shape = Shape::from([frames, from.height, from.width, from.channels]);
        let (before, x) = (before.clone(), x.clone());
        Ok(CudaTensor::pending(shape, Pending::Joined { before, x }))
    }

    fn repeat_first_frame(&self, x: &CudaTensor, n: usize) -> Op<CudaTensor> {
        let op = "repeat_first_frame";
        let from = cells(op, x.shape())?;
        let shape = Shape::from([from.frames + n, from.height, from.width, from.channels]);
        let go = || -> Result<CudaTensor> {
            let values = self.bf16(x)?;
            let frame = from.height * from.width * from.channels * 2;
            let block = self.device().take(shape.count() * 2)?;
            for i in 0..n {
                let to = block.address() + (i * frame) as u64;
                self.device().copy(to, values.block.address(), frame)?;
            }
            let to = block.address() + (n * frame) as u64;
            self.device()
                .copy(to, values.block.address(), from.frames * frame)?;
            Ok(CudaTensor::ready(shape, block, Element::Bf16))
        };
        go().in_op(op)
    }

    fn depth_to_space_add(
        &self,
        x: &CudaTensor,
        skip: Option<&CudaTensor>,
        stride: [usize; 3],
        begins: bool,
    ) -> Op<CudaTensor> {
        let op = "depth_to_space_add";
        let from = cells(op, x.shape())?;
        let block: usize = stride.iter().product();
        if block == 0 || from.channels % (2 * block) != 0 || from.channels % 8 != 0 {
            let rule = "channels must divide by 8 and by twice the stride";
            return Err(Error::operand(op, x.shape(), rule));
        }
        let channels = from.channels / block;
        let skip_channels = skip.map_or(0, |s| s.shape().last());
        if let Some(skip) = skip {
            let each = skip_channels / block;
            let fits = skip.shape().with_last(1) == x.shape().with_last(1)
                && skip_channels.is_multiple_of(block)
                && skip_channels.is_multiple_of(8)
                && each > 0
                && channels.is_multiple_of(each);
            if !fits {
                return Err(Error::mismatch(
                    op,
                    x.shape(),
                    skip.shape(),
                    "the same cells",
                ));
            }
        }
        let [st, sh, sw] = stride;
        let dropped = if begins { st - 1 } else { 0 };
        let frames = from.frames * st - dropped;
        let shape = Shape::from([frames, from.height * sh, from.width * sw, channels]);
        let go = || -> Result<CudaTensor> {
            let values = self.bf16(x)?;
            let skipped = skip.map(|s| self.bf16(s)).transpose()?;
            let out = self.device().take(shape.count() * 2)?;
            let layout = crate::kernels::layout_spec();
            let function = self.device().function(&layout, "depth_to_space")?;
            let args = [
                Arg::U64(values.block.address()),
                Arg::U64(skipped.as_ref().map_or(0, |b| b.block.address())),
                Arg::U64(out.address()),
                Arg::I32(from.height as i32),
                Arg::I32(from.width as i32),
                Arg::I32(from.channels as i32),
                Arg::I32(skip_channels as i32),
                Arg::I32(st as i32),
                Arg::I32(sh as i32),
                Arg::I32(sw as i32),
                Arg::I32(dropped as i32),
            ];
            let shared = (from.channels + skip_channels) * 2;
            // SAFETY: a block a cell of `x`; sizes were checked; arguments as in `layout.cu`.
            unsafe {
                let grid = [x.shape().rows() as u32, 1];
                self.device()
                    .launch(function, grid, 256, shared as u32, &args)
            }?;
            Ok(CudaTensor::ready(shape, out, Element::Bf16))
        };
        go().in_op(op)
    }

    fn space_to_depth_add(
        &self,
        x: &CudaTensor,
        skip: &CudaTensor,
        stride: [usize; 3],
    ) -> Op<CudaTensor> {
        let op = "space_to_depth_add";
        let from = cells(op, x.shape())?;
        let [st, sh, sw] = stride;
        let block = st * sh * sw;
        let divides =
            block > 0 && from.frames % st == 0 && from.height % sh == 0 && from.width % sw == 0;
        if !divides {
            return Err(Error::operand(
                op,
                x.shape(),
                "sizes must divide by the stride",
            ));
        }
        let channels = from.channels * block;
        let skip_channels = skip.shape().last();
        let fits = skip.shape().with_last(1) == x.shape().with_last(1)
            && (skip_channels * block).is_multiple_of(channels)
            && skip_channels * block >= channels;
        if !fits {
            return Err(Error::mismatch(
                op,
                x.shape(),
                skip.shape(),
                "the same cells, channels in groups",
            ));
        }
        let shape = Shape::from([
            from.frames / st,
            from.height / sh,
            from.width / sw,
            channels,
        ]);
        let go = || -> Result<CudaTensor> {
            let (values, skipped) = (self.bf16(x)?, self.bf16(skip)?);
            let out = self.device().take(shape.count() * 2)?;
            let args = [
                Arg::U64(values.block.address()),
                Arg::U64(skipped.block.address()),
                Arg::U64(out.address()),
                Arg::U64(shape.count() as u64),
                Arg::I32(from.height as i32),
                Arg::I32(from.width as i32),
                Arg::I32(from.channels as i32),
                Arg::I32(skip_channels as i32),
                Arg::I32(st as i32),
                Arg::I32(sh as i32),
                Arg::I32(sw as i32),
            ];
            self.layout("space_to_depth", shape.count(), &args)?;
            Ok(CudaTensor::ready(shape, out, Element::Bf16))
        };
        go().in_op(op)
    }

    fn patchify(&self, x: &CudaTensor, patch: usize) -> Op<CudaTensor> {
        let op = "patchify";
        let from = cells(op, x.shape())?;
        if patch == 0 || from.height % patch != 0 || from.width % patch != 0 {
            return Err(Error::operand(
                op,
                x.shape(),
                "sides must divide by the patch",
            ));
        }
        let channels = from.channels * patch * patch;
        let shape = Shape::from([
            from.frames,
            from.height / patch,
            from.width / patch,
            channels,
        ]);
        let go = || -> Result<CudaTensor> {
            let values = self.values(x)?;
            let out = self.device().take(shape.count() * 2)?;
            let args = [
                Arg::U64(values.block.address()),
                Arg::U64(out.address()),
                Arg::I32(i32::from(values.element.is_f32())),
                Arg::U64(shape.count() as u64),
                Arg::I32(from.height as i32),
                Arg::I32(from.width as i32),
                Arg::I32(from.channels as i32),
                Arg::I32(patch as i32),
            ];
            self.layout("patchify", shape.count(), &args)?;
            Ok(CudaTensor::ready(shape, out, Element::Bf16))
        };
        go().in_op(op)
    }

    fn unpatchify(&self, x: &CudaTensor, patch: usize) -> Op<CudaTensor> {
        let op = "unpatchify";
        let from = cells(op, x.shape())?;
        if patch == 0 || from.channels % (patch * patch) != 0 {
            return Err(Error::operand(
                op,
                x.shape(),
                "channels must divide by the patch",
            ));
        }
        let channels = from.channels / (patch * patch);
        let shape = Shape::from([
            from.frames,
            from.height * patch,
            from.width * patch,
            channels,
        ]);
        Ok(CudaTensor::pending(
            shape,
            Pending::Unpatched {
                x: x.clone(),
                patch,
            },
        ))
    }
}
