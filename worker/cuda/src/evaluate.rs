//! Computing what is pending, several notes in one pass where they follow each other.

use crate::arena::Block;
use crate::backend::CudaBackend;
use crate::device::Arg;
use crate::error::{CudaError, Result};
use crate::kernels::{self, Crowd, RowKernel, qk_spec};
use crate::tensor::{Buffer, CudaTensor, Element, Norm, Pending, Quantised, TableRow};
use longtake_tensor::{Shape, Tensor};
use std::sync::Arc;

/// How a row kernel's result is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Only the stream that a residual was added to.
    Stream,
    Bf16,
    E4m3,
}

/// Norm and modulation of a pass.
struct Shaping {
    norm: Option<Norm>,
    eps: f32,
    modulation: Option<(TableRow, usize)>,
    weight: Option<CudaTensor>,
    act: u32,
}

impl Shaping {
    const NONE: Self = Self {
        norm: None,
        eps: 0.0,
        modulation: None,
        weight: None,
        act: 0,
    };
}

/// What a pass wrote.
struct Written {
    stream: Option<Arc<Buffer>>,
    bf16: Option<Block>,
    quantised: Option<Quantised>,
}

/// What a residual adds: the stream that it goes to, the branch, the gate.
type Added = (Arc<Buffer>, Arc<Buffer>, Option<TableRow>);

fn lost(op: &str) -> CudaError {
    CudaError::Unsupported(format!(
        "{op}: the values were lost when an earlier operation failed"
    ))
}

impl CudaBackend {
    /// The values of a tensor, computed if need be.
    pub(crate) fn values(&self, x: &CudaTensor) -> Result<Arc<Buffer>> {
        let pending = {
            let state = x.node.lock();
            if let Some(values) = &state.values {
                return Ok(Arc::clone(values));
            }
            if let (Some(quantised), None) = (&state.quantised, &state.pending) {
                let quantised = Arc::clone(quantised);
                drop(state);
                return self.widened(x, &quantised);
            }
            match &state.pending {
                // These are done in place where nobody else holds what they work on: no copy of
                // the note may hold it.
                Some(Pending::Residual { .. } | Pending::Rotated { .. }) => None,
                pending => Some(pending.clone().ok_or_else(|| lost("values"))?),
            }
        };
        let Some(pending) = pending else {
            return self.values_in_place(x);
        };
        let values = match pending {
            Pending::Residual { .. } | Pending::Rotated { .. } => None,
            Pending::Modulated {
                x,
                norm,
                eps,
                shift,
                scale_row,
            } => {
                let shaping = modulated(norm, eps, shift, scale_row);
                self.shaped(&x, &shaping, Form::Bf16)?.bf16.map(bf16_buffer)
            }
            Pending::Weighted { x, weight, eps } => {
                let shaping = weighted(weight, eps);
                self.shaped(&x, &shaping, Form::Bf16)?.bf16.map(bf16_buffer)
            }
            Pending::Activated { x, act } => {
                let shaping = Shaping {
                    act,
                    ..Shaping::NONE
                };
                self.shaped(&x, &shaping, Form::Bf16)?.bf16.map(bf16_buffer)
            }
            Pending::PixelNorm { x, eps, modulation } => {
                let block = self.pixel_norm(&x, eps, modulation.as_ref(), 0, 0)?;
                Some(bf16_buffer(block))
            }
            Pending::Joined { before, x } => Some(self.joined(&before, &x)?),
            Pending::Unpatched { x, patch } => Some(Arc::new(Buffer {
                block: self.unpatch(&x, patch)?,
                element: Element::F32,
            })),
        };
        let values = values.ok_or_else(|| lost("values"))?;
        let mut state = x.node.lock();
        state.values = Some(Arc::clone(&values));
        state.pending = None;
        Ok(values)
    }

    /// The values of a tensor that was computed in 8 bits.
    fn widened(&self, x: &CudaTensor, from: &Quantised) -> Result<Arc<Buffer>> {
        let shape = x.node.shape;
        let (rows, d) = (shape.rows(), shape.last());
        let values = bf16_buffer(self.expanded(&from.values, &from.scales, rows, d)?);
        x.node.lock().values = Some(Arc::clone(&values));
        Ok(values)
    }

