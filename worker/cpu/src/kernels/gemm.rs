//! Matrix products with packed weights.

use super::{isa::Isa, math};

/// A weight matrix `[n, k]` (PyTorch `Linear`: y = x W^T), packed once into column panels.
/// The layout does not depend on the instruction-set level.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    n: usize,
    k: usize,
    data: Vec<f32>,
}

impl PackedMatrix {
    /// Packs row-major `weights[n, k]`.
    pub fn pack(weights: &[f32], n: usize, k: usize) -> PackedMatrix {
        assert_eq!(weights.len(), n * k, "weights are not [{n}, {k}]");
        PackedMatrix {
            n,
            k,
            data: weights.to_vec(),
        }
    }

    /// Packs row-major `b[k, n]`, the right factor of a product `a b`.
    pub fn pack_transposed(b: &[f32], k: usize, n: usize) -> PackedMatrix {
        assert_eq!(b.len(), n * k, "matrix is not [{k}, {n}]");
        let data = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
        PackedMatrix { n, k, data }
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }
}

/// What is applied to a linear layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Epilogue {
    /// Nothing.
    #[default]
    None,
    /// GELU, tanh approximation.
    GeluTanh,
    /// x * sigmoid(x).
    Silu,
}

/// `y[m, n] = epilogue(x[m, k] W^T + bias[n])`.
pub fn linear(
    isa: Isa,
    x: &[f32],
    weights: &PackedMatrix,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    y: &mut [f32],
) {
    let (n, k) = (weights.n, weights.k);
    for (x, y) in x.chunks(k).zip(y.chunks_mut(n)) {
        for j in 0..n {
            let w = &weights.data[j * k..(j + 1) * k];
            y[j] = bias.map_or(0.0, |b| b[j]) + x.iter().zip(w).map(|(a, b)| a * b).sum::<f32>();
        }
        match epilogue {
            Epilogue::None => {}
            Epilogue::GeluTanh => math::gelu_tanh(isa, y),
            Epilogue::Silu => math::silu(isa, y),
        }
    }
}

/// `y[m, n] = a[m, k] b[k, n]`, all row-major. Packs `b` on each call.
pub fn matmul(isa: Isa, a: &[f32], b: &[f32], k: usize, n: usize, y: &mut [f32]) {
    linear(
        isa,
        a,
        &PackedMatrix::pack_transposed(b, k, n),
        None,
        Epilogue::None,
        y,
    );
}
