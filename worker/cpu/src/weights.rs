//! Prepared layers: packed at once when they are small, packed from the mapped file each time they
//! are used when they are large. A model of 13 billion weights is thus ready at once and takes no
//! memory beside its file; packing costs one pass over a layer's weights, its product hundreds.
//! Which of the two it is does not change a bit of the result.

use crate::backend::{CpuBackend, epilogue};
use crate::check::check_vector;
use crate::kernels::{self, Epilogue, PackedConv, PackedMatrix};
use crate::tensor::CpuTensor;
use longtake_tensor::{Activation, Error, KeptWeight, Result, Shape, Tensor, WeightView};
use std::borrow::Cow;

/// Elements of the smallest layer that stays in its file.
const KEPT_COUNT_MIN: usize = 1 << 20;

/// A linear layer.
#[derive(Debug)]
pub struct CpuMatrix {
    weight: Layer<PackedMatrix>,
    n: usize,
    k: usize,
    bias: Option<Vec<f32>>,
    branches: Vec<Branch>,
}

/// A convolution.
#[derive(Debug)]
pub struct CpuConv {
    kernel: Layer<PackedConv>,
    /// `[N, C, kt, kh, kw]`.
    shape: [usize; 5],
    pub(crate) bias: Option<Vec<f32>>,
}

/// Ready for the kernels, or in its file.
#[derive(Debug)]
enum Layer<P> {
    Packed(P),
    Kept(KeptWeight),
}

/// `scale up (down x)`, added to a linear layer's result.
#[derive(Debug)]
struct Branch {
    down: PackedMatrix,
    up: PackedMatrix,
    scale: f32,
}

impl<P: Clone + Send> Layer<P> {
    fn new(b: &CpuBackend, weight: &WeightView<'_>, pack: impl Fn(&[f32]) -> P + Sync) -> Self {
        match weight.keep() {
            Some(kept) if weight.shape().count() >= KEPT_COUNT_MIN => Self::Kept(kept.clone()),
            _ => {
                let values = weight.to_f32();
                Self::Packed(b.on_pool(|| pack(&values)))
            }
        }
    }

    fn packed(&self, pack: impl Fn(&[f32]) -> P) -> Cow<'_, P> {
        match self {
            Self::Packed(packed) => Cow::Borrowed(packed),
            Self::Kept(kept) => Cow::Owned(pack(&kept.view().to_f32())),
        }
    }
}

fn matrix_shape(op: &'static str, shape: Shape) -> Result<[usize; 2]> {
    match shape.dims() {
        &[n, k] if n * k > 0 => Ok([n, k]),
        _ => Err(Error::operand(op, shape, "[N, K] is needed")),
    }
}

impl CpuMatrix {
    pub(crate) fn new(
        b: &CpuBackend,
        weight: &WeightView<'_>,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let [n, k] = matrix_shape("matrix", weight.shape())?;
        if let Some(bias) = bias {
            check_vector("matrix", Shape::from([k, n]), Shape::from([bias.len()]))?;
        }
        Ok(Self {
            weight: Layer::new(b, weight, |values| PackedMatrix::pack(values, n, k)),
            n,
            k,
            bias: bias.map(<[f32]>::to_vec),
            branches: Vec::new(),
        })
    }

    pub(crate) fn add_branch(
        &mut self,
        b: &CpuBackend,
        down: &WeightView<'_>,
        up: &WeightView<'_>,
        scale: f32,
    ) -> Result<()> {
        let op = "low-rank branch";
        let ([rank, k], [n, up_rank]) = (
            matrix_shape(op, down.shape())?,
            matrix_shape(op, up.shape())?,
        );
        if [n, k, rank] != [self.n, self.k, up_rank] {
            let rule = "down [R, K] and up [N, R] of a layer [N, K] are needed";
            return Err(Error::mismatch(op, down.shape(), up.shape(), rule));
        }
        let (down, up) = (down.to_f32(), up.to_f32());
        self.branches.push(Branch {
            down: b.on_pool(|| PackedMatrix::pack(&down, rank, k)),
            up: b.on_pool(|| PackedMatrix::pack(&up, n, rank)),
            scale,
        });
        Ok(())
    }

    pub(crate) fn apply(
        &self,
        b: &CpuBackend,
        x: &CpuTensor,
        act: Activation,
    ) -> Result<CpuTensor> {
        let (n, k, isa) = (self.n, self.k, b.isa());
        if x.shape().last() != k {
            let rule = "as many channels as the matrix has columns";
            return Err(Error::mismatch(
                "linear",
                x.shape(),
                Shape::from([n, k]),
                rule,
            ));
        }
        b.produce(x.shape().with_last(n), |out| {
            let weight = self
                .weight
                .packed(|values| PackedMatrix::pack(values, n, k));
            let bias = self.bias.as_deref();
            if self.branches.is_empty() {
                return kernels::linear(isa, x.values(), &weight, bias, epilogue(act), out);
            }
            kernels::linear(isa, x.values(), &weight, bias, Epilogue::None, out);
            let rows = out.len() / n;
            let mut added = vec![0.0; out.len()];
            for branch in &self.branches {
                let mut low = vec![0.0; rows * branch.down.n()];
                kernels::linear(
                    isa,
                    x.values(),
                    &branch.down,
                    None,
                    Epilogue::None,
                    &mut low,
                );
                kernels::linear(isa, &low, &branch.up, None, Epilogue::None, &mut added);
                for (out, added) in out.iter_mut().zip(&added) {
                    *out += branch.scale * added;
                }
            }
            epilogue(act).apply(isa, out);
        })
    }
}

