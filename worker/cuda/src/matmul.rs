//! Linear layers through cuBLASLt: bf16, or E4M3 with one scale a row of both operands.
//!
//! `Y[M, N] = X[M, K] W[N, K]^T + b`, row-major, is to cuBLASLt the column-major
//! `D (N x M) = A^T B` with `A = W (K x N)` and `B = X (K x M)`: the only form that FP8 takes.

use crate::error::{CudaError, Result};
use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;
use std::collections::HashMap;
use sys::cublasLtMatmulDescAttributes_t as Attribute;

/// What determines the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatmulShape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub fp8: bool,
    pub bias: bool,
    /// Whether the epilogue applies GELU (tanh form).
    pub gelu: bool,
    /// Whether the result is added to what is there.
    pub adds: bool,
}

/// Addresses of the operands; scales (f32 by row) and bias (bf16) are 0 where there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub x: u64,
    pub x_scale: u64,
    pub w: u64,
    pub w_scale: u64,
    pub bias: u64,
    pub y: u64,
}

/// Scratch memory of one product; what cuBLAS recommends for Hopper.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;

struct Prepared {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: created by `prepare`, destroyed once.
        unsafe {
            let _ = lt::destroy_matrix_layout(self.a);
            let _ = lt::destroy_matrix_layout(self.b);
            let _ = lt::destroy_matrix_layout(self.d);
            let _ = lt::destroy_matmul_desc(self.desc);
        }
    }
}

/// cuBLASLt and the products it has prepared.
pub(crate) struct Matmuls {
    handle: sys::cublasLtHandle_t,
    /// `None` where the library has no algorithm.
    prepared: HashMap<MatmulShape, Option<Prepared>>,
}

// SAFETY: handle and descriptors are used under one lock.
unsafe impl Send for Matmuls {}

fn named<T>(outcome: std::result::Result<T, CublasError>, call: &str) -> Result<T> {
    outcome.map_err(|source| CudaError::Matmul {
        call: call.to_owned(),
        source,
    })
}

fn set<T>(desc: sys::cublasLtMatmulDesc_t, name: Attribute, value: T) -> Result<()> {
    // SAFETY: `desc` is valid and `value` is of the size that is stated; callers give each
    // attribute the type that cuBLASLt documents.
    let outcome = unsafe {
        let from = (&raw const value).cast();
        lt::set_matmul_desc_attribute(desc, name, from, size_of::<T>())
    };
    named(outcome, &format!("set {name:?}"))
}

impl Matmuls {
    pub fn open() -> Result<Self> {
        Ok(Self {
            handle: named(lt::create_handle(), "open")?,
            prepared: HashMap::new(),
        })
    }

