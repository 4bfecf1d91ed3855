//! The CUDA backend: [`longtake_tensor::Backend`] on NVIDIA GPUs of compute capability 8.0 and newer.
//!
//! Linear layers run through cuBLASLt (8 bits with a scale a row on Hopper), attention and
//! convolutions through cuDNN, and everything that only moves memory in kernels of its own
//! (`kernels/*.cu`, compiled by NVRTC at their first use and kept on disk). Nothing of CUDA is needed
//! to build, and its libraries are looked up when a device is opened.
//!
//! Start with [`CudaBackend`] and `tensor`, which says why most operations leave only a note of what
//! is to be done. Knows no model.

pub mod arena;
mod attention;
mod attention8;
mod backend;
mod check;
pub mod compile;
mod convolution;
mod device;
pub mod dnn;
pub mod error;
mod evaluate;
mod group_norm;
pub mod kernels;
pub mod libs;
mod linear;
mod loader;
mod matmul;
mod memory;
mod options;
mod park;
mod record;
mod rope;
mod small;
mod tensor;
pub mod timing;
mod vae;

pub use backend::CudaBackend;
pub use device::Card;
pub use error::CudaError;
pub use options::{AttentionBits, CudaOptions, Precision};
pub use tensor::{CudaConv, CudaIndex, CudaMatrix, CudaTensor};
