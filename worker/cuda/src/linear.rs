//! Linear layers: preparing weights, choosing the product.

use crate::arena::Block;
use crate::backend::CudaBackend;
use crate::device::Arg;
use crate::error::{CudaError, Result};
use crate::kernels::{RowKernel, layout_spec, row_threads, skinny_spec};
use crate::matmul::{MatmulShape, Operands, WORKSPACE_BYTES};
use crate::options::Precision;
use crate::tensor::{Branch, CudaMatrix, CudaTensor, Element, Pending, Weight};
use crate::timing::Work;
use half::bf16;
use longtake_tensor::{Activation, DType, Shape, Tensor, WeightView};

/// Most rows that the f32 product takes.
const SKINNY_ROWS_MAX: usize = 8;

fn activation_number(act: Activation) -> u32 {
    match act {
        Activation::None => 0,
        Activation::GeluTanh => 1,
        Activation::Silu => 2,
    }
}

impl CudaBackend {
    /// `values` as bf16 on the device.
    pub(crate) fn upload_bf16(&self, values: &[f32]) -> Result<Block> {
        let block = self.device().take(values.len() * 2)?;
        // Converted piece by piece: no second copy of a large weight.
        const PIECE: usize = 1 << 20;
        for (i, piece) in values.chunks(PIECE).enumerate() {
            let bytes: Vec<u8> = piece
                .iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect();
            self.device()
                .upload(block.address() + (i * PIECE * 2) as u64, &bytes)?;
        }
        Ok(block)
    }

    /// `values` on the device.
    pub(crate) fn upload_f32(&self, values: &[f32]) -> Result<Block> {
        let block = self.device().take(values.len() * 4)?;
        // SAFETY: any bytes of an f32 are bytes; hosts of these devices store the lowest first, as they do.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len() * 4) };
        self.device().upload(block.address(), bytes)?;
        Ok(block)
    }

    /// A linear layer; `repeats` is true for the layers that may be quantised.
    pub(crate) fn prepare_matrix(
        &self,
        view: &WeightView<'_>,
        bias: Option<&[f32]>,
        repeats: bool,
    ) -> Result<CudaMatrix> {
        let &[n, k] = view.shape().dims() else {
            return Err(CudaError::Unsupported(format!("a matrix {}", view.shape())));
        };
        let aligned = n.is_multiple_of(16) && k.is_multiple_of(16);
        let stored = view.dtype() == DType::F8E4M3;
        let fp8 = repeats
            && aligned
            && match self.options().precision {
                Precision::Fp8 => stored || self.device().has_fp8(),
                Precision::AsStored => stored,
                Precision::Bf16 => false,
            };
        let weight = match (stored, fp8) {
            (true, true) => {
                let (values, scales) = self.stored(view, n)?;
                Weight::E4m3 { values, scales }
            }
            (true, false) if k.is_multiple_of(8) => {
                let (values, scales) = self.stored(view, n)?;
                Weight::Bf16(self.expanded(&values, &scales, n, k)?)
            }
            (false, true) => self.quantised_weight(self.wide(view)?, n, k)?,
            _ => Weight::Bf16(self.wide(view)?),
        };
        let bias = bias.map(|bias| self.upload_bf16(bias)).transpose()?;
        Ok(CudaMatrix {
            n,
            k,
            weight,
            bias,
            branches: Vec::new(),
        })
    }

