//! The video autoencoder: `AutoencoderKLLTXVideo` of diffusers
//! (`models/autoencoders/autoencoder_kl_ltx.py`), block layout of LTX-Video 0.9.5 and later.
//!
//! Activations are `[F, H, W, C]`.

mod blocks;
pub mod decoder;
pub mod encoder;
mod stream;

pub use decoder::Decoder;
pub use encoder::Encoder;
