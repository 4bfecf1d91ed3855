//! [`VaeOps`] on the CPU: activations are `[F, H, W, C]`.

use crate::backend::CpuBackend;
use crate::check::{cells, check_same};
use crate::glue;
use crate::kernels::{self, GroupAffine, Modulate, TemporalPadding};
use crate::tensor::CpuTensor;
use crate::weights::CpuConv;
use longtake_tensor::{
    ChannelModulation, Error, GroupNorm, Result, Shape, Tensor, TimePadding, VaeOps,
};
use std::ops::Range;

fn temporal(padding: TimePadding) -> TemporalPadding {
    match padding {
        TimePadding::Causal => TemporalPadding::Causal,
        TimePadding::Symmetric => TemporalPadding::Symmetric,
        TimePadding::Zeros => TemporalPadding::Zeros,
        TimePadding::Part { begins, ends } => TemporalPadding::Part { begins, ends },
    }
}

impl CpuBackend {
    fn convolve(
        &self,
        x: &CpuTensor,
        conv: &CpuConv,
        padding: TimePadding,
        skip: Option<&CpuTensor>,
    ) -> Result<CpuTensor> {
        let from = cells("conv3d", x.shape())?;
        if from.channels != conv.channels()[1] {
            let kernel = Shape::from(conv.channels());
            return Err(Error::mismatch(
                "conv3d",
                x.shape(),
                kernel,
                "as many channels",
            ));
        }
        let kt = conv.packed().kernel()[0];
        let Some(frames) = padding.frames_out(from.frames, kt) else {
            let rule = "as many frames as the kernel are needed";
            return Err(Error::operand("conv3d", x.shape(), rule));
        };
        let shape = Shape::from([frames, from.height, from.width, conv.channels()[0]]);
        if let Some(skip) = skip {
            check_same("conv3d", shape, skip.shape())?;
        }
        let size = [from.frames, from.height, from.width];
        self.produce(shape, |out| {
            let (bias, skip) = (conv.bias.as_deref(), skip.map(CpuTensor::values));
            let padding = temporal(padding);
            kernels::conv3d(
                self.isa(),
                x.values(),
                size,
                &conv.packed(),
                padding,
                bias,
                skip,
                out,
            );
        })
    }
}

impl VaeOps for CpuBackend {
    fn conv3d(&self, x: &CpuTensor, conv: &CpuConv, padding: TimePadding) -> Result<CpuTensor> {
        self.convolve(x, conv, padding, None)
    }

    fn conv3d_add(
        &self,
        x: &CpuTensor,
        conv: &CpuConv,
        padding: TimePadding,
        skip: CpuTensor,
    ) -> Result<CpuTensor> {
        self.convolve(x, conv, padding, Some(&skip))
    }

    fn pixel_norm_silu(
        &self,
        x: &CpuTensor,
        eps: f32,
        modulation: Option<&ChannelModulation<'_, Self>>,
    ) -> Result<CpuTensor> {
        let op = "pixel_norm_silu";
        let width = x.shape().last();
        let mut modulate = None;
        if let Some(m) = modulation {
            let table = m.table.shape();
            if table.last() != width || table.rows() <= m.shift.max(m.scale) {
                return Err(Error::mismatch(op, x.shape(), table, "a table [R, C]"));
            }
            let row = |row: usize| &m.table.values()[row * width..][..width];
            modulate = Some(Modulate {
                scale: row(m.scale),
                shift: row(m.shift),
                set_of_row: None,
            });
        }
        self.produce(x.shape(), |out| {
            kernels::pixel_norm(self.isa(), x.values(), width, eps, modulate, true, out);
        })
    }

    fn group_norm_silu(
        &self,
        x: &CpuTensor,
        norm: &GroupNorm<'_, Self>,
        skip: Option<&CpuTensor>,
    ) -> Result<CpuTensor> {
        let op = "group_norm_silu";
        let from = cells(op, x.shape())?;
        let channels = Shape::from([from.channels]);
        for side in [norm.weight, norm.bias] {
            check_same(op, channels, side.shape())?;
        }
        if norm.groups == 0 || !from.channels.is_multiple_of(norm.groups) {
            let rule = "the channels must divide by the groups";
            return Err(Error::operand(op, x.shape(), rule));
        }
        if let Some(skip) = skip {
            check_same(op, x.shape(), skip.shape())?;
        }
        self.produce(x.shape(), |out| {
            let frames = if norm.by_frame { 1 } else { from.frames };
            let affine = GroupAffine {
                groups: norm.groups,
                eps: norm.eps,
                weight: norm.weight.values(),
                bias: norm.bias.values(),
            };
            let block = frames * from.height * from.width * from.channels;
            for (i, out) in out.chunks_exact_mut(block).enumerate() {
                let range = i * block..(i + 1) * block;
                let skip = skip.map(|skip| &skip.values()[range.clone()]);
                let x = &x.values()[range.clone()];
                kernels::group_norm_silu(
                    self.isa(),
                    x,
                    from.width,
                    from.channels,
                    &affine,
                    skip,
                    out,
                );
            }
        })
    }

