//! The numeric kernels of the CPU backend: pure functions on `f32` slices.
//!
//! # Threads
//! Every kernel runs on the rayon pool of the calling thread: wrap the calls in
//! [`rayon::ThreadPool::install`] (once around a whole forward pass, not around each call).
//! Outside of any pool rayon's global pool serves.
//!
//! # Determinism
//! For one [`Isa`] the results are the same bits on every machine and for every thread count:
//! work is divided over independent outputs only, each output is summed in one fixed order
//! (blocking constants, never cache sizes), and no function of the C library takes part.
//!
//! # Contracts
//! Slice lengths that do not fit the stated shapes, and an [`Isa`] that this processor lacks,
//! are errors of the caller and panic; check shapes from outside before they get here.

pub mod attention;
pub mod conv;
pub mod gemm;
pub mod group_norm;
pub mod isa;
pub mod math;
pub mod norm;
mod scratch;
#[cfg(test)]
mod testing;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tile_x86;

pub use attention::{AttentionBias, AttentionShape, attention};
pub use conv::{PackedConv, TemporalPadding, conv3d};
pub use gemm::{Epilogue, PackedMatrix, linear, matmul};
pub use group_norm::{GroupAffine, group_norm_silu};
pub use isa::{Isa, IsaError};
pub use norm::{Modulate, layer_norm, pixel_norm, rms_norm};
