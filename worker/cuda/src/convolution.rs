//! Convolutions: preparing kernels, padding in time, cuDNN.

use crate::arena::Block;
use crate::backend::CudaBackend;
use crate::check::cells;
use crate::device::Arg;
use crate::dnn::conv::{BIAS, SKIP, W, X, Y};
use crate::dnn::{Binding, ConvShape};
use crate::error::{InOp, Result};
use crate::tensor::{Buffer, CudaConv, CudaTensor, Element, Pending};
use crate::timing::Work;
use longtake_tensor::{DType, Error, Shape, Tensor, TimePadding, WeightView};
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Of what, epsilon, modulation.
type PendingNorm = (CudaTensor, f32, Option<(CudaTensor, usize, usize)>);

/// A norm that `x` still waits for: of what, epsilon, modulation.
fn pending_norm(x: &CudaTensor) -> Option<PendingNorm> {
    let state = x.node.lock();
    match (&state.values, &state.pending) {
        (None, Some(Pending::PixelNorm { x, eps, modulation })) => {
            Some((x.clone(), *eps, modulation.clone()))
        }
        _ => None,
    }
}

/// Either a block of its own or a tensor's values.
enum Input {
    Padded(Block),
    Values(Arc<Buffer>),
}

impl Input {
    fn address(&self) -> u64 {
        match self {
            Self::Padded(block) => block.address(),
            Self::Values(buffer) => buffer.block.address(),
        }
    }
}

impl CudaBackend {
    pub(crate) fn prepare_conv(
        &self,
        view: &WeightView<'_>,
        bias: Option<&[f32]>,
        n: usize,
        c: usize,
        size: [usize; 3],
    ) -> Result<CudaConv> {
        let device = self.device();
        let (n_padded, c_padded) = (n.next_multiple_of(8), c.next_multiple_of(8));
        let taps: usize = size.iter().product();
        let narrow = view.dtype() == DType::BF16 && view.scale().is_none();
        let stored = if narrow {
            let block = device.take(view.bytes().len())?;
            device.upload(block.address(), view.bytes())?;
            block
        } else {
            self.upload_f32(&view.to_f32())?
        };
        let count = n_padded * taps * c_padded;
        let kernel = device.take(count * 2)?;
        let args = [
            Arg::U64(stored.address()),
            Arg::U64(kernel.address()),
            Arg::I32(i32::from(!narrow)),
            Arg::U64(count as u64),
            Arg::I32(n as i32),
            Arg::I32(c as i32),
            Arg::I32(taps as i32),
            Arg::I32(c_padded as i32),
        ];
        self.layout("permute_kernel", count, &args)?;
        let mut padded = vec![0.0; n_padded];
        padded[..n].copy_from_slice(bias.unwrap_or(&vec![0.0; n]));
        Ok(CudaConv {
            n,
            c,
            n_padded,
            c_padded,
            size,
            kernel,
            bias: self.upload_f32(&padded)?,
        })
    }

    /// The convolution, plus `skip`.
    pub(crate) fn convolve(
        &self,
        x: &CudaTensor,
        conv: &CudaConv,
        padding: TimePadding,
        skip: Option<&CudaTensor>,
    ) -> longtake_tensor::Result<CudaTensor> {
        let op = "conv3d";
        self.check_wanted()?;
        let from = cells(op, x.shape())?;
        if from.channels != conv.c {
            let kernel = Shape::from([conv.n, conv.c]);
            return Err(Error::mismatch(op, x.shape(), kernel, "as many channels"));
        }
        let Some(frames) = padding.frames_out(from.frames, conv.size[0]) else {
            let rule = "as many frames as the kernel are needed";
            return Err(Error::operand(op, x.shape(), rule));
        };
        let shape = Shape::from([frames, from.height, from.width, conv.n]);
        if let Some(skip) = skip {
            crate::check::check_same(op, shape, skip.shape())?;
        }
        let go = || -> Result<CudaTensor> {
            let ends = padding.frames(conv.size[0]);
            let zeros = padding == TimePadding::Zeros && ends != [0, 0];
            let input = self.conv_input(x, conv, ends, zeros)?;
            // A skip with padded channels would need a copy; no known model has one.
            let fused = skip.filter(|_| conv.n == conv.n_padded);
            let size = ConvShape {
                frames,
                height: from.height,
                width: from.width,
                c: conv.c_padded,
                n: conv.n_padded,
                kernel: conv.size,
                skip: fused.is_some(),
            };
            let fused = fused.map(|s| self.bf16(s)).transpose()?;
            let out = self
                .device()
                .take(shape.with_last(conv.n_padded).count() * 2)?;
            let fused_at = fused.as_ref().map_or(0, |b| b.block.address());
            self.run_conv(size, conv, input.address(), fused_at, out.address())?;
            let padded = CudaTensor::ready(shape.with_last(conv.n_padded), out, Element::Bf16);
            if conv.n == conv.n_padded {
                return Ok(padded);
            }
            self.cut_channels(&padded, conv.n, skip)
        };
        go().in_op(op)
    }