    /// The values of a tensor whose note says to change another one.
    fn values_in_place(&self, x: &CudaTensor) -> Result<Arc<Buffer>> {
        self.rotate(&[x])?;
        if let Some(values) = &x.node.lock().values {
            return Ok(Arc::clone(values));
        }
        let shape = x.node.shape;
        let added = Some(self.take_residual(x)?);
        let (rows, d) = (shape.rows(), shape.last());
        let written = self.row_pass(rows, d, None, added, &Shaping::NONE, Form::Stream)?;
        let stream = written.stream.ok_or_else(|| lost("gated_residual"))?;
        x.node.lock().values = Some(Arc::clone(&stream));
        Ok(stream)
    }

    /// The values in bf16.
    pub(crate) fn bf16(&self, x: &CudaTensor) -> Result<Arc<Buffer>> {
        let values = self.values(x)?;
        if values.element == Element::Bf16 {
            return Ok(values);
        }
        if let Some(narrow) = &x.node.lock().narrow {
            return Ok(Arc::clone(narrow));
        }
        let narrow = self.convert(&values, x.shape().count(), Element::Bf16)?;
        x.node.lock().narrow = Some(Arc::clone(&narrow));
        Ok(narrow)
    }

    /// The values in f32.
    pub(crate) fn f32(&self, x: &CudaTensor) -> Result<Arc<Buffer>> {
        let values = self.values(x)?;
        if values.element == Element::F32 {
            return Ok(values);
        }
        self.convert(&values, x.shape().count(), Element::F32)
    }

    /// The rows quantised to E4M3, by the kernel that produces them where that is possible.
    pub(crate) fn quantised(&self, x: &CudaTensor) -> Result<Arc<Quantised>> {
        let pending = {
            let state = x.node.lock();
            if let Some(quantised) = &state.quantised {
                return Ok(Arc::clone(quantised));
            }
            // A view with other rows has other scales.
            let usable = state.values.is_none() && x.shape().last() == x.node.shape.last();
            match &state.pending {
                Some(Pending::Residual { .. }) if usable => {
                    drop(state);
                    return self.quantised_residual(x);
                }
                pending if usable => pending.clone(),
                _ => None,
            }
        };
        let (rows, d) = (x.shape().rows(), x.shape().last());
        let form = Form::E4m3;
        let written = match pending {
            Some(Pending::Modulated {
                x,
                norm,
                eps,
                shift,
                scale_row,
            }) => self.shaped(&x, &modulated(norm, eps, shift, scale_row), form)?,
            Some(Pending::Weighted { x, weight, eps }) => {
                self.shaped(&x, &weighted(weight, eps), form)?
            }
            Some(Pending::Activated { x, act }) => self.shaped(
                &x,
                &Shaping {
                    act,
                    ..Shaping::NONE
                },
                form,
            )?,
            _ => {
                let values = self.values(x)?;
                self.row_pass(rows, d, Some(values), None, &Shaping::NONE, form)?
            }
        };
        let quantised = Arc::new(written.quantised.ok_or_else(|| lost("quantise"))?);
        if x.shape().last() == x.node.shape.last() {
            x.node.lock().quantised = Some(Arc::clone(&quantised));
        }
        Ok(quantised)
    }

    fn quantised_residual(&self, x: &CudaTensor) -> Result<Arc<Quantised>> {
        let (rows, d) = (x.shape().rows(), x.shape().last());
        let added = Some(self.take_residual(x)?);
        let written = self.row_pass(rows, d, None, added, &Shaping::NONE, Form::E4m3)?;
        let quantised = Arc::new(written.quantised.ok_or_else(|| lost("quantise"))?);
        let mut state = x.node.lock();
        state.values = written.stream;
        state.quantised = Some(Arc::clone(&quantised));
        Ok(quantised)
    }

