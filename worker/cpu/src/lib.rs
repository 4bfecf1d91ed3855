//! The CPU backend: readable `f32` kernels, fast enough to be the embedded default.

pub mod kernels;