    /// `x` in bf16 with padded channels and first and last frames repeated, or zeros in their place;
    /// written so by the kernel that produces it where that is possible.
    fn conv_input(
        &self,
        x: &CudaTensor,
        conv: &CudaConv,
        [front, back]: [usize; 2],
        zeros: bool,
    ) -> Result<Input> {
        let same_channels = conv.c == conv.c_padded;
        if same_channels
            && !zeros
            && let Some(input) = self.normed_input(x, front, back)?
        {
            return Ok(input);
        }
        let values = self.values(x)?;
        if front + back == 0 && same_channels && values.element == Element::Bf16 {
            return Ok(Input::Values(values));
        }
        let shape = x.shape();
        let frames = shape.dims()[0];
        let cells = shape.rows() / frames;
        let vecs = (front + frames + back) * cells * conv.c_padded / 8;
        let block = self.device().take(vecs * 16)?;
        let args = [
            Arg::U64(values.block.address()),
            Arg::U64(block.address()),
            Arg::I32(i32::from(values.element.is_f32())),
            Arg::I32(vecs as i32),
            Arg::I32(conv.c as i32),
            Arg::I32(conv.c_padded as i32),
            Arg::I32(cells as i32),
            Arg::I32(frames as i32),
            Arg::I32(front as i32),
            Arg::I32(i32::from(zeros)),
        ];
        self.layout("pad", vecs, &args)?;
        Ok(Input::Padded(block))
    }

    /// The input of a convolution that a norm still has to write, alone or behind the frames that are
    /// kept of the part before. The values are then there for whoever wants some of them later.
    fn normed_input(&self, x: &CudaTensor, front: usize, back: usize) -> Result<Option<Input>> {
        let note = {
            let state = x.node.lock();
            match (&state.values, &state.pending) {
                (None, Some(Pending::PixelNorm { .. })) => (None, x.clone()),
                (None, Some(Pending::Joined { before, x })) => (Some(before.clone()), x.clone()),
                _ => return Ok(None),
            }
        };
        let (before, source) = note;
        let Some((of, eps, modulation)) = pending_norm(&source) else {
            return Ok(None);
        };
        let Some(before) = before else {
            let block = self.pixel_norm(&of, eps, modulation.as_ref(), front, back)?;
            return Ok(Some(Input::Padded(block)));
        };
        // What is kept goes where the norm's copies of its first frame would be, or behind one of them.
        let kept = self.bf16(&before)?;
        let kept_frames = before.shape().dims()[0];
        let frame = before.shape().count() / kept_frames * 2;
        let block = self.pixel_norm(&of, eps, modulation.as_ref(), front + kept_frames, back)?;
        let to = block.address() + (front * frame) as u64;
        let device = self.device();
        device.copy(to, kept.block.address(), kept_frames * frame)?;
        if front > 0 {
            for i in 0..front {
                let to = block.address() + (i * frame) as u64;
                device.copy(to, kept.block.address(), frame)?;
            }
        }
        let address = block.address();
        let whole = Arc::new(block);
        let size = x.shape().count() * 2;
        let values = Block::part_of(whole.clone(), address, front * frame, size);
        x.node.lock().values = Some(Arc::new(Buffer {
            block: values,
            element: Element::Bf16,
        }));
        let all = (front + back) * frame + size;
        Ok(Some(Input::Padded(Block::part_of(whole, address, 0, all))))
    }

    fn run_conv(&self, size: ConvShape, conv: &CudaConv, x: u64, skip: u64, y: u64) -> Result<()> {
        let mut plans = self.plans();
        if let Entry::Vacant(place) = plans.conv.entry(size) {
            let limit = self.options().dnn_workspace_bytes;
            let plan = self.dnn(|dnn| size.plan(dnn.target(), limit))?;
            tracing::debug!(
                ?size,
                engine = plan.engine(),
                workspace = plan.workspace_bytes(),
                "convolution plan"
            );
            place.insert(plan);
        }
        let plan = &plans.conv[&size];
        let workspace = self.device().take(plan.workspace_bytes())?;
        let bind = |id, address| Binding { id, address };
        let mut bindings = vec![
            bind(X, x),
            bind(W, conv.kernel.address()),
            bind(Y, y),
            bind(BIAS, conv.bias.address()),
        ];
        if size.skip {
            bindings.push(bind(SKIP, skip));
        }
        self.device().bind()?;
        // SAFETY: the tensors have the sizes of `size`; blocks are aligned to 256 bytes.
        self.dnn(|dnn| unsafe { dnn.run(plan, &bindings, workspace.address()) })?;
        let label = || {
            let [kt, kh, kw] = size.kernel;
            let kernel = format!("{kt}x{kh}x{kw}");
            let label = format!("convolution {} to {}, {kernel}", size.c, size.n);
            (label, Work::Flops(size.flops()))
        };
        self.device().watch.saw(self.device(), label)
    }
}