    /// Shapes the rows of `x`, adding a residual that `x` still waits for in the same pass.
    fn shaped(&self, x: &CudaTensor, shaping: &Shaping, form: Form) -> Result<Written> {
        let (rows, d) = (x.shape().rows(), x.shape().last());
        let waits = {
            let state = x.node.lock();
            state.values.is_none() && matches!(state.pending, Some(Pending::Residual { .. }))
        };
        if !waits || d != x.node.shape.last() {
            let values = self.values(x)?;
            return self.row_pass(rows, d, Some(values), None, shaping, form);
        }
        let added = self.take_residual(x)?;
        let written = self.row_pass(rows, d, None, Some(added), shaping, form)?;
        let mut state = x.node.lock();
        state.values = written.stream.clone();
        state.pending = None;
        drop(state);
        Ok(written)
    }

    /// Takes the note of a residual off `x` and computes what it adds. The stream's buffer has no
    /// other owner afterwards when nobody else can see it.
    fn take_residual(&self, x: &CudaTensor) -> Result<Added> {
        let Some(Pending::Residual { x: stream, y, gate }) = x.node.lock().pending.take() else {
            return Err(lost("gated_residual"));
        };
        let mut values = self.values(&stream)?;
        if self.options().stream_f32 && values.element == Element::Bf16 {
            values = self.convert(&values, stream.shape().count(), Element::F32)?;
        }
        drop(stream);
        Ok((values, self.bf16(&y)?, gate))
    }

    /// One launch of the row kernel over `x`, or over the sum of `added`.
    fn row_pass(
        &self,
        rows: usize,
        d: usize,
        x: Option<Arc<Buffer>>,
        added: Option<Added>,
        shaping: &Shaping,
        form: Form,
    ) -> Result<Written> {
        if !d.is_multiple_of(8) {
            return Err(CudaError::Unsupported(format!(
                "tokens of {d} channels: a multiple of 8 is needed on this device"
            )));
        }
        let device = self.device();
        let (input, branch, gate, stream) = match added {
            None => (x.ok_or_else(|| lost("row pass"))?, None, None, None),
            Some((base, branch, gate)) => {
                // In place where nobody else can see the stream.
                let stream = if Arc::strong_count(&base) == 1 {
                    Arc::clone(&base)
                } else {
                    let block = device.take(rows * d * base.element.bytes())?;
                    Arc::new(Buffer {
                        block,
                        element: base.element,
                    })
                };
                (base, Some(branch), gate, Some(stream))
            }
        };
        let bf16 = (form == Form::Bf16)
            .then(|| device.take(rows * d * 2))
            .transpose()?;
        let quantised = (form == Form::E4m3).then(|| -> Result<_> {
            Ok(Quantised {
                values: device.take(rows * d)?,
                scales: device.take(rows * 4)?,
            })
        });
        let quantised = quantised.transpose()?;
        let gate_at = self.table_address(gate.as_ref())?;
        let (shift_at, scale_row) = match &shaping.modulation {
            Some((shift, scale_row)) => (self.table_address(Some(shift))?, *scale_row),
            None => ([0; 4], 0),
        };
        let weight = shaping.weight.as_ref().map(|w| self.f32(w)).transpose()?;
        let mod_table = weight.as_ref().map_or(shift_at[0], |w| w.block.address());
        let kernel = RowKernel {
            d,
            x_f32: input.element.is_f32(),
            act: shaping.act,
            residual: match (&branch, &gate) {
                (None, _) => 0,
                (Some(_), None) => 1,
                (Some(_), Some(_)) => 2,
            },
            norm: match shaping.norm {
                None => 0,
                Some(Norm::Rms) => 1,
                Some(Norm::Layer) => 2,
            },
            modulation: if shaping.weight.is_some() {
                2
            } else {
                u32::from(shaping.modulation.is_some())
            },
            out: match form {
                Form::Stream => 0,
                Form::Bf16 => 1,
                Form::E4m3 => 2,
            },
        };
        let stream_bytes = input.element.bytes();
        let bytes = stream_bytes
            + branch.as_ref().map_or(0, |_| 2 + stream_bytes)
            + match form {
                Form::Stream => 0,
                Form::Bf16 => 2,
                Form::E4m3 => 1,
            };
        let function = device
            .function(&kernel.spec(), "")?
            .moving(rows * d * bytes);
        let grid = self.row_grid(rows, d, kernel.crowd());
        let out = match (&bf16, &quantised) {
            (Some(block), _) => block.address(),
            (_, Some(q)) => q.values.address(),
            _ => 0,
        };
        let args = [
            Arg::U64(input.block.address()),
            Arg::U64(branch.as_ref().map_or(0, |b| b.block.address())),
            Arg::U64(stream.as_ref().map_or(0, |b| b.block.address())),
            Arg::U64(out),
            Arg::U64(quantised.as_ref().map_or(0, |q| q.scales.address())),
            Arg::U64(gate_at[0]),
            Arg::U64(gate_at[1]),
            Arg::I32(gate_at[2] as i32),
            Arg::I32(gate_at[3] as i32),
            Arg::U64(mod_table),
            Arg::U64(shift_at[1]),
            Arg::I32(shift_at[2] as i32),
            Arg::I32(shift_at[3] as i32),
            Arg::I32(scale_row as i32),
            Arg::F32(shaping.eps),
            Arg::I32(rows as i32),
        ];
        // SAFETY: buffers have rows * d values; tables and indices were checked when the notes were
        // made; the arguments are those of `rows.cu`, in order.
        unsafe { device.launch(function, grid, kernels::row_threads(d), 0, &args) }?;
        Ok(Written {
            stream,
            bf16,
            quantised,
        })
    }

