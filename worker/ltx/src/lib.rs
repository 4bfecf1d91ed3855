//! The LTX-Video model: configuration, weights, tokenizer, T5, transformer, VAE, schedule, pipeline.
//!
//! Reads like the reference (names of the checkpoint: `attn1`, `attn2`, `ff`, `scale_shift_table`)
//! over the operations of [`longtake_tensor::Backend`]. Names no backend, opens no socket, knows
//! no job: prompts and latents in, latents and pictures out. Start with [`Model`].

pub mod error;
pub mod model;
pub mod types;

pub use error::{Error, Result};
pub use model::{Model, model_hash};
pub use types::{DecodeRequest, DenoiseRequest, Latents, Prompt, Steps, Video};