impl CpuConv {
    pub(crate) fn new(
        b: &CpuBackend,
        kernel: &WeightView<'_>,
        bias: Option<&[f32]>,
    ) -> Result<Self> {
        let dims = kernel.shape();
        let shape = <[usize; 5]>::try_from(dims.dims())
            .map_err(|_| Error::operand("conv", dims, "[N, C, kt, kh, kw] is needed"))?;
        let [n, c, sizes @ ..] = shape;
        if sizes.iter().any(|size| size % 2 == 0) {
            return Err(Error::operand("conv", dims, "odd kernel sizes are needed"));
        }
        if let Some(bias) = bias {
            check_vector("conv", Shape::from([c, n]), Shape::from([bias.len()]))?;
        }
        Ok(Self {
            kernel: Layer::new(b, kernel, |values| PackedConv::pack(values, n, c, sizes)),
            shape,
            bias: bias.map(<[f32]>::to_vec),
        })
    }

    /// Output and input channels.
    pub(crate) fn channels(&self) -> [usize; 2] {
        [self.shape[0], self.shape[1]]
    }

    /// The kernel as the kernels want it.
    pub(crate) fn packed(&self) -> Cow<'_, PackedConv> {
        let [n, c, sizes @ ..] = self.shape;
        self.kernel
            .packed(|values| PackedConv::pack(values, n, c, sizes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use longtake_tensor::{Backend, DType, Loader, Storage};
    use std::sync::Arc;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let step = |i: usize| (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed);
        (0..count)
            .map(|i| (step(i) >> 8) as f32 / (1 << 24) as f32 - 0.5)
            .collect()
    }

    fn kept(shape: &[usize], values: &[f32]) -> KeptWeight {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (range, storage) = (0..bytes.len(), Arc::new(bytes) as Storage);
        KeptWeight::new(Shape::new(shape), DType::F32, storage, range, None).expect("fits")
    }

    #[test]
    fn layers_in_their_file_compute_the_same_bits() {
        let b = CpuBackend::new(2, Isa::detect()).expect("backend");
        let (n, k) = (1024, 1024);
        let (w, bias, x) = (values(n * k, 1), values(n, 2), values(3 * k, 3));
        let x = b.upload(Shape::from([3, k]), &x).expect("input");
        let kept = kept(&[n, k], &w);
        let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = WeightView::new(Shape::from([n, k]), DType::F32, &bytes, None).expect("view");
        let lazy = b.matrix(&kept.view(), Some(&bias)).expect("matrix");
        let packed = b.matrix(&view, Some(&bias)).expect("matrix");
        assert!(matches!(lazy.weight, Layer::Kept(_)) && matches!(packed.weight, Layer::Packed(_)));
        let of = |matrix| b.linear(&x, matrix, Activation::GeluTanh).expect("linear");
        assert_eq!(of(&lazy).values(), of(&packed).values());
    }

    #[test]
    fn branches_are_added_before_the_activation() {
        let b = CpuBackend::new(1, Isa::detect()).expect("backend");
        let (n, k, r) = (5, 7, 2);
        let (w, down, up) = (values(n * k, 1), values(r * k, 2), values(n * r, 3));
        let x = b
            .upload(Shape::from([2, k]), &values(2 * k, 4))
            .expect("input");
        let mut side = b.matrix(&kept(&[n, k], &w).view(), None).expect("matrix");
        let (down_kept, up_kept) = (kept(&[r, k], &down), kept(&[n, r], &up));
        b.add_low_rank(&mut side, &down_kept.view(), &up_kept.view(), 0.5)
            .expect("fits");
        let mut fused = w.clone();
        for (i, value) in fused.iter_mut().enumerate() {
            let product = (0..r).map(|j| up[i / k * r + j] * down[j * k + i % k]);
            *value += 0.5 * product.sum::<f32>();
        }
        let fused = b
            .matrix(&kept(&[n, k], &fused).view(), None)
            .expect("matrix");
        let of = |matrix| b.linear(&x, matrix, Activation::Silu).expect("linear");
        for (a, b) in of(&side).values().iter().zip(of(&fused).values()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        let wrong = b.add_low_rank(&mut side, &up_kept.view(), &down_kept.view(), 1.0);
        assert!(wrong.is_err());
    }
}