    /// Blocks of a kernel over rows of `d` channels: as many as the device holds at once.
    pub(crate) fn row_grid(&self, rows: usize, d: usize, crowd: Crowd) -> [u32; 2] {
        let each = kernels::row_blocks(d, crowd);
        [
            (self.device().card.multiprocessors * each).min(rows as u32),
            1,
        ]
    }

    /// Addresses of table and index, rows of the table, the row.
    fn table_address(&self, row: Option<&TableRow>) -> Result<[u64; 4]> {
        let Some(row) = row else {
            return Ok([0; 4]);
        };
        let shape = row.table.shape();
        let rows = shape.dims().get(1).copied().unwrap_or(1);
        let table = self.values(&row.table)?;
        if table.element != Element::F32 {
            return Err(CudaError::Unsupported("a modulation table in bf16".into()));
        }
        Ok([
            table.block.address(),
            row.index.address(),
            rows as u64,
            row.row as u64,
        ])
    }

    /// Norms and rotates queries and keys, in one pass where they share the rotation.
    pub(crate) fn rotate(&self, tensors: &[&CudaTensor]) -> Result<()> {
        let mut work = Vec::new();
        for tensor in tensors {
            let mut state = tensor.node.lock();
            if state.values.is_some() {
                continue;
            }
            match state.pending.take() {
                Some(Pending::Rotated {
                    x,
                    weight,
                    eps,
                    rope,
                }) => {
                    work.push((*tensor, x, weight, eps, rope));
                }
                other => state.pending = other,
            }
        }
        let alike = |a: &Option<(CudaTensor, CudaTensor)>, b: &Option<(CudaTensor, CudaTensor)>| matches!((a, b), (Some((a, _)), Some((b, _))) if Arc::ptr_eq(&a.node, &b.node));
        let together = work.len() == 2
            && alike(&work[0].4, &work[1].4)
            && work[0].3 == work[1].3
            && work[0].1.shape() == work[1].1.shape();
        let step = if together { 2 } else { 1 };
        while !work.is_empty() {
            let batch: Vec<_> = work.drain(..step).collect();
            let shape = batch[0].1.shape();
            let (rows, d) = (shape.rows(), shape.last());
            let rope = match &batch[0].4 {
                Some((cos, sin)) => Some(self.packed_rope(cos, sin)?),
                None => None,
            };
            let eps = batch[0].3;
            let (mut buffers, mut weights, mut targets) = (Vec::new(), Vec::new(), Vec::new());
            for (tensor, x, weight, _, _) in batch {
                let mut buffer = self.bf16(&x)?;
                drop(x);
                if Arc::strong_count(&buffer) > 1 {
                    let block = self.device().take(rows * d * 2)?;
                    self.device()
                        .copy(block.address(), buffer.block.address(), rows * d * 2)?;
                    buffer = bf16_buffer(block);
                }
                buffers.push(buffer);
                weights.push(self.f32(&weight)?);
                targets.push(tensor);
            }
            let last = buffers.len() - 1;
            let bytes = 4 * step + if rope.is_some() { 2 } else { 0 };
            let function = self
                .device()
                .function(&qk_spec(d, step as u32, rope.is_some(), None), "")?
                .moving(rows * d * bytes);
            let grid = self.row_grid(rows, d, Crowd::of_qk(step as u32, false));
            let args = [
                Arg::U64(buffers[0].block.address()),
                Arg::U64(buffers[last].block.address()),
                Arg::U64(weights[0].block.address()),
                Arg::U64(weights[last].block.address()),
                Arg::U64(rope.as_ref().map_or(0, |block| block.address())),
                Arg::F32(eps),
                Arg::I32(rows as i32),
                Arg::U64(0),
                Arg::U64(0),
                Arg::F32(0.0),
            ];
            // SAFETY: buffers have rows * d values, weights d, the rotation rows * d / 2 pairs; the
            // arguments are those of `qk.cu`, in order.
            unsafe {
                self.device()
                    .launch(function, grid, kernels::row_threads(d), 0, &args)
            }?;
            for (tensor, buffer) in targets.into_iter().zip(buffers) {
                tensor.node.lock().values = Some(buffer);
            }
        }
        Ok(())
    }

