//! [`Backend`] on the CPU.

use crate::glue::{self, Cells};
use crate::kernels::{self, AttentionShape, Epilogue, Isa, IsaError, Modulate};
use crate::kernels::{PackedConv, PackedMatrix, TemporalPadding};
use crate::tensor::{Buffer, CpuConv, CpuMatrix, CpuTensor, Recycler};
use longtake_tensor::{
    Activation, AttentionBias, Backend, ChannelModulation, Error, Gate, Loader, Modulation, Result,
    Rope, Shape, Tensor, TimePadding, WeightView,
};
use rayon::prelude::*;
use std::sync::Arc;

/// The CPU as a backend: a thread pool of its own and an instruction-set level.
///
/// Results depend on the level, never on the number of threads.
#[derive(Clone)]
pub struct CpuBackend {
    pool: Arc<rayon::ThreadPool>,
    isa: Isa,
    recycler: Arc<Recycler>,
}

impl CpuBackend {
    /// A backend of `threads` threads (0: one for each processor) on level `isa`.
    pub fn new(threads: usize, isa: Isa) -> std::result::Result<Self, CpuBackendError> {
        let isa = isa.ensure_available()?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("cpu-{i}"))
            .build()?;
        Ok(Self {
            pool: Arc::new(pool),
            isa,
            recycler: Arc::default(),
        })
    }

    /// The instruction-set level.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Frees the memory kept for coming activations.
    pub fn release_memory(&self) {
        self.recycler.clear();
    }

    /// A tensor of `shape` that `fill` writes completely, on the pool.
    fn produce(&self, shape: Shape, fill: impl FnOnce(&mut [f32]) + Send) -> CpuTensor {
        let mut buffer = self.recycler.take(shape.count());
        self.pool.install(|| fill(&mut buffer));
        CpuTensor::new(shape, buffer)
    }

    /// `x` with its values changed by `change` on the pool; copies them first when they are shared.
    fn change(&self, mut x: CpuTensor, change: impl FnOnce(&mut [f32]) + Send) -> CpuTensor {
        if x.unique_mut().is_none() {
            let mut copy: Buffer = self.recycler.take(x.values().len());
            copy.copy_from_slice(x.values());
            x = CpuTensor::new(x.shape(), copy);
        }
        if let Some(values) = x.unique_mut() {
            self.pool.install(|| change(values));
        }
        x
    }
}

/// The backend cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum CpuBackendError {
    /// The processor lacks the level.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The threads could not be started.
    #[error("cannot start the compute threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Row `row` of every set of `table` `[T, R, D]`, as `[T, D]`.
