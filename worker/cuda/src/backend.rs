//! [`Backend`] on a CUDA device.

use crate::attention::SdpaPlan;
use crate::check::{check_index, check_same, check_table, check_vector};
use crate::device::Device;
use crate::dnn::{ConvShape, Dnn, Plan, SdpaForm, SdpaShape};
use crate::error::{CudaError, InOp, Result};
use crate::matmul::Matmuls;
use crate::options::{CudaOptions, values_max};
use crate::small::With;
use crate::tensor::{CudaIndex, CudaMatrix, CudaTensor, Element, Norm, Pending, TableRow};
use longtake_tensor::{
    Activation, AttentionBias, Backend, Error, Gate, Interrupt, Modulation, Recording, Rope,
    RopeAxes, Shape, Tensor,
};
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

type Op<T> = longtake_tensor::Result<T>;

/// Plans of cuDNN's, made at their first use; `None` where it has no engine.
#[derive(Default)]
pub(crate) struct Plans {
    pub sdpa: HashMap<(SdpaShape, u32, SdpaForm), Option<SdpaPlan>>,
    pub conv: HashMap<ConvShape, Plan>,
}

struct Inner {
    // Plans before the library that they belong to, and both before the device.
    plans: Mutex<Plans>,
    dnn: Mutex<Dnn>,
    matmuls: Mutex<Matmuls>,
    device: Device,
    options: CudaOptions,
    interrupt: Interrupt,
}

// SAFETY: plans are used under their lock, by one thread at a time.
unsafe impl Sync for Plans {}
// SAFETY: cuDNN's plans are not bound to a thread.
unsafe impl Send for Plans {}

/// A CUDA device as a backend; clones share it. All work goes to one stream, in order.
#[derive(Clone)]
pub struct CudaBackend {
    inner: Arc<Inner>,
}

impl CudaBackend {
    /// Opens a device.
    pub fn open(options: CudaOptions) -> Result<Self> {
        crate::libs::guarded(|| Self::open_unguarded(options))
    }

    fn open_unguarded(mut options: CudaOptions) -> Result<Self> {
        let device = Device::open(options.ordinal, options.memory_limit)?;
        device.bind()?;
        // cuBLASLt takes a scale a row on compute capability 9.0 alone.
        options.rows_scaled &= device.arch.0 == 90;
        if !options.rows_scaled {
            tracing::info!(
                device = device.card.name,
                "8-bit weights are expanded to bf16 for each product on this device"
            );
        }
        let stream = device.stream.cu_stream();
        Ok(Self {
            inner: Arc::new(Inner {
                plans: Mutex::default(),
                dnn: Mutex::new(Dnn::open(stream)?),
                matmuls: Mutex::new(Matmuls::open()?),
                device,
                options,
                interrupt: Interrupt::default(),
            }),
        })
    }

    /// Fails once nobody wants the result any more.
    pub(crate) fn check_wanted(&self) -> Op<()> {
        self.inner.interrupt.check()
    }

    pub(crate) fn device(&self) -> &Device {
        &self.inner.device
    }

    pub(crate) fn plans(&self) -> MutexGuard<'_, Plans> {
        self.inner.plans.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn dnn<T>(&self, f: impl FnOnce(&Dnn) -> Result<T>) -> Result<T> {
        f(&self.inner.dnn.lock().unwrap_or_else(|e| e.into_inner()))
    }

