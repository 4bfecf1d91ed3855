//! What a model and a backend agree on: shapes, stored element types, errors, the
//! [`Backend`] trait, and the [`Collective`] of those who share a window.
//!
//! Knows no model, no file format and no device. `longtake-cpu` states in plain f32 what each
//! operation means; every other backend is checked against it, operation by operation. Start with
//! [`backend::Backend`].

pub mod backend;
pub mod collective;
pub mod dtype;
pub mod error;
pub mod interrupt;
pub mod over_host;
pub mod part;
pub mod shape;
pub mod storage;

pub use backend::{
    Activation, AttentionBias, Backend, ChannelModulation, Gate, GroupNorm, Loader, Modulation,
    Recording, Rope, RopeAxes, Tensor, TimePadding, VaeOps,
};
pub use collective::Collective;
pub use dtype::{DType, WeightView, f8e4m3_from_f32};
pub use error::{Error, Result};
pub use interrupt::Interrupt;
pub use part::{InUse, Part, Place};
pub use shape::Shape;
pub use storage::{KeptWeight, Storage};
