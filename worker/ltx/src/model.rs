//! The whole model.

use crate::error::{Error, Result};
use crate::types::{DecodeRequest, DenoiseRequest, Latents, Prompt, Video};
use longtake_tensor::Backend;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::path::Path;

/// A loaded model on a backend.
pub struct Model<B: Backend> {
    backend: PhantomData<B>,
}

fn unfinished<T>() -> Result<T> {
    Err(Error::Request {
        what: "model",
        message: "being built".into(),
    })
}

impl<B: Backend> Model<B> {
    /// Loads a Diffusers folder: checks configuration and weights, prepares them for the backend.
    pub fn load(_dir: &Path, _backend: B) -> Result<Self> {
        unfinished()
    }

    /// Encodes a prompt, padded or cut to `text_tokens`.
    pub fn encode_prompt(&self, _text: &str, _text_tokens: usize) -> Result<Prompt> {
        unfinished()
    }

    /// Denoises a window. `progress` is called with (steps done, steps) after each step and may
    /// stop the run, which then fails with [`Error::Cancelled`].
    pub fn denoise(
        &self,
        _request: &DenoiseRequest<'_>,
        _progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Latents> {
        unfinished()
    }

    /// Decodes a window: 8 (F - 1) + 1 pictures.
    pub fn decode(&self, _latents: &Latents, _request: &DecodeRequest) -> Result<Video> {
        unfinished()
    }

    /// The last `tail_frames` (8k + 1) pictures of a window, decoded from its last k + 1 latents
    /// and at most four before them.
    pub fn decode_tail(
        &self,
        _latents: &Latents,
        _request: &DecodeRequest,
        _tail_frames: usize,
    ) -> Result<Video> {
        unfinished()
    }

    /// Encodes 8k + 1 pictures, sides multiples of 32, to k + 1 normalised latents: the mode of
    /// the encoder's distribution.
    pub fn encode(&self, _video: &Video) -> Result<Latents> {
        unfinished()
    }
}

/// BLAKE3 over the files of a model folder that determine what it renders.
pub fn model_hash(_dir: &Path) -> Result<blake3::Hash> {
    unfinished()
}