    pub(crate) fn matmuls<T>(&self, f: impl FnOnce(&mut Matmuls) -> Result<T>) -> Result<T> {
        f(&mut self.inner.matmuls.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// How the device is used.
    pub fn options(&self) -> &CudaOptions {
        &self.inner.options
    }

    /// What the bits of a result depend on besides the job; see [`crate::Card::level`].
    pub fn level(&self) -> String {
        let limit = self.inner.options.memory_limit;
        self.inner.device.card.level(limit)
    }

    /// The device's name.
    pub fn device_name(&self) -> &str {
        &self.inner.device.card.name
    }

    /// Most bytes of device memory that tensors and weights ever had.
    pub fn peak_bytes(&self) -> usize {
        self.inner.device.arena.peak_bytes()
    }

    /// How often weights that were not in use were moved to host memory, and their bytes in all.
    pub fn put_away(&self) -> (usize, usize) {
        self.inner.device.arena.put_away()
    }

    /// Bytes in use on the whole device, this process' context and libraries among them.
    pub fn device_used_bytes(&self) -> Result<usize> {
        use crate::error::During;
        self.inner.device.bind()?;
        let memory = self.inner.device.context.mem_get_info();
        memory
            .map(|(free, total)| total - free)
            .during("ask for free memory")
    }

    /// Gives memory that nothing lies in back to the device.
    pub fn release_memory(&self) {
        self.inner.device.arena.trim();
    }

    /// Waits until everything is done, and learns whether it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.inner.device.synchronize()
    }

    /// Computes what is pending of `x`.
    pub fn settle(&self, x: &CudaTensor) -> Result<()> {
        self.values(x).map(drop)
    }
}

impl Backend for CudaBackend {
    type Index = CudaIndex;

    fn recorded<E: From<Error>>(
        &self,
        recording: &Recording,
        inputs: &[&CudaTensor],
        compute: impl Fn(&[CudaTensor]) -> std::result::Result<CudaTensor, E>,
    ) -> std::result::Result<CudaTensor, E> {
        if !self.options().graphs {
            let inputs: Vec<_> = inputs.iter().map(|&x| x.clone()).collect();
            return compute(&inputs);
        }
        recording.with(|memory| self.replay(memory, inputs, compute))
    }

    fn interrupt_by(&self, stop: &Arc<AtomicBool>) {
        self.inner.interrupt.watch(stop);
    }

    fn memory_notices(&self) -> Vec<String> {
        let Some(limit) = self.options().memory_limit else {
            return Vec::new();
        };
        let gib = limit as f64 / f64::from(1 << 30);
        let values = values_max(Some(limit)).unwrap_or(limit) as f64 / f64::from(1 << 20);
        let name = self.device_name();
        let mut notices = vec![format!(
            "{name}, at most {gib:.1} GiB: pictures were decoded in parts of at most {values:.0} Mi values"
        )];
        if self.put_away().0 > 0 {
            notices.push(format!(
                "{name}, at most {gib:.1} GiB: weights that were not in use waited in host memory"
            ));
        }
        notices
    }

    fn check_alive(&self) -> Op<()> {
        self.synchronize().in_op("the GPU")
    }

    fn download(&self, x: &CudaTensor) -> Op<Vec<f32>> {
        self.download_f32(x).in_op("download")
    }

    fn rope(&self, axes: &RopeAxes) -> Op<Rope<Self>> {
        self.spread_rope(axes).in_op("rope")
    }

    fn begin_rgb8(&self, x: &CudaTensor) -> Op<()> {
        self.samples(x).map(drop).in_op("begin_rgb8")
    }

    fn upload_index(&self, index: &[u32]) -> Op<CudaIndex> {
        let bytes: Vec<u8> = index.iter().flat_map(|i| i.to_le_bytes()).collect();
        let copy = || -> Result<CudaIndex> {
            let block = self.device().take(bytes.len())?;
            self.device().upload(block.address(), &bytes)?;
            Ok(CudaIndex {
                block: Arc::new(block),
                count: index.len(),
                most: index.iter().copied().max().unwrap_or(0),
            })
        };
        copy().in_op("upload_index")
    }

    fn upload_rgb8(
        &self,
        frames: usize,
        height: usize,
        width: usize,
        rgb: &[u8],
    ) -> Op<CudaTensor> {
        let shape = Shape::from([frames, height, width, 3]);
        let op = "upload_rgb8";
        check_same(op, Shape::from([shape.count()]), Shape::from([rgb.len()]))?;
        self.pictures_in(shape, rgb).in_op(op)
    }

    fn download_rgb8(&self, x: &CudaTensor, rgb: &mut Vec<u8>) -> Op<()> {
        self.pictures_out(x, rgb).in_op("download_rgb8")
    }

    fn linear(&self, x: &CudaTensor, w: &CudaMatrix, act: Activation) -> Op<CudaTensor> {
        self.check_wanted()?;
        if x.shape().last() != w.k {
            let rule = "as many channels as the matrix has columns";
            return Err(Error::mismatch(
                "linear",
                x.shape(),
                Shape::from([w.n, w.k]),
                rule,
            ));
        }
        self.multiply_by(x, w, act).in_op("linear")
    }