    /// A branch `[R, K]`, `[N, R]` beside a layer `[N, K]`.
    pub(crate) fn prepare_branch(
        &self,
        down: &WeightView<'_>,
        up: &WeightView<'_>,
        scale: f32,
    ) -> Result<Branch> {
        let (&[rank, _], &[n, _]) = (down.shape().dims(), up.shape().dims()) else {
            let shapes = (down.shape(), up.shape());
            return Err(CudaError::Unsupported(format!(
                "a branch {} and {}",
                shapes.0, shapes.1
            )));
        };
        let padded = rank.next_multiple_of(16);
        let mut wide = down.to_f32();
        wide.resize(wide.len() / rank * padded, 0.0);
        let up = up.to_f32();
        let mut scaled = vec![0.0; n * padded];
        for (to, from) in scaled.chunks_mut(padded).zip(up.chunks(rank)) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from * scale;
            }
        }
        Ok(Branch {
            rank: padded,
            down: self.upload_bf16(&wide)?,
            up: self.upload_bf16(&scaled)?,
        })
    }

    /// Adds a layer's branches to its result `y`, bf16.
    fn add_branches(&self, x: &CudaTensor, w: &CudaMatrix, y: &Block) -> Result<()> {
        if w.branches.is_empty() {
            return Ok(());
        }
        let (m, x) = (x.shape().rows(), self.bf16(x)?);
        let plain = MatmulShape {
            m,
            n: 0,
            k: w.k,
            fp8: false,
            bias: false,
            gelu: false,
            adds: false,
        };
        for branch in &w.branches {
            let n = branch.rank;
            let low = self.device().take(m * n * 2)?;
            let at = Operands {
                x: x.block.address(),
                x_scale: 0,
                w: branch.down.address(),
                w_scale: 0,
                bias: 0,
                y: low.address(),
            };
            self.product(MatmulShape { n, ..plain }, &at)?;
            let at = Operands {
                x: low.address(),
                w: branch.up.address(),
                y: y.address(),
                ..at
            };
            let added = MatmulShape {
                n: w.n,
                k: n,
                adds: true,
                ..plain
            };
            self.product(added, &at)?;
        }
        Ok(())
    }

    /// A weight in bf16.
    fn wide(&self, view: &WeightView<'_>) -> Result<Block> {
        if view.dtype() == DType::BF16 && view.scale().is_none() {
            let block = self.device().take(view.bytes().len())?;
            self.device().upload(block.address(), view.bytes())?;
            return Ok(block);
        }
        self.upload_bf16(&view.to_f32())
    }

    /// An E4M3 weight as it is stored, with a scale a row.
    fn stored(&self, view: &WeightView<'_>, n: usize) -> Result<(Block, Block)> {
        let values = self.device().take(view.bytes().len())?;
        self.device().upload(values.address(), view.bytes())?;
        let scales = match view.scale() {
            Some(rows) if rows.len() == n => self.upload_f32(rows)?,
            one => self.upload_f32(&vec![one.map_or(1.0, |s| s[0]); n])?,
        };
        Ok((values, scales))
    }

    /// An E4M3 weight `[n, k]` in bf16.
    pub(crate) fn expanded(
        &self,
        values: &Block,
        scales: &Block,
        n: usize,
        k: usize,
    ) -> Result<Block> {
        let device = self.device();
        let out = device.take(n * k * 2)?;
        let function = device
            .function(&layout_spec(), "expand_e4m3")?
            .moving(n * k * 3);
        let vecs = n * k / 8;
        let args = [
            Arg::U64(values.address()),
            Arg::U64(scales.address()),
            Arg::U64(out.address()),
            Arg::I32(vecs as i32),
            Arg::I32((k / 8) as i32),
            Arg::I32(1),
        ];
        // SAFETY: both blocks have n * k values, the scale n; arguments as in `layout.cu`.
        unsafe { device.launch(function, [vecs.div_ceil(256) as u32, 1], 256, 0, &args) }?;
        Ok(out)
    }

    /// A bf16 weight quantised row by row.
    fn quantised_weight(&self, wide: Block, n: usize, k: usize) -> Result<Weight> {
        let device = self.device();
        let (values, scales) = (device.take(n * k)?, device.take(n * 4)?);
        let kernel = RowKernel {
            d: k,
            x_f32: false,
            act: 0,
            residual: 0,
            norm: 0,
            modulation: 0,
            out: 2,
        };
        let function = device.function(&kernel.spec(), "")?;
        let nothing = Arg::U64(0);
        let args = [
            Arg::U64(wide.address()),
            nothing,
            nothing,
            Arg::U64(values.address()),
            Arg::U64(scales.address()),
            nothing,
            nothing,
            Arg::I32(0),
            Arg::I32(0),
            nothing,
            nothing,
            Arg::I32(0),
            Arg::I32(0),
            Arg::I32(0),
            Arg::F32(0.0),
            Arg::I32(n as i32),
        ];
        // SAFETY: `wide` and `values` have n rows of k values, `scales` n; arguments as in `rows.cu`,
        // of which this kernel reads no table.
        unsafe {
            device.launch(
                function,
                self.row_grid(n, k, kernel.crowd()),
                row_threads(k),
                0,
                &args,
            )
        }?;
        Ok(Weight::E4m3 { values, scales })
    }

    /// `act(x w^T + b)`.
    pub(crate) fn multiply_by(
        &self,
        x: &CudaTensor,
        w: &CudaMatrix,
        act: Activation,
    ) -> Result<CudaTensor> {
        let rows = x.shape().rows();
        let shape = x.shape().with_last(w.n);
        let branched = !w.branches.is_empty();
        if rows <= SKINNY_ROWS_MAX && w.k.is_multiple_of(8) && !branched {
            let values = self.f32(x)?;
            return self.skinny(values.block.address(), rows, w, act, shape);
        }
        let mut product = MatmulShape {
            m: rows,
            n: w.n,
            k: w.k,
            fp8: matches!(w.weight, Weight::E4m3 { .. }),
            bias: w.bias.is_some(),
            gelu: false,
            adds: false,
        };
        product.fp8 = product.fp8 && self.takes_rows_scaled(product)?;
        // In 8 bits the kernel that quantises the result for the next layer applies GELU; else the
        // product's epilogue does.
        product.gelu = act == Activation::GeluTanh && !product.fp8 && !branched;
        let y = self.device().take(rows * w.n * 2)?;
        let at = Operands {
            x: 0,
            x_scale: 0,
            w: 0,
            w_scale: 0,
            bias: w.bias.as_ref().map_or(0, Block::address),
            y: y.address(),
        };
        match &w.weight {
            Weight::E4m3 { values, scales } if product.fp8 => {
                let q = self.quantised(x)?;
                let at = Operands {
                    x: q.values.address(),
                    x_scale: q.scales.address(),
                    w: values.address(),
                    w_scale: scales.address(),
                    ..at
                };
                self.product(product, &at)?;
            }
            weight => {
                let expanded;
                let wide = match weight {
                    Weight::Bf16(values) => values,
                    Weight::E4m3 { values, scales } => {
                        expanded = self.expanded(values, scales, w.n, w.k)?;
                        &expanded
                    }
                };
                let x = self.bf16(x)?;
                let (x, w) = (x.block.address(), wide.address());
                self.product(product, &Operands { x, w, ..at })?;
            }
        }
        self.add_branches(x, w, &y)?;
        let plain = CudaTensor::ready(shape, y, Element::Bf16);
        let act = if product.gelu {
            0
        } else {
            activation_number(act)
        };
        if act == 0 {
            return Ok(plain);
        }
        Ok(CudaTensor::pending(
            shape,
            Pending::Activated { x: plain, act },
        ))
    }

    /// Whether a product of 8-bit operands with a scale a row is to be had: for odd sizes cuBLASLt has
    /// none, on other architectures than 9.0 none at all.
    fn takes_rows_scaled(&self, shape: MatmulShape) -> Result<bool> {
        if !self.options().rows_scaled {
            return Ok(false);
        }
        self.device().bind()?;
        self.matmuls(|m| m.takes(shape))
    }

    fn product(&self, shape: MatmulShape, at: &Operands) -> Result<()> {
        let workspace = self.device().take(WORKSPACE_BYTES)?;
        self.device().bind()?;
        let stream = self.device().stream.cu_stream();
        // SAFETY: the operands were made with these sizes; blocks are aligned to 256 bytes.
        self.matmuls(|m| unsafe { m.run(shape, at, workspace.address(), stream) })?;
        let label = || {
            let MatmulShape { m, n, k, fp8, .. } = shape;
            let bits = if fp8 { "fp8" } else { "bf16" };
            let flops = 2.0 * m as f64 * n as f64 * k as f64;
            (format!("linear {k} to {n}, {bits}"), Work::Flops(flops))
        };
        self.device().watch.saw(self.device(), label)
    }

    fn skinny(
        &self,
        x: u64,
        rows: usize,
        w: &CudaMatrix,
        act: Activation,
        shape: Shape,
    ) -> Result<CudaTensor> {
        let device = self.device();
        let (e4m3, values, scales) = match &w.weight {
            Weight::E4m3 { values, scales } => (true, values.address(), scales.address()),
            Weight::Bf16(values) => (false, values.address(), 0),
        };
        let out = device.take(rows * w.n * 4)?;
        let function = device.function(&skinny_spec(e4m3, activation_number(act), rows), "")?;
        let args = [
            Arg::U64(x),
            Arg::U64(values),
            Arg::U64(scales),
            Arg::U64(w.bias.as_ref().map_or(0, Block::address)),
            Arg::U64(out.address()),
            Arg::I32(w.n as i32),
            Arg::I32(w.k as i32),
        ];
        // SAFETY: `x` has rows * k values, the weight n * k, `out` rows * n; arguments as in `skinny.cu`.
        unsafe { device.launch(function, [w.n.div_ceil(4) as u32, 1], 128, 0, &args) }?;
        Ok(CudaTensor::ready(shape, out, Element::F32))
    }
}
