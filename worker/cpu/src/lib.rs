//! The CPU backend: readable `f32`, fast enough to be the embedded default.
//!
//! [`CpuBackend`] implements [`longtake_tensor::Backend`] on a thread pool of its own. The heavy
//! operations are in [`kernels`]; what only moves memory is in `glue`. Knows no model.

mod backend;
mod check;
pub mod gang;
mod glue;
pub mod kernels;
mod tensor;
mod vae;
mod weights;

pub use backend::{CpuBackend, CpuBackendError};
pub use kernels::{Isa, IsaError};
pub use tensor::CpuTensor;
pub use weights::{CpuConv, CpuMatrix};