    fn rms_norm(&self, x: &CudaTensor, weight: &CudaTensor, eps: f32) -> Op<CudaTensor> {
        check_vector("rms_norm", x.shape(), weight.shape())?;
        let (x, weight) = (x.clone(), weight.clone());
        Ok(CudaTensor::pending(
            x.shape(),
            Pending::Weighted { x, weight, eps },
        ))
    }

    fn rms_norm_modulate(
        &self,
        x: &CudaTensor,
        eps: f32,
        m: &Modulation<'_, Self>,
    ) -> Op<CudaTensor> {
        modulated("rms_norm_modulate", Norm::Rms, x, eps, m)
    }

    fn layer_norm_modulate(
        &self,
        x: &CudaTensor,
        eps: f32,
        m: &Modulation<'_, Self>,
    ) -> Op<CudaTensor> {
        modulated("layer_norm_modulate", Norm::Layer, x, eps, m)
    }

    fn qk_norm_rope(
        &self,
        x: CudaTensor,
        weight: &CudaTensor,
        eps: f32,
        rope: Option<&Rope<Self>>,
    ) -> Op<CudaTensor> {
        let op = "qk_norm_rope";
        let shape = x.shape();
        check_vector(op, shape, weight.shape())?;
        if !shape.last().is_multiple_of(8) {
            return Err(Error::operand(op, shape, "channels must divide by 8"));
        }
        if let Some(rope) = rope {
            let tables = [rope.cos.shape().count(), rope.sin.shape().count()];
            if tables.iter().any(|&n| n != shape.count() / 2) {
                let rule = "an angle for each pair of channels";
                return Err(Error::mismatch(op, shape, rope.cos.shape(), rule));
            }
        }
        let weight = weight.clone();
        let rope = rope.map(|r| (r.cos.clone(), r.sin.clone()));
        Ok(CudaTensor::pending(
            shape,
            Pending::Rotated {
                x,
                weight,
                eps,
                rope,
            },
        ))
    }

    fn attention(
        &self,
        q: &CudaTensor,
        k: &CudaTensor,
        v: &CudaTensor,
        heads: usize,
        scale: f32,
        bias: &AttentionBias<'_, Self>,
    ) -> Op<CudaTensor> {
        let op = "attention";
        check_same(op, k.shape(), v.shape())?;
        let width = q.shape().last();
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
        let count = |b: Option<&CudaTensor>| b.map(|b| b.shape().count());
        if count(bias.keys).is_some_and(|n| n != lk)
            || count(bias.positions).is_some_and(|n| n != heads * lq * lk)
        {
            return Err(Error::mismatch(
                op,
                q.shape(),
                k.shape(),
                "a bias for each score",
            ));
        }
        self.attend(q, k, v, heads, scale, bias).in_op(op)
    }

    fn gated_residual(
        &self,
        x: CudaTensor,
        y: &CudaTensor,
        gate: Option<&Gate<'_, Self>>,
    ) -> Op<CudaTensor> {
        let op = "gated_residual";
        check_same(op, x.shape(), y.shape())?;
        let gate = gate
            .map(|g| {
                check_table(op, x.shape(), g.table, g.index, g.row)?;
                Ok(TableRow {
                    table: g.table.clone(),
                    index: Arc::clone(&g.index.block),
                    row: g.row,
                })
            })
            .transpose()?;
        let (shape, y) = (x.shape(), y.clone());
        Ok(CudaTensor::pending(shape, Pending::Residual { x, y, gate }))
    }

    fn silu(&self, x: &CudaTensor) -> Op<CudaTensor> {
        self.new_f32(1, x.shape(), x, None, &With::default())
            .in_op("silu")
    }

    fn multiply(&self, x: &CudaTensor, y: &CudaTensor) -> Op<CudaTensor> {
        let op = "multiply";
        check_same(op, x.shape(), y.shape())?;
        let go = || -> Result<CudaTensor> {
            let (a, b) = (self.values(x)?, self.values(y)?);
            let out = self.device().take(x.shape().count() * 2)?;
            let count = x.shape().count();
            self.elementwise(
                2,
                Some(&a),
                Some(&b),
                &out,
                Element::Bf16,
                count,
                &With::default(),
            )?;
            Ok(CudaTensor::ready(x.shape(), out, Element::Bf16))
        };
        go().in_op(op)
    }

