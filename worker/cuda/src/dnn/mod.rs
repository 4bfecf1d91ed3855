//! cuDNN through its graph API: attention and convolutions.
//!
//! A graph of operations is described, an engine is chosen by cuDNN's heuristic (never by timing, so
//! that every run takes the same), and the resulting plan runs on addresses.

pub(crate) mod conv;
mod descriptor;
mod plan;
pub(crate) mod sdpa;

pub use conv::ConvShape;
pub use plan::{Plan, Target};
pub use sdpa::{SdpaForm, SdpaShape};

pub(crate) use plan::{Binding, Dnn};
