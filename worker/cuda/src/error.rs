//! What can go wrong between this crate and the device.

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use std::path::PathBuf;

/// Result of setting the backend up.
pub type Result<T> = std::result::Result<T, CudaError>;

/// Why the device cannot be used, or failed.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// A library that the backend is built on cannot be loaded.
    #[error("{name} cannot be loaded: {hint}")]
    Library {
        /// Such as `cuDNN`.
        name: &'static str,
        /// Where to get it.
        hint: String,
    },
    /// A call into the driver failed.
    #[error("{call}: {source}")]
    Driver {
        /// What was asked for.
        call: &'static str,
        /// The driver's answer.
        source: DriverError,
    },
    /// There is no such device.
    #[error("device cuda:{ordinal} does not exist: this machine has {count}")]
    NoDevice {
        /// The one that was named.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device lacks what every kernel needs.
    #[error("{device} has compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed")]
    OldDevice {
        /// Its name.
        device: String,
        /// Major number.
        major: i32,
        /// Minor number.
        minor: i32,
    },
    /// The device has too little free memory.
    #[error("{wanted} bytes of device memory are needed and {free} are free ({hint})")]
    Memory {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes that the device has left.
        free: usize,
        /// What to do.
        hint: &'static str,
    },
    /// A kernel does not compile.
    #[error("kernel {kernel} does not compile: {log}")]
    Compile {
        /// Its name.
        kernel: String,
        /// The compiler's words.
        log: String,
    },
    /// The folder of compiled kernels cannot be used.
    #[error("kernel cache {path}: {source}")]
    Cache {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// cuBLASLt refused.
    #[error("cuBLASLt, {call}: {source:?}")]
    Matmul {
        /// What was asked for.
        call: String,
        /// Its answer.
        source: CublasError,
    },
    /// cuDNN refused.
    #[error("cuDNN, {call}: {message}")]
    Dnn {
        /// What was asked for.
        call: String,
        /// Its answer.
        message: String,
    },
    /// What was asked for is not built for this device.
    #[error("{0}")]
    Unsupported(String),
}

/// Names the call that failed.
pub(crate) trait During<T> {
    fn during(self, call: &'static str) -> Result<T>;
}

impl<T> During<T> for std::result::Result<T, DriverError> {
    fn during(self, call: &'static str) -> Result<T> {
        self.map_err(|source| CudaError::Driver { call, source })
    }
}

/// Turns a failure into an operation's error.
pub(crate) trait InOp<T> {
    fn in_op(self, op: &'static str) -> longtake_tensor::Result<T>;
}

impl<T> InOp<T> for Result<T> {
    fn in_op(self, op: &'static str) -> longtake_tensor::Result<T> {
        self.map_err(|error| longtake_tensor::Error::Device {
            op,
            message: error.to_string(),
        })
    }
}