fn table_row(op: &'static str, table: &CpuTensor, row: usize) -> Result<Vec<f32>> {
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
fn check_tokens(op: &'static str, x: Shape, table: Shape, index: &[u32]) -> Result<()> {
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

fn check_same(op: &'static str, x: Shape, y: Shape) -> Result<()> {
    if x == y {
        Ok(())
    } else {
        Err(Error::mismatch(op, x, y, "equal shapes"))
    }
}

fn check_vector(op: &'static str, x: Shape, vector: Shape) -> Result<()> {
    if vector.count() == x.last() {
        Ok(())
    } else {
        Err(Error::mismatch(op, x, vector, "one value a channel"))
    }
}

fn cells(op: &'static str, shape: Shape) -> Result<Cells> {
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

fn epilogue(act: Activation) -> Epilogue {
    match act {
        Activation::None => Epilogue::None,
        Activation::GeluTanh => Epilogue::GeluTanh,
        Activation::Silu => Epilogue::Silu,
    }
}

fn temporal(padding: TimePadding) -> TemporalPadding {
    match padding {
        TimePadding::Causal => TemporalPadding::Causal,
        TimePadding::Symmetric => TemporalPadding::Symmetric,
    }
}

type NormKernel = fn(Isa, &[f32], usize, f32, Option<&[f32]>, Option<Modulate<'_>>, &mut [f32]);

impl CpuBackend {
    fn norm_modulate(
        &self,
        op: &'static str,
        kernel: NormKernel,
        x: &CpuTensor,
        eps: f32,
        m: &Modulation<'_, Self>,
    ) -> Result<CpuTensor> {
        check_tokens(op, x.shape(), m.table.shape(), m.index)?;
        let scale = table_row(op, m.table, m.scale)?;
        let shift = table_row(op, m.table, m.shift)?;
        let modulate = Modulate {
            scale: &scale,
            shift: &shift,
            set_of_row: Some(m.index),
        };
        let width = x.shape().last();
        Ok(self.produce(x.shape(), |out| {
            kernel(self.isa, x.values(), width, eps, None, Some(modulate), out);
        }))
    }

    fn convolve(
        &self,
        x: &CpuTensor,
        conv: &CpuConv,
        padding: TimePadding,
        skip: Option<&CpuTensor>,
    ) -> Result<CpuTensor> {
        let from = cells("conv3d", x.shape())?;
        if from.channels != conv.kernel.cin() {
            let kernel = Shape::from([conv.kernel.cout(), conv.kernel.cin()]);
            return Err(Error::mismatch(
                "conv3d",
                x.shape(),
                kernel,
                "as many channels",
            ));
        }
        let shape = x.shape().with_last(conv.kernel.cout());
        if let Some(skip) = skip {
            check_same("conv3d", shape, skip.shape())?;
        }
        let size = [from.frames, from.height, from.width];
        Ok(self.produce(shape, |out| {
            let (bias, skip) = (conv.bias.as_deref(), skip.map(CpuTensor::values));
            let padding = temporal(padding);
            kernels::conv3d(
                self.isa,
                x.values(),
                size,
                &conv.kernel,
                padding,
                bias,
                skip,
                out,
            );
        }))
    }
}

impl Loader for CpuBackend {
    type Tensor = CpuTensor;
    type Matrix = CpuMatrix;
    type Conv = CpuConv;

    fn upload(&self, shape: Shape, values: &[f32]) -> Result<CpuTensor> {
        check_same(
            "upload",
            Shape::from([shape.count()]),
            Shape::from([values.len()]),
        )?;
        Ok(self.produce(shape, |out| out.copy_from_slice(values)))
    }

    fn matrix(&self, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Result<CpuMatrix> {
        let shape = weight.shape();
        let &[n, k] = shape.dims() else {
            return Err(Error::operand("matrix", shape, "[N, K] is needed"));
        };
        if let Some(bias) = bias {
            check_vector("matrix", Shape::from([k, n]), Shape::from([bias.len()]))?;
        }
        let values = weight.to_f32();
        let weight = self.pool.install(|| PackedMatrix::pack(&values, n, k));
        Ok(CpuMatrix {
            weight,
            bias: bias.map(<[f32]>::to_vec),
        })
    }

    fn conv(&self, kernel: &WeightView<'_>, bias: Option<&[f32]>) -> Result<CpuConv> {
        let shape = kernel.shape();
        let &[n, c, kt, kh, kw] = shape.dims() else {
            return Err(Error::operand(
                "conv",
                shape,
                "[N, C, kt, kh, kw] is needed",
            ));
        };
        if [kt, kh, kw].iter().any(|size| size % 2 == 0) {
            return Err(Error::operand("conv", shape, "odd kernel sizes are needed"));
        }
        if let Some(bias) = bias {
            check_vector("conv", Shape::from([c, n]), Shape::from([bias.len()]))?;
        }
        let values = kernel.to_f32();
        let kernel = self
            .pool
            .install(|| PackedConv::pack(&values, n, c, [kt, kh, kw]));
        Ok(CpuConv {
            kernel,
            bias: bias.map(<[f32]>::to_vec),
        })
    }
}

impl Backend for CpuBackend {
    type Index = Vec<u32>;

    fn download(&self, x: &CpuTensor) -> Result<Vec<f32>> {
        Ok(x.values().to_vec())
    }

    fn upload_index(&self, index: &[u32]) -> Result<Vec<u32>> {
        Ok(index.to_vec())
    }

    fn from_rgb8(
        &self,
        frames: usize,
        height: usize,
        width: usize,
        rgb: &[u8],
    ) -> Result<CpuTensor> {
        let shape = Shape::from([frames, height, width, 3]);
        check_same(
            "from_rgb8",
            Shape::from([shape.count()]),
            Shape::from([rgb.len()]),
        )?;
        Ok(self.produce(shape, |out| {
            glue::for_rows(out, width * 3, |row, out| {
                for (out, &v) in out.iter_mut().zip(&rgb[row * width * 3..]) {
                    *out = 2.0 * (f32::from(v) / 255.0) - 1.0;
                }
            });
        }))
    }

    fn to_rgb8(&self, x: &CpuTensor) -> Result<Vec<u8>> {
        let mut rgb = vec![0; x.values().len()];
        self.pool.install(|| {
            rgb.par_chunks_mut(1 << 14)
                .zip(x.values().par_chunks(1 << 14))
                .for_each(|(rgb, x)| {
                    for (rgb, &v) in rgb.iter_mut().zip(x) {
                        *rgb = ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
                    }
                });
        });
        Ok(rgb)
    }

    fn linear(&self, x: &CpuTensor, w: &CpuMatrix, act: Activation) -> Result<CpuTensor> {
        let (n, k) = (w.weight.n(), w.weight.k());
        if x.shape().last() != k {
            let rule = "as many channels as the matrix has columns";
            return Err(Error::mismatch(
                "linear",
                x.shape(),
                Shape::from([n, k]),
                rule,
            ));
        }
        Ok(self.produce(x.shape().with_last(n), |out| {
            let bias = w.bias.as_deref();
            kernels::linear(self.isa, x.values(), &w.weight, bias, epilogue(act), out);
        }))
    }

    fn rms_norm(&self, x: &CpuTensor, weight: &CpuTensor, eps: f32) -> Result<CpuTensor> {
        check_vector("rms_norm", x.shape(), weight.shape())?;
        let width = x.shape().last();
        Ok(self.produce(x.shape(), |out| {
            let weight = Some(weight.values());
            kernels::rms_norm(self.isa, x.values(), width, eps, weight, None, out);
        }))
    }

    fn rms_norm_modulate(
        &self,
        x: &CpuTensor,
        eps: f32,
        modulation: &Modulation<'_, Self>,
    ) -> Result<CpuTensor> {
        self.norm_modulate("rms_norm_modulate", kernels::rms_norm, x, eps, modulation)
    }

    fn layer_norm_modulate(
        &self,
        x: &CpuTensor,
        eps: f32,
        modulation: &Modulation<'_, Self>,
    ) -> Result<CpuTensor> {
        self.norm_modulate(
            "layer_norm_modulate",
            kernels::layer_norm,
            x,
            eps,
            modulation,
        )
    }

    fn qk_norm_rope(
        &self,
        x: CpuTensor,
        weight: &CpuTensor,
        eps: f32,
        rope: Option<&Rope<Self>>,
    ) -> Result<CpuTensor> {
        let op = "qk_norm_rope";
        check_vector(op, x.shape(), weight.shape())?;
        let width = x.shape().last();
        if let Some(rope) = rope {
            let tables = [rope.cos.values().len(), rope.sin.values().len()];
            if width % 2 != 0 || tables.iter().any(|&n| n != x.values().len() / 2) {
                let rule = "an angle for each pair of channels";
                return Err(Error::mismatch(op, x.shape(), rope.cos.shape(), rule));
            }
        }
        Ok(self.produce(x.shape(), |out| {
            let weight = Some(weight.values());
            kernels::rms_norm(self.isa, x.values(), width, eps, weight, None, out);
            if let Some(rope) = rope {
                glue::rotate(out, width, rope.cos.values(), rope.sin.values());
            }
        }))
    }

    fn attention(
        &self,
        q: &CpuTensor,
        k: &CpuTensor,
        v: &CpuTensor,
        heads: usize,
        scale: f32,
        bias: &AttentionBias<'_, Self>,
    ) -> Result<CpuTensor> {
        let op = "attention";
        let width = q.shape().last();
        check_same(op, k.shape(), v.shape())?;
        if k.shape().last() != width {
            return Err(Error::mismatch(
                op,
                q.shape(),
                k.shape(),
                "as many channels",
            ));
        }
        if heads == 0 || width % heads != 0 {
            return Err(Error::operand(
                op,
                q.shape(),
                "channels must divide into the heads",
            ));
        }
        let (lq, lk) = (q.shape().rows(), k.shape().rows());
        let keys = bias.keys.map(CpuTensor::values);
        let positions = bias.positions.map(CpuTensor::values);
        if keys.is_some_and(|b| b.len() != lk)
            || positions.is_some_and(|b| b.len() != heads * lq * lk)
        {
            return Err(Error::mismatch(
                op,
                q.shape(),
                k.shape(),
                "a bias for each score",
            ));
        }
        let mut both = Vec::new();
        let bias = match (keys, positions) {
            (None, None) => kernels::AttentionBias::None,
            (Some(keys), None) => kernels::AttentionBias::Key(keys),
            (None, Some(positions)) => kernels::AttentionBias::Full(positions),
            (Some(keys), Some(positions)) => {
                both.extend_from_slice(positions);
                both.chunks_exact_mut(lk.max(1)).for_each(|row| {
                    row.iter_mut()
                        .zip(keys)
                        .for_each(|(bias, key)| *bias += key);
                });
                kernels::AttentionBias::Full(&both)
            }
        };
        let shape = AttentionShape {
            heads,
            head_dim: width / heads,
            lq,
            lk,
        };
        Ok(self.produce(q.shape(), |out| {
            let (q, k, v) = (q.values(), k.values(), v.values());
            kernels::attention(self.isa, shape, q, k, v, scale, bias, out);
        }))
    }

    fn gated_residual(
        &self,
        x: CpuTensor,
        y: &CpuTensor,
        gate: Option<&Gate<'_, Self>>,
    ) -> Result<CpuTensor> {
        let op = "gated_residual";
        check_same(op, x.shape(), y.shape())?;
        let Some(gate) = gate else {
            return Ok(self.change(x, |x| glue::update(x, y.values(), |x, y| x + y)));
        };
        check_tokens(op, x.shape(), gate.table.shape(), gate.index)?;
        let gates = table_row(op, gate.table, gate.row)?;
        let width = x.shape().last();
        Ok(self.change(x, |x| {
            glue::for_rows(x, width, |row, x| {
                let gate = &gates[gate.index[row] as usize * width..][..width];
                let y = &y.values()[row * width..][..width];
                for ((x, &y), &gate) in x.iter_mut().zip(y).zip(gate) {
                    *x += y * gate;
                }
            });
        }))
    }

    fn silu(&self, x: &CpuTensor) -> Result<CpuTensor> {
        Ok(self.produce(x.shape(), |out| {
            out.copy_from_slice(x.values());
            kernels::math::silu(self.isa, out);
        }))
    }

    fn multiply(&self, x: &CpuTensor, y: &CpuTensor) -> Result<CpuTensor> {
        check_same("multiply", x.shape(), y.shape())?;
        Ok(self.produce(x.shape(), |out| {
            glue::zip(x.values(), y.values(), out, |x, y| x * y)
        }))
    }

    fn add_table(&self, x: &CpuTensor, y: &CpuTensor) -> Result<CpuTensor> {
        let (sets, table) = (x.shape().rows(), y.shape());
        let &[rows, width] = table.dims() else {
            return Err(Error::operand("add_table", table, "[R, D] is needed"));
        };
        if x.shape().last() != rows * width {
            return Err(Error::mismatch(
                "add_table",
                x.shape(),
                table,
                "R D values a set",
            ));
        }
        Ok(self.produce(Shape::from([sets, rows, width]), |out| {
            for (out, x) in out
                .chunks_mut(rows * width)
                .zip(x.values().chunks(rows * width))
            {
                for ((out, &x), &y) in out.iter_mut().zip(x).zip(y.values()) {
                    *out = x + y;
                }
            }
        }))
    }

    fn weighted_sum(&self, x: &CpuTensor, a: f32, y: &CpuTensor, b: f32) -> Result<CpuTensor> {
        check_same("weighted_sum", x.shape(), y.shape())?;
        Ok(self.produce(x.shape(), |out| {
            glue::zip(x.values(), y.values(), out, |x, y| a * x + b * y);
        }))
    }

    fn add_scaled_tokens(
        &self,
        x: CpuTensor,
        y: &CpuTensor,
        factors: &[f32],
        index: &Vec<u32>,
    ) -> Result<CpuTensor> {
        let op = "add_scaled_tokens";
        check_same(op, x.shape(), y.shape())?;
        let width = x.shape().last();
        check_tokens(op, x.shape(), Shape::from([factors.len(), width]), index)?;
        Ok(self.change(x, |x| {
            glue::for_rows(x, width, |row, x| {
                let factor = factors[index[row] as usize];
                let y = &y.values()[row * width..][..width];
                x.iter_mut().zip(y).for_each(|(x, &y)| *x += factor * y);
            });
        }))
    }

    fn channel_affine(
        &self,
        x: &CpuTensor,
        scale: &CpuTensor,
        shift: &CpuTensor,
    ) -> Result<CpuTensor> {
        check_vector("channel_affine", x.shape(), scale.shape())?;
        check_vector("channel_affine", x.shape(), shift.shape())?;
        let width = x.shape().last();
        Ok(self.produce(x.shape(), |out| {
            glue::for_rows(out, width, |row, out| {
                let x = &x.values()[row * width..][..width];
                let affine = scale.values().iter().zip(shift.values());
                for ((out, &x), (&scale, &shift)) in out.iter_mut().zip(x).zip(affine) {
                    *out = x * scale + shift;
                }
            });
        }))
    }

    fn reshape(&self, x: &CpuTensor, shape: Shape) -> Result<CpuTensor> {
        if shape.count() != x.shape().count() {
            return Err(Error::mismatch(
                "reshape",
                x.shape(),
                shape,
                "as many elements",
            ));
        }
        Ok(x.reshaped(shape))
    }

    fn first_channels(&self, x: &CpuTensor, count: usize) -> Result<CpuTensor> {
        let width = x.shape().last();
        if count > width {
            return Err(Error::operand(
                "first_channels",
                x.shape(),
                "too few channels",
            ));
        }
        Ok(self.produce(x.shape().with_last(count), |out| {
            glue::for_rows(out, count, |row, out| {
                out.copy_from_slice(&x.values()[row * width..][..count]);
            });
        }))
    }

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
        Ok(self.produce(x.shape(), |out| {
            kernels::pixel_norm(self.isa, x.values(), width, eps, modulate, true, out);
        }))
    }

    fn repeat_first_frame(&self, x: &CpuTensor, n: usize) -> Result<CpuTensor> {
        let from = cells("repeat_first_frame", x.shape())?;
        let frame = from.height * from.width * from.channels;
        let shape = Shape::from([from.frames + n, from.height, from.width, from.channels]);
        Ok(self.produce(shape, |out| {
            let (front, rest) = out.split_at_mut(n * frame);
            front
                .chunks_exact_mut(frame)
                .for_each(|f| f.copy_from_slice(&x.values()[..frame]));
            rest.copy_from_slice(x.values());
        }))
    }

    fn depth_to_space_add(
        &self,
        x: &CpuTensor,
        skip: Option<&CpuTensor>,
        stride: [usize; 3],
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
                && channels % skipped == 0;
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
        let frames = from.frames * st - (st - 1);
        let shape = Shape::from([frames, from.height * sh, from.width * sw, channels]);
        Ok(self.produce(shape, |out| {
            let skip = skip.map(|skip| (skip.values(), skip.shape().last()));
            glue::depth_to_space(x.values(), from, skip, stride, out);
        }))
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
        if skip.shape().with_last(1) != x.shape().with_last(1) || skipped % from.channels != 0 {
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
        Ok(self.produce(shape, |out| {
            glue::space_to_depth(x.values(), from, skip.values(), skipped, stride, out);
        }))
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
        Ok(self.produce(shape, |out| glue::patchify(x.values(), from, patch, out)))
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
        Ok(self.produce(shape, |out| glue::unpatchify(x.values(), from, patch, out)))
    }
}