    /// Cosines and sines side by side in fp16, packed at their first use.
    pub(crate) fn packed_rope(&self, cos: &CudaTensor, sin: &CudaTensor) -> Result<Arc<Block>> {
        if let Some(packed) = &cos.node.lock().rope {
            return Ok(Arc::clone(packed));
        }
        let count = cos.shape().count();
        let block = self.device().take(count * 4)?;
        let (c, s) = (self.f32(cos)?, self.f32(sin)?);
        self.elementwise(
            8,
            Some(&c),
            Some(&s),
            &block,
            Element::F32,
            count,
            &Default::default(),
        )?;
        let packed = Arc::new(block);
        cos.node.lock().rope = Some(Arc::clone(&packed));
        Ok(packed)
    }

    /// The same values stored otherwise.
    pub(crate) fn convert(
        &self,
        x: &Arc<Buffer>,
        count: usize,
        to: Element,
    ) -> Result<Arc<Buffer>> {
        let block = self.device().take(count * to.bytes())?;
        self.elementwise(0, Some(x), None, &block, to, count, &Default::default())?;
        Ok(Arc::new(Buffer { block, element: to }))
    }

    /// A tensor of its own with the values of `x`.
    pub(crate) fn copied(&self, x: &CudaTensor, shape: Shape) -> Result<CudaTensor> {
        let values = self.values(x)?;
        let bytes = shape.count() * values.element.bytes();
        let block = self.device().take(bytes)?;
        self.device()
            .copy(block.address(), values.block.address(), bytes)?;
        Ok(CudaTensor::ready(shape, block, values.element))
    }
}

fn bf16_buffer(block: Block) -> Arc<Buffer> {
    Arc::new(Buffer {
        block,
        element: Element::Bf16,
    })
}

fn modulated(norm: Norm, eps: f32, shift: TableRow, scale_row: usize) -> Shaping {
    Shaping {
        norm: Some(norm),
        eps,
        modulation: Some((shift, scale_row)),
        ..Shaping::NONE
    }
}

fn weighted(weight: CudaTensor, eps: f32) -> Shaping {
    Shaping {
        norm: Some(Norm::Rms),
        eps,
        weight: Some(weight),
        ..Shaping::NONE
    }
}