    fn frames(&self, x: &CpuTensor, range: Range<usize>) -> Result<CpuTensor> {
        let from = cells("frames", x.shape())?;
        if range.is_empty() || range.end > from.frames {
            let rule = "there are fewer frames";
            return Err(Error::operand("frames", x.shape(), rule));
        }
        let frame = from.height * from.width * from.channels;
        let shape = Shape::from([range.len(), from.height, from.width, from.channels]);
        let values = &x.values()[range.start * frame..range.end * frame];
        self.produce(shape, |out| out.copy_from_slice(values))
    }

    fn join_frames(&self, before: &CpuTensor, x: &CpuTensor) -> Result<CpuTensor> {
        let op = "join_frames";
        let (first, from) = (cells(op, before.shape())?, cells(op, x.shape())?);
        let frames = first.frames + from.frames;
        let shape = Shape::from([frames, from.height, from.width, from.channels]);
        if shape.count() != before.values().len() + x.values().len() {
            return Err(Error::mismatch(
                op,
                before.shape(),
                x.shape(),
                "equal frames",
            ));
        }
        self.produce(shape, |out| {
            let (front, rest) = out.split_at_mut(before.values().len());
            front.copy_from_slice(before.values());
            rest.copy_from_slice(x.values());
        })
    }

    fn repeat_first_frame(&self, x: &CpuTensor, n: usize) -> Result<CpuTensor> {
        let from = cells("repeat_first_frame", x.shape())?;
        let frame = from.height * from.width * from.channels;
        let shape = Shape::from([from.frames + n, from.height, from.width, from.channels]);
        self.produce(shape, |out| {
            let (front, rest) = out.split_at_mut(n * frame);
            front
                .chunks_exact_mut(frame)
                .for_each(|f| f.copy_from_slice(&x.values()[..frame]));
            rest.copy_from_slice(x.values());
        })
    }

    fn depth_to_space_add(
        &self,
        x: &CpuTensor,
        skip: Option<&CpuTensor>,
        stride: [usize; 3],
        begins: bool,
    ) -> Result<CpuTensor> {
        let op = "depth_to_space_add";
        let from = cells(op, x.shape())?;
        let block: usize = stride.iter().product();
        if block == 0 || from.channels % block != 0 {
            return Err(Error::operand(
                op,
                x.shape(),
                "channels must divide by the stride",
            ));
        }
        let channels = from.channels / block;
        if let Some(skip) = skip {
            let skipped = skip.shape().last() / block;
            let fits = skip.shape().with_last(1) == x.shape().with_last(1)
                && skip.shape().last() % block == 0
                && skipped > 0
                && channels.is_multiple_of(skipped);
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
        self.produce(shape, |out| {
            let skip = skip.map(|skip| (skip.values(), skip.shape().last()));
            glue::depth_to_space(x.values(), from, skip, stride, dropped, out);
        })
    }

    fn space_to_depth_add(
        &self,
        x: &CpuTensor,
        skip: &CpuTensor,
        stride: [usize; 3],
    ) -> Result<CpuTensor> {
        let op = "space_to_depth_add";
        let from = cells(op, x.shape())?;
        let [st, sh, sw] = stride;
        let divides = st > 0
            && sh > 0
            && sw > 0
            && from.frames % st == 0
            && from.height % sh == 0
            && from.width % sw == 0;
        if !divides {
            return Err(Error::operand(
                op,
                x.shape(),
                "the cells must divide by the stride",
            ));
        }
        let skipped = skip.shape().last();
        if skip.shape().with_last(1) != x.shape().with_last(1)
            || !skipped.is_multiple_of(from.channels)
        {
            let rule = "the same cells and a multiple of the channels";
            return Err(Error::mismatch(op, x.shape(), skip.shape(), rule));
        }
        let (height, width) = (from.height / sh, from.width / sw);
        let shape = Shape::from([
            from.frames / st,
            height,
            width,
            from.channels * st * sh * sw,
        ]);
        self.produce(shape, |out| {
            glue::space_to_depth(x.values(), from, skip.values(), skipped, stride, out);
        })
    }

    fn patchify(&self, x: &CpuTensor, patch: usize) -> Result<CpuTensor> {
        let from = cells("patchify", x.shape())?;
        if patch == 0 || from.height % patch != 0 || from.width % patch != 0 {
            return Err(Error::operand(
                "patchify",
                x.shape(),
                "sides must divide by the patch",
            ));
        }
        let (height, width) = (from.height / patch, from.width / patch);
        let shape = Shape::from([from.frames, height, width, from.channels * patch * patch]);
        self.produce(shape, |out| glue::patchify(x.values(), from, patch, out))
    }

    fn unpatchify(&self, x: &CpuTensor, patch: usize) -> Result<CpuTensor> {
        let from = cells("unpatchify", x.shape())?;
        if patch == 0 || from.channels % (patch * patch) != 0 {
            return Err(Error::operand(
                "unpatchify",
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
        self.produce(shape, |out| glue::unpatchify(x.values(), from, patch, out))
    }
}