    /// Runs a product on `stream`.
    ///
    /// # Safety
    /// The addresses must be those of operands of these sizes, 16-byte aligned, and `workspace` must
    /// have [`WORKSPACE_BYTES`].
    pub unsafe fn run(
        &mut self,
        shape: MatmulShape,
        at: &Operands,
        workspace: u64,
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<()> {
        self.takes(shape)?;
        let Some(Some(p)) = self.prepared.get(&shape) else {
            return Err(CudaError::Matmul {
                call: format!("choose an algorithm for {shape:?}"),
                source: CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED),
            });
        };
        if shape.fp8 {
            set(
                p.desc,
                Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                at.w_scale,
            )?;
            set(
                p.desc,
                Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                at.x_scale,
            )?;
        }
        if shape.bias {
            set(
                p.desc,
                Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                at.bias,
            )?;
        }
        let (one, kept) = (1f32, if shape.adds { 1f32 } else { 0f32 });
        // SAFETY: the descriptors are valid, the caller vouches for the addresses; the two factors
        // are read before the call returns.
        let outcome = unsafe {
            lt::matmul(
                self.handle,
                p.desc,
                (&raw const one).cast(),
                (&raw const kept).cast(),
                at.w as *const _,
                p.a,
                at.x as *const _,
                p.b,
                at.y as *const _,
                p.d,
                at.y as *mut _,
                p.d,
                &p.algorithm,
                workspace as *mut _,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        };
        named(outcome, &format!("multiply {shape:?}"))
    }

    /// Whether the library has an algorithm for a product; finds it out and remembers.
    pub fn takes(&mut self, shape: MatmulShape) -> Result<bool> {
        if let Some(known) = self.prepared.get(&shape) {
            return Ok(known.is_some());
        }
        let prepared = self.prepare(shape)?;
        if prepared.is_none() {
            tracing::debug!(?shape, "cuBLASLt has no algorithm for this product");
        }
        let takes = prepared.is_some();
        self.prepared.insert(shape, prepared);
        Ok(takes)
    }

    fn prepare(&self, s: MatmulShape) -> Result<Option<Prepared>> {
        use sys::cudaDataType_t as DataType;
        let operand = if s.fp8 {
            DataType::CUDA_R_8F_E4M3
        } else {
            DataType::CUDA_R_16BF
        };
        let bf16 = DataType::CUDA_R_16BF;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let [m, n, k] = [s.m, s.n, s.k].map(|v| v as u64);
        let layout = |of, rows, columns| {
            named(
                lt::create_matrix_layout(of, rows, columns, rows as i64),
                "describe a matrix",
            )
        };
        let mut p = Prepared {
            desc: named(
                lt::create_matmul_desc(compute, DataType::CUDA_R_32F),
                "describe a product",
            )?,
            a: layout(operand, k, n)?,
            b: layout(operand, k, m)?,
            d: layout(bf16, n, m)?,
            // SAFETY: plain data that the heuristic overwrites.
            algorithm: unsafe { std::mem::zeroed() },
        };
        set(p.desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 1i32)?;
        set(p.desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, 0i32)?;
        if s.fp8 {
            use sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as ROWS;
            set(
                p.desc,
                Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
                ROWS as i32,
            )?;
            set(
                p.desc,
                Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
                ROWS as i32,
            )?;
            set(p.desc, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1i8)?;
            // The heuristic wants to see that there are scales; the addresses come with each run.
            set(
                p.desc,
                Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                256u64,
            )?;
            set(
                p.desc,
                Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                256u64,
            )?;
        }
        use sys::cublasLtEpilogue_t as Epilogue;
        let epilogue = match (s.bias, s.gelu) {
            (false, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (true, false) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (false, true) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (true, true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
        };
        set(
            p.desc,
            Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
            epilogue as u32,
        )?;
        if s.bias {
            set(p.desc, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, 256u64)?;
            set(
                p.desc,
                Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                bf16 as u32,
            )?;
        }
        let Some(algorithm) = self.choose(&p, s)? else {
            return Ok(None);
        };
        p.algorithm = algorithm;
        Ok(Some(p))
    }

    /// The heuristic's first choice, if it has one.
    fn choose(&self, p: &Prepared, s: MatmulShape) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        let preference = named(lt::create_matmul_pref(), "create a preference")?;
        let limit = WORKSPACE_BYTES;
        // SAFETY: everything is valid; one result is asked for and there is room for it.
        let (outcome, found, count) = unsafe {
            use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let set = lt::set_matmul_pref_attribute(
                preference,
                CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const limit).cast(),
                size_of::<usize>(),
            );
            let mut found: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let mut count = 0;
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                p.desc,
                p.a,
                p.b,
                p.d,
                p.d,
                preference,
                1,
                &mut found,
                &mut count,
            );
            let _ = lt::destroy_matmul_pref(preference);
            (set.and(status.result()), found, count)
        };
        let unsupported = CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
        if outcome == Err(unsupported) {
            return Ok(None);
        }
        named(outcome, &format!("choose an algorithm for {s:?}"))?;
        let success = sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        Ok((count > 0 && found.state == success).then_some(found.algo))
    }
}

impl Drop for Matmuls {
    fn drop(&mut self) {
        self.prepared.clear();
        // SAFETY: opened by `open`, closed once.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}
