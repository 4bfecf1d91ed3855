//! [`Backend`] on the CPU.

use crate::check::{check_same, check_tokens, check_vector, table_row};
use crate::glue;
use crate::kernels::{self, AttentionShape, Epilogue, Isa, IsaError, Modulate};
use crate::tensor::{Buffer, CpuTensor, Recycler};
use crate::weights::{CpuConv, CpuMatrix};
use longtake_tensor::{
    Activation, AttentionBias, Backend, Error, Gate, Interrupt, Loader, Modulation, Result, Rope,
    Shape, Tensor, WeightView,
};
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The CPU as a backend: a thread pool of its own and an instruction-set level.
///
/// Results depend on the level, never on the number of threads.
#[derive(Clone)]
pub struct CpuBackend {
    pool: Arc<rayon::ThreadPool>,
    isa: Isa,
    recycler: Arc<Recycler>,
    interrupt: Interrupt,
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
            interrupt: Interrupt::default(),
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

    /// Runs `f` on the pool.
    pub(crate) fn on_pool<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.pool.install(f)
    }

    /// A tensor of `shape` that `fill` writes completely, on the pool. Every operation comes through
    /// here or through [`Self::change`], and fails here once it is not wanted any more.
    pub(crate) fn produce(
        &self,
        shape: Shape,
        fill: impl FnOnce(&mut [f32]) + Send,
    ) -> Result<CpuTensor> {
        self.interrupt.check()?;
        let mut buffer = self.recycler.take(shape.count());
        self.pool.install(|| fill(&mut buffer));
        Ok(CpuTensor::new(shape, buffer))
    }

    /// `x` with its values changed by `change` on the pool; copies them first when they are shared.
    pub(crate) fn change(
        &self,
        mut x: CpuTensor,
        change: impl FnOnce(&mut [f32]) + Send,
    ) -> Result<CpuTensor> {
        self.interrupt.check()?;
        if x.unique_mut().is_none() {
            let mut copy: Buffer = self.recycler.take(x.values().len());
            copy.copy_from_slice(x.values());
            x = CpuTensor::new(x.shape(), copy);
        }
        if let Some(values) = x.unique_mut() {
            self.pool.install(|| change(values));
        }
        Ok(x)
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

pub(crate) fn epilogue(act: Activation) -> Epilogue {
    match act {
        Activation::None => Epilogue::None,
        Activation::GeluTanh => Epilogue::GeluTanh,
        Activation::Silu => Epilogue::Silu,
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
        self.produce(x.shape(), |out| {
            kernel(self.isa, x.values(), width, eps, None, Some(modulate), out);
        })
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
        self.produce(shape, |out| out.copy_from_slice(values))
    }

    fn matrix(&self, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Result<CpuMatrix> {
        CpuMatrix::new(self, weight, bias)
    }

    fn add_low_rank(
        &self,
        matrix: &mut CpuMatrix,
        down: &WeightView<'_>,
        up: &WeightView<'_>,
        scale: f32,
    ) -> Result<()> {
        matrix.add_branch(self, down, up, scale)
    }

    fn conv(&self, kernel: &WeightView<'_>, bias: Option<&[f32]>) -> Result<CpuConv> {
        CpuConv::new(self, kernel, bias)
    }
}

impl Backend for CpuBackend {
    type Index = Vec<u32>;

    fn interrupt_by(&self, stop: &Arc<AtomicBool>) {
        self.interrupt.watch(stop);
    }

    fn download(&self, x: &CpuTensor) -> Result<Vec<f32>> {
        Ok(x.values().to_vec())
    }

    fn upload_index(&self, index: &[u32]) -> Result<Vec<u32>> {
        Ok(index.to_vec())
    }

    fn upload_rgb8(
        &self,
        frames: usize,
        height: usize,
        width: usize,
        rgb: &[u8],
    ) -> Result<CpuTensor> {
        let shape = Shape::from([frames, height, width, 3]);
        check_same(
            "upload_rgb8",
            Shape::from([shape.count()]),
            Shape::from([rgb.len()]),
        )?;
        self.produce(shape, |out| {
            glue::for_rows(out, width * 3, |row, out| {
                for (out, &v) in out.iter_mut().zip(&rgb[row * width * 3..]) {
                    *out = 2.0 * (f32::from(v) / 255.0) - 1.0;
                }
            });
        })
    }

    fn download_rgb8(&self, x: &CpuTensor, rgb: &mut Vec<u8>) -> Result<()> {
        let before = rgb.len();
        rgb.resize(before + x.values().len(), 0);
        self.pool.install(|| {
            rgb[before..]
                .par_chunks_mut(1 << 14)
                .zip(x.values().par_chunks(1 << 14))
                .for_each(|(rgb, x)| {
                    for (rgb, &v) in rgb.iter_mut().zip(x) {
                        *rgb = ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
                    }
                });
        });
        Ok(())
    }

    fn linear(&self, x: &CpuTensor, w: &CpuMatrix, act: Activation) -> Result<CpuTensor> {
        w.apply(self, x, act)
    }

    fn rms_norm(&self, x: &CpuTensor, weight: &CpuTensor, eps: f32) -> Result<CpuTensor> {
        check_vector("rms_norm", x.shape(), weight.shape())?;
        let width = x.shape().last();
        self.produce(x.shape(), |out| {
            let weight = Some(weight.values());
            kernels::rms_norm(self.isa, x.values(), width, eps, weight, None, out);
        })
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
            if !width.is_multiple_of(2) || tables.iter().any(|&n| n != x.values().len() / 2) {
                let rule = "an angle for each pair of channels";
                return Err(Error::mismatch(op, x.shape(), rope.cos.shape(), rule));
            }
        }
        self.produce(x.shape(), |out| {
            let weight = Some(weight.values());
            kernels::rms_norm(self.isa, x.values(), width, eps, weight, None, out);
            if let Some(rope) = rope {
                glue::rotate(out, width, rope.cos.values(), rope.sin.values());
            }
        })
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
        if heads == 0 || !width.is_multiple_of(heads) {
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
        self.produce(q.shape(), |out| {
            let (q, k, v) = (q.values(), k.values(), v.values());
            kernels::attention(self.isa, shape, q, k, v, scale, bias, out);
        })
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
            return self.change(x, |x| glue::update(x, y.values(), |x, y| x + y));
        };
        check_tokens(op, x.shape(), gate.table.shape(), gate.index)?;
        let gates = table_row(op, gate.table, gate.row)?;
        let width = x.shape().last();
        self.change(x, |x| {
            glue::for_rows(x, width, |row, x| {
                let gate = &gates[gate.index[row] as usize * width..][..width];
                let y = &y.values()[row * width..][..width];
                for ((x, &y), &gate) in x.iter_mut().zip(y).zip(gate) {
                    *x += y * gate;
                }
            });
        })
    }

    fn silu(&self, x: &CpuTensor) -> Result<CpuTensor> {
        self.produce(x.shape(), |out| {
            out.copy_from_slice(x.values());
            kernels::math::silu(self.isa, out);
        })
    }

    fn multiply(&self, x: &CpuTensor, y: &CpuTensor) -> Result<CpuTensor> {
        check_same("multiply", x.shape(), y.shape())?;
        self.produce(x.shape(), |out| {
            glue::zip(x.values(), y.values(), out, |x, y| x * y)
        })
    }

    fn add_table(&self, x: &CpuTensor, y: &CpuTensor) -> Result<CpuTensor> {
        let (sets, table) = (x.shape().rows(), y.shape());
        let &[rows, width] = table.dims() else {
            return Err(Error::operand("add_table", table, "[R, D] is needed"));
        };
        let given = x.shape().last();
        if given != rows * width && given != width {
            let rule = "D or R D values a set";
            return Err(Error::mismatch("add_table", x.shape(), table, rule));
        }
        self.produce(Shape::from([sets, rows, width]), |out| {
            let sets = x.values().chunks(given.max(1));
            for (out, x) in out.chunks_mut((rows * width).max(1)).zip(sets) {
                for ((out, &x), &y) in out.iter_mut().zip(x.iter().cycle()).zip(y.values()) {
                    *out = x + y;
                }
            }
        })
    }

    fn weighted_sum(&self, x: &CpuTensor, a: f32, y: &CpuTensor, b: f32) -> Result<CpuTensor> {
        check_same("weighted_sum", x.shape(), y.shape())?;
        self.produce(x.shape(), |out| {
            glue::zip(x.values(), y.values(), out, |x, y| a * x + b * y);
        })
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
        self.change(x, |x| {
            glue::for_rows(x, width, |row, x| {
                let factor = factors[index[row] as usize];
                let y = &y.values()[row * width..][..width];
                x.iter_mut().zip(y).for_each(|(x, &y)| *x += factor * y);
            });
        })
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
        self.produce(x.shape(), |out| {
            glue::for_rows(out, width, |row, out| {
                let x = &x.values()[row * width..][..width];
                let affine = scale.values().iter().zip(shift.values());
                for ((out, &x), (&scale, &shift)) in out.iter_mut().zip(x).zip(affine) {
                    *out = x * scale + shift;
                }
            });
        })
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
        self.produce(x.shape().with_last(count), |out| {
            glue::for_rows(out, count, |row, out| {
                out.copy_from_slice(&x.values()[row * width..][..count]);
            });
        })
    }
}