    fn add_table(&self, x: &CudaTensor, y: &CudaTensor) -> Op<CudaTensor> {
        let (op, sets, table) = ("add_table", x.shape().rows(), y.shape());
        let &[rows, width] = table.dims() else {
            return Err(Error::operand(op, table, "[R, D] is needed"));
        };
        let given = x.shape().last();
        if given != rows * width && given != width {
            return Err(Error::mismatch(
                op,
                x.shape(),
                table,
                "D or R D values a set",
            ));
        }
        let with = With {
            width: given,
            stride: rows * width,
            ..With::default()
        };
        self.new_f32(6, Shape::from([sets, rows, width]), x, Some(y), &with)
            .in_op(op)
    }

    fn weighted_sum(&self, x: &CudaTensor, a: f32, y: &CudaTensor, b: f32) -> Op<CudaTensor> {
        let op = "weighted_sum";
        check_same(op, x.shape(), y.shape())?;
        let with = With {
            a,
            b,
            ..With::default()
        };
        self.new_f32(3, x.shape(), x, Some(y), &with).in_op(op)
    }

    fn add_scaled_tokens(
        &self,
        x: CudaTensor,
        y: &CudaTensor,
        factors: &[f32],
        index: &CudaIndex,
    ) -> Op<CudaTensor> {
        let op = "add_scaled_tokens";
        check_same(op, x.shape(), y.shape())?;
        check_index(op, x.shape(), factors.len(), index)?;
        let go = || -> Result<CudaTensor> {
            let factors = self.upload_f32(factors)?;
            let with = With {
                z: factors.address(),
                index: index.block.address(),
                width: x.shape().last(),
                ..With::default()
            };
            self.new_f32(5, x.shape(), &x, Some(y), &with)
        };
        go().in_op(op)
    }

    fn channel_affine(
        &self,
        x: &CudaTensor,
        scale: &CudaTensor,
        shift: &CudaTensor,
    ) -> Op<CudaTensor> {
        let op = "channel_affine";
        check_vector(op, x.shape(), scale.shape())?;
        check_vector(op, x.shape(), shift.shape())?;
        let go = || -> Result<CudaTensor> {
            let shift = self.f32(shift)?;
            let with = With {
                z: shift.block.address(),
                width: x.shape().last(),
                ..With::default()
            };
            self.new_f32(4, x.shape(), x, Some(scale), &with)
        };
        go().in_op(op)
    }

    fn reshape(&self, x: &CudaTensor, shape: Shape) -> Op<CudaTensor> {
        if shape.count() != x.shape().count() {
            return Err(Error::mismatch(
                "reshape",
                x.shape(),
                shape,
                "as many elements",
            ));
        }
        Ok(x.seen_as(shape))
    }

    fn first_channels(&self, x: &CudaTensor, count: usize) -> Op<CudaTensor> {
        let op = "first_channels";
        let stride = x.shape().last();
        if count > stride {
            return Err(Error::operand(op, x.shape(), "too few channels"));
        }
        let with = With {
            width: count,
            stride,
            ..With::default()
        };
        self.new_f32(7, x.shape().with_last(count), x, None, &with)
            .in_op(op)
    }
}

fn modulated(
    op: &'static str,
    norm: Norm,
    x: &CudaTensor,
    eps: f32,
    m: &Modulation<'_, CudaBackend>,
) -> Op<CudaTensor> {
    check_table(op, x.shape(), m.table, m.index, m.shift.max(m.scale))?;
    let shift = TableRow {
        table: m.table.clone(),
        index: Arc::clone(&m.index.block),
        row: m.shift,
    };
    let note = Pending::Modulated {
        x: x.clone(),
        norm,
        eps,
        shift,
        scale_row: m.scale,
    };
    Ok(CudaTensor::pending(x.shape(), note))
}

/// What an operation of this crate cannot do on this device.
pub(crate) fn unsupported<T>(message: String) -> Result<T> {
    Err(CudaError::Unsupported(message))
}
