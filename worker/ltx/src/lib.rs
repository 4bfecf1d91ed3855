//! The LTX-Video model: configuration, weights, tokenizer, T5, transformer, VAE, schedule, pipeline.
//!
//! Reads like the reference (names of the checkpoint: `attn1`, `attn2`, `ff`, `scale_shift_table`)
//! over the operations of [`longtake_tensor::Backend`]. Names no backend, opens no socket, knows
//! no job: prompts and latents in, latents and pictures out. Start with [`Model`].

mod band;
mod calls;
pub mod conditioning;
pub mod config;
mod convert;
mod denoise;
pub mod embeddings;
pub mod error;
pub mod guidance;
mod halfway;
mod hash;
mod inspect;
pub mod lora;
mod mixing;
pub mod model;
pub mod names;
pub mod noise;
pub mod pictures;
pub mod pipeline;
pub mod rng;
mod rules;
pub mod sampling;
pub mod schedule;
mod shard;
mod source;
pub mod t5;
mod tea_cache;
pub mod tokenizer;
pub mod transformer;
pub mod types;
pub mod upsampler;
pub mod vae;
pub mod weights;
mod whole;

pub use conditioning::{Encoded, Held};
pub use convert::convert;
pub use error::{Error, Result};
pub use halfway::{Halfway, Stop};
pub use hash::model_hash;
pub use inspect::{Inspection, inspect};
pub use lora::{LoraFile, LoraInfo, Loras, lora_info};
pub use model::{Model, check_model, check_ranks, check_values};
pub use noise::Drawn;
pub use pictures::Pictures;
pub use rules::Rules;
pub use sampling::{Guidance, GuidanceStep, Pass, Sampler, Steps, StgMode};
pub use source::{ModelFiles, check_files, text_encoder_beside};
pub use types::{BlockCount, DecodeRequest, DenoiseRequest, Denoised, Latents, Prompt, Video};
pub use upsampler::{LatentUpsampler, check_upscaler};
pub use whole::{check_text_encoder, check_whole};
