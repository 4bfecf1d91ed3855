//! The LTX-Video model: configuration, weights, tokenizer, T5, transformer, VAE, schedule, pipeline.
//!
//! Reads like the reference (names of the checkpoint: `attn1`, `attn2`, `ff`, `scale_shift_table`)
//! over the operations of [`longtake_tensor::Backend`]. Names no backend, opens no socket, knows
//! no job: prompts and latents in, latents and pictures out. Start with [`Model`].

pub mod config;
pub mod embeddings;
pub mod error;
pub mod guidance;
mod hash;
pub mod model;
pub mod pipeline;
pub mod rng;
pub mod schedule;
pub mod t5;
pub mod tokenizer;
pub mod transformer;
pub mod types;
pub mod vae;
pub mod weights;

pub use error::{Error, Result};
pub use hash::model_hash;
pub use model::{Model, check_model};
pub use types::{DecodeRequest, DenoiseRequest, Latents, Prompt, Steps, Video};
