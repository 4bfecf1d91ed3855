//! How a device is used.

/// In how many bits the layers compute that repeat from block to block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// E4M3 with a scale a row of both operands where the file has 8 bits, bf16 elsewhere.
    AsStored,
    /// E4M3 with a scale a row of both operands, whatever the file has.
    Fp8,
    /// bf16.
    Bf16,
}

/// In how many bits self-attention multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBits {
    /// bf16.
    Bf16,
    /// E4M3, where cuDNN has an engine for it.
    Fp8,
}

/// Most values of an activation that pictures are decoded at once with, below a memory limit: a part
/// takes some 30 bytes a value, and is to leave three quarters of the memory to the weights.
pub(crate) fn values_max(memory_limit: Option<usize>) -> Option<usize> {
    memory_limit.map(|bytes| bytes / 128)
}

/// How a device is used.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Which device.
    pub ordinal: usize,
    /// Bits of the repeating layers.
    pub precision: Precision,
    /// Whether products take E4M3 with a scale a row; if not, such weights stay in 8 bits and are
    /// expanded to bf16 for each product. Switched off where the device cannot.
    pub rows_scaled: bool,
    /// Bits of self-attention.
    pub attention: AttentionBits,
    /// Most bytes of device memory to take, if there is a limit.
    pub memory_limit: Option<usize>,
    /// Whether steps are recorded as graphs.
    pub graphs: bool,
    /// Whether the transformer's stream is kept in f32 (else bf16, as the reference does).
    pub stream_f32: bool,
    /// Most scratch memory for one cuDNN plan.
    pub dnn_workspace_bytes: usize,
}

impl Default for CudaOptions {
    fn default() -> Self {
        let is = |name: &str, value: &str| std::env::var_os(name).is_some_and(|v| v == value);
        let off = |name: &str| is(name, "0");
        Self {
            ordinal: 0,
            precision: match is("LONGTAKE_CUDA_BITS", "fp8") {
                true => Precision::Fp8,
                false => Precision::AsStored,
            },
            rows_scaled: !off("LONGTAKE_CUDA_FP8"),
            attention: match is("LONGTAKE_CUDA_ATTENTION", "fp8") {
                true => AttentionBits::Fp8,
                false => AttentionBits::Bf16,
            },
            memory_limit: None,
            graphs: !off("LONGTAKE_CUDA_GRAPHS"),
            stream_f32: false,
            dnn_workspace_bytes: 1 << 30,
        }
    }
}
