//! What a model and a backend agree on: shapes, stored element types, errors, the [`Backend`] trait.
//!
//! Knows no model, no file format and no device. `longtake-cpu` states in plain f32 what each
//! operation means; every other backend is checked against it, operation by operation. Start with
//! [`backend::Backend`].

pub mod backend;
pub mod dtype;
pub mod error;
pub mod shape;

pub use backend::{
    Activation, AttentionBias, Backend, ChannelModulation, Gate, Loader, Modulation, Recording,
    Rope, Tensor, TimePadding, VaeOps,
};
pub use dtype::{DType, WeightView};
pub use error::{Error, Result};
pub use shape::Shape;
