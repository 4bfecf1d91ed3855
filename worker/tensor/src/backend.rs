//! The operations of the model, cut where a GPU wants them fused.
//!
//! Letters: `L` tokens, `D` channels of a token, `T` distinct timesteps, `F`/`H`/`W` frames, rows,
//! columns, `C` channels of a VAE activation. Activations are dense and row-major: tokens
//! `[L, D]`, VAE activations channels-last `[F, H, W, C]`; the tokens of a window are its latent
//! cells in that order, so `[F, H, W, C]` and `[L, C]` hold the same bytes.
//!
//! Tokens may differ in timestep, yet few distinct timesteps exist (the current one, and 0 for
//! what is held): modulation tables have a row set for each distinct timestep, and an index says
//! which one a token uses.

use crate::dtype::WeightView;
use crate::error::{Error, Result};
use crate::over_host;
use crate::part::Part;
use crate::shape::Shape;
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

/// An activation on the device.
pub trait Tensor: Clone + Send + Sync {
    /// Its sizes.
    fn shape(&self) -> Shape;
}

/// What a linear layer does to its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// Which frames a convolution sees beyond the first and the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePadding {
    /// `kt - 1` copies of the first frame in front: no frame sees a later one.
    Causal,
    /// `(kt - 1) / 2` copies of the first and of the last frame.
    Symmetric,
    /// `(kt - 1) / 2` black frames, all zeros, at either end.
    Zeros,
    /// As `Symmetric`, for a part of the frames: copies only where the whole begins or ends, so that
    /// fewer frames come out than go in elsewhere.
    Part {
        /// Whether the first frame is the whole's.
        begins: bool,
        /// Whether the last frame is the whole's.
        ends: bool,
    },
}

impl TimePadding {
    /// Frames that are added in front and behind for a kernel of `kt` frames.
    pub fn frames(self, kt: usize) -> [usize; 2] {
        let half = (kt - 1) / 2;
        match self {
            Self::Causal => [kt - 1, 0],
            Self::Symmetric | Self::Zeros => [half, half],
            Self::Part { begins, ends } => [half * usize::from(begins), half * usize::from(ends)],
        }
    }

    /// Frames that come out of `frames`; `None` where they are too few for the kernel.
    pub fn frames_out(self, frames: usize, kt: usize) -> Option<usize> {
        let [front, back] = self.frames(kt);
        (frames + front + back + 1)
            .checked_sub(kt)
            .filter(|&out| out > 0)
    }
}

/// Shift and scale that a token picks by its timestep: `y * (1 + scale) + shift`.
pub struct Modulation<'a, B: Backend> {
    /// `[T, R, D]`: R rows of values for each distinct timestep.
    pub table: &'a B::Tensor,
    /// For each token, its place in the first axis of `table`.
    pub index: &'a B::Index,
    /// Row of the shift.
    pub shift: usize,
    /// Row of the scale.
    pub scale: usize,
}

/// Factor on a residual branch that a token picks by its timestep.
pub struct Gate<'a, B: Backend> {
    /// `[T, R, D]`.
    pub table: &'a B::Tensor,
    /// For each token, its place in the first axis of `table`.
    pub index: &'a B::Index,
    /// Row of the gate.
    pub row: usize,
}

/// Rotation angles of adjacent channel pairs, `[L, D / 2]` each.
pub struct Rope<B: Loader> {
    /// Cosines.
    pub cos: B::Tensor,
    /// Sines.
    pub sin: B::Tensor,
}

/// Rotations by the place of a token on three axes: frames, rows, columns. Channel pairs are, in this
/// order, `identity` that are not turned, then frequency by frequency one for each axis.
#[derive(Clone, Debug)]
pub struct RopeAxes {
    /// Pairs that are not turned.
    pub identity: usize,
    /// Frequencies of each axis.
    pub frequencies: usize,
    /// By axis, `[places, frequencies, 2]`: cosine and sine.
    pub tables: [Vec<f32>; 3],
    /// For each frame, 1 or more: a token stands for so many rows and columns.
    pub strides: Vec<usize>,
}

impl RopeAxes {
    /// Places on each axis.
    pub fn places(&self) -> [usize; 3] {
        let row = (2 * self.frequencies).max(1);
        [0, 1, 2].map(|axis| self.tables[axis].len() / row)
    }

    /// Tokens: of each frame every row and column that its stride comes to.
    pub fn tokens(&self) -> usize {
        let [_, height, width] = self.places();
        let cells = |stride: &usize| height.div_ceil(*stride) * width.div_ceil(*stride);
        self.strides.iter().map(cells).sum()
    }

    /// Channel pairs.
    pub fn pairs(&self) -> usize {
        self.identity + 3 * self.frequencies
    }

    /// Cosines and sines of all tokens, `[tokens, pairs]` each.
    pub fn spread(&self) -> [Vec<f32>; 2] {
        let count = self.tokens() * self.pairs();
        let [mut cos, mut sin] = [Vec::with_capacity(count), Vec::with_capacity(count)];
        let [frames, rows, columns] = self
            .tables
            .each_ref()
            .map(|table| table.chunks_exact((2 * self.frequencies).max(1)));
        for (frame, &stride) in frames.zip(&self.strides) {
            for row in rows.clone().step_by(stride) {
                for column in columns.clone().step_by(stride) {
                    cos.extend(std::iter::repeat_n(1.0, self.identity));
                    sin.extend(std::iter::repeat_n(0.0, self.identity));
                    for k in 0..self.frequencies {
                        for axis in [frame, row, column] {
                            cos.push(axis[2 * k]);
                            sin.push(axis[2 * k + 1]);
                        }
                    }
                }
            }
        }
        [cos, sin]
    }
}

/// What is added to attention scores before the softmax.
pub struct AttentionBias<'a, B: Loader> {
    /// By key, `[Lk]`.
    pub keys: Option<&'a B::Tensor>,
    /// By head, query and key, `[heads, Lq, Lk]`.
    pub positions: Option<&'a B::Tensor>,
}

impl<B: Loader> AttentionBias<'_, B> {
    /// Adds nothing.
    pub const NONE: Self = Self {
        keys: None,
        positions: None,
    };
}

/// Shift and scale by channel, the same for all cells.
pub struct ChannelModulation<'a, B: Loader> {
    /// `[R, C]`.
    pub table: &'a B::Tensor,
    /// Row of the shift.
    pub shift: usize,
    /// Row of the scale.
    pub scale: usize,
}

/// What a backend remembers of a computation that runs again and again with other inputs, such as
/// a graph of its launches. Empty at first; drop it before what the computation reads besides its
/// inputs.
#[derive(Default)]
pub struct Recording {
    memory: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Recording {
    /// Calls `f` with what the backend remembers.
    pub fn with<T>(&self, f: impl FnOnce(&mut Option<Box<dyn Any + Send>>) -> T) -> T {
        f(&mut self.memory.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// A norm over groups of neighbouring channels, with an affine part by channel.
pub struct GroupNorm<'a, B: Loader> {
    /// Groups; the channels divide by it.
    pub groups: usize,
    /// Added to the variance, which is taken without Bessel's correction.
    pub eps: f32,
    /// `[C]`.
    pub weight: &'a B::Tensor,
    /// `[C]`.
    pub bias: &'a B::Tensor,
    /// Whether each frame has mean and variance of its own; else all frames share them.
    pub by_frame: bool,
}

/// Where weights go when a model is loaded.
pub trait Loader {
    /// An activation.
    type Tensor: Tensor;
    /// A prepared linear layer.
    type Matrix: Send + Sync;
    /// A prepared 3-D convolution.
    type Conv: Send + Sync;

    /// Copies `values` to the device.
    fn upload(&self, shape: Shape, values: &[f32]) -> Result<Self::Tensor>;
    /// Prepares a linear layer with weight `[N, K]` and bias `[N]`.
    fn matrix(&self, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Result<Self::Matrix>;
    /// The same for one of the layers that repeat from block to block and take nearly all of the
    /// memory and time: backends that compute in 8 bits may do so here.
    fn block_matrix(&self, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Result<Self::Matrix> {
        self.matrix(weight, bias)
    }
    /// Adds `scale up (down x)` to what a linear layer `[N, K]` computes, before its activation:
    /// `down` is `[R, K]`, `up` `[N, R]`. Several branches add up.
    ///
    /// # Errors
    /// When the shapes do not go together.
    fn add_low_rank(
        &self,
        matrix: &mut Self::Matrix,
        down: &WeightView<'_>,
        up: &WeightView<'_>,
        scale: f32,
    ) -> Result<()>;
    /// Prepares a convolution with kernel `[N, C, kt, kh, kw]`, odd sizes, stride 1, and bias `[N]`.
    fn conv(&self, kernel: &WeightView<'_>, bias: Option<&[f32]>) -> Result<Self::Conv>;
    /// What `load` loads, as a part of a model that need not be on the device while it is not in use.
    fn part<T, E: From<Error>>(
        &self,
        load: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<Part<T>, E> {
        load().map(Part::fixed)
    }
}

/// The operations of the VAE, on activations `[F, H, W, C]`. What holds for [`Backend`] holds here.
pub trait VaeOps: Loader + Sized {
    /// Most values of an activation that pictures are decoded at once with, where memory is short.
    fn values_max(&self) -> Option<usize> {
        None
    }
    /// Convolution, zero-padded in space, padded in time as `padding` says; keeps H and W, and F
    /// except for parts.
    fn conv3d(
        &self,
        x: &Self::Tensor,
        conv: &Self::Conv,
        padding: TimePadding,
    ) -> Result<Self::Tensor>;
    /// Adds the skip of a residual block to a convolution's result; consumes `x`.
    fn conv3d_add(
        &self,
        x: &Self::Tensor,
        conv: &Self::Conv,
        padding: TimePadding,
        skip: Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// `silu(modulate(x / sqrt(mean_c(x^2) + eps)))`.
    fn pixel_norm_silu(
        &self,
        x: &Self::Tensor,
        eps: f32,
        modulation: Option<&ChannelModulation<'_, Self>>,
    ) -> Result<Self::Tensor>;
    /// `silu(group_norm(x) + skip)`.
    fn group_norm_silu(
        &self,
        x: &Self::Tensor,
        norm: &GroupNorm<'_, Self>,
        skip: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;
    /// Frames `range` of `x`.
    fn frames(&self, x: &Self::Tensor, range: Range<usize>) -> Result<Self::Tensor>;
    /// The frames of `x` behind those of `before`.
    fn join_frames(&self, before: &Self::Tensor, x: &Self::Tensor) -> Result<Self::Tensor>;
    /// `n` copies of the first frame in front of `x`.
    fn repeat_first_frame(&self, x: &Self::Tensor, n: usize) -> Result<Self::Tensor>;
    /// Channels `(c, st, sh, sw)` of `x` spread over `stride` = `[st, sh, sw]`, without the first
    /// `st - 1` frames where `x` `begins` the whole; plus `skip`, spread the same way and repeated over
    /// channels, if given.
    fn depth_to_space_add(
        &self,
        x: &Self::Tensor,
        skip: Option<&Self::Tensor>,
        stride: [usize; 3],
        begins: bool,
    ) -> Result<Self::Tensor>;
    /// Cells of `x` gathered to channels `(c, st, sh, sw)`, plus `skip` gathered the same way and
    /// averaged over groups of neighbouring channels.
    fn space_to_depth_add(
        &self,
        x: &Self::Tensor,
        skip: &Self::Tensor,
        stride: [usize; 3],
    ) -> Result<Self::Tensor>;
    /// `[F, H, W, C]` to `[F, H/p, W/p, C p p]`, channels `(c, column, row)`.
    fn patchify(&self, x: &Self::Tensor, patch: usize) -> Result<Self::Tensor>;
    /// The inverse of [`Backend::patchify`].
    fn unpatchify(&self, x: &Self::Tensor, patch: usize) -> Result<Self::Tensor>;
}

/// A device that runs the model.
///
/// Operations check their operands and return an error that names the operation and the shapes.
/// They are deterministic: equal operands give equal bits, whatever the number of threads.
pub trait Backend: VaeOps + Clone + Send + Sync + Sized {
    /// Small integers, one a token.
    type Index: Send + Sync;

    /// Runs `compute` on `inputs`. `recording` belongs to this computation alone: one with the same
    /// shapes that reads, besides its inputs, nothing that changes. It must not move data from or
    /// to the host.
    fn recorded<E: From<Error>>(
        &self,
        _recording: &Recording,
        inputs: &[&Self::Tensor],
        compute: impl Fn(&[Self::Tensor]) -> std::result::Result<Self::Tensor, E>,
    ) -> std::result::Result<Self::Tensor, E> {
        let inputs: Vec<_> = inputs.iter().map(|&x| x.clone()).collect();
        compute(&inputs)
    }

    /// Has operations fail with [`crate::Error::Interrupted`] from when `stop` is raised until another
    /// flag is named. A backend that cannot stop in the middle of anything ignores it.
    fn interrupt_by(&self, stop: &Arc<AtomicBool>) {
        let _ = stop;
    }

    /// What a user should know of how the device's memory sufficed.
    fn memory_notices(&self) -> Vec<String> {
        Vec::new()
    }

    /// Fails when the device itself has failed, so that nothing will work on it any more. Asked after an
    /// operation has failed; waits until everything is done.
    fn check_alive(&self) -> Result<()> {
        Ok(())
    }

    // ---- moving data

    /// Copies a tensor back.
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>>;
    /// The rotations of all tokens on the device, as [`RopeAxes::spread`] gives them.
    fn rope(&self, axes: &RopeAxes) -> Result<Rope<Self>> {
        let shape = Shape::from([axes.tokens(), axes.pairs()]);
        let [cos, sin] = axes.spread();
        Ok(Rope {
            cos: self.upload(shape, &cos)?,
            sin: self.upload(shape, &sin)?,
        })
    }
    /// Starts what [`Backend::download_rgb8`] has to wait for. A device that has a queue then copies
    /// while it works on what comes after.
    fn begin_rgb8(&self, x: &Self::Tensor) -> Result<()> {
        let _ = x;
        Ok(())
    }
    /// Copies token indices to the device.
    fn upload_index(&self, index: &[u32]) -> Result<Self::Index>;
    /// 8-bit pictures `[F, H, W, 3]` as values in -1..1: `v / 255 * 2 - 1`.
    fn upload_rgb8(
        &self,
        frames: usize,
        height: usize,
        width: usize,
        rgb: &[u8],
    ) -> Result<Self::Tensor>;
    /// Appends values around -1..1 `[F, H, W, 3]` as 8-bit samples to `rgb`: `round(clamp(x / 2 + 0.5) *
    /// 255)`, ties to even.
    fn download_rgb8(&self, x: &Self::Tensor, rgb: &mut Vec<u8>) -> Result<()>;

    // ---- tokens

    /// `act(x w^T + b)`, `[.., K]` to `[.., N]`.
    fn linear(&self, x: &Self::Tensor, w: &Self::Matrix, act: Activation) -> Result<Self::Tensor>;
    /// `x / sqrt(mean(x^2) + eps) * weight` over the last axis.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Tensor, eps: f32) -> Result<Self::Tensor>;
    /// RMS norm without weight, then modulation. `[L, D]`.
    fn rms_norm_modulate(
        &self,
        x: &Self::Tensor,
        eps: f32,
        modulation: &Modulation<'_, Self>,
    ) -> Result<Self::Tensor>;
    /// Layer norm without affine part, then modulation. `[L, D]`.
    fn layer_norm_modulate(
        &self,
        x: &Self::Tensor,
        eps: f32,
        modulation: &Modulation<'_, Self>,
    ) -> Result<Self::Tensor>;
    /// RMS norm over all heads together times `weight`, then rotation of adjacent channel pairs:
    /// `(a, b)` to `(a cos - b sin, b cos + a sin)`. `[L, D]`; consumes its input.
    fn qk_norm_rope(
        &self,
        x: Self::Tensor,
        weight: &Self::Tensor,
        eps: f32,
        rope: Option<&Rope<Self>>,
    ) -> Result<Self::Tensor>;
    /// `softmax(scale q k^T + bias) v` by head. `[Lq, D]`, `[Lk, D]`, `[Lk, D]` to `[Lq, D]`.
    fn attention(
        &self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        heads: usize,
        scale: f32,
        bias: &AttentionBias<'_, Self>,
    ) -> Result<Self::Tensor>;
    /// `x + y`, or `x + gate y`. Consumes the stream that it adds to.
    fn gated_residual(
        &self,
        x: Self::Tensor,
        y: &Self::Tensor,
        gate: Option<&Gate<'_, Self>>,
    ) -> Result<Self::Tensor>;
    /// `silu(x)`.
    fn silu(&self, x: &Self::Tensor) -> Result<Self::Tensor>;
    /// `x y`, element by element.
    fn multiply(&self, x: &Self::Tensor, y: &Self::Tensor) -> Result<Self::Tensor>;
    /// `x + y` where `y` `[R, D]` repeats over the first axis of `x`: `[T, R * D]` to `[T, R, D]`.
    /// With `x` `[T, D]`, each set of `x` repeats over the rows of `y`.
    fn add_table(&self, x: &Self::Tensor, y: &Self::Tensor) -> Result<Self::Tensor>;

    // ---- latents

    /// `a x + b y`.
    fn weighted_sum(
        &self,
        x: &Self::Tensor,
        a: f32,
        y: &Self::Tensor,
        b: f32,
    ) -> Result<Self::Tensor>;
    /// `x + factors[index] y` by token; consumes `x`. `[L, C]`.
    fn add_scaled_tokens(
        &self,
        x: Self::Tensor,
        y: &Self::Tensor,
        factors: &[f32],
        index: &Self::Index,
    ) -> Result<Self::Tensor>;
    /// `x scale + shift` by channel (last axis).
    fn channel_affine(
        &self,
        x: &Self::Tensor,
        scale: &Self::Tensor,
        shift: &Self::Tensor,
    ) -> Result<Self::Tensor>;
    /// The same values in another shape of as many elements.
    fn reshape(&self, x: &Self::Tensor, shape: Shape) -> Result<Self::Tensor>;
    /// Channels `0..count` of the last axis.
    fn first_channels(&self, x: &Self::Tensor, count: usize) -> Result<Self::Tensor>;

    // ---- a gang's share of a window

    /// Several `[L, D]`, divided by channels for the ranks: `[ranks, L, tensors, D / ranks]`.
    fn pack_heads(&self, xs: &[&Self::Tensor], ranks: usize) -> Result<Self::Tensor> {
        over_host::pack_heads(self, xs, ranks)
    }
    /// `[L, count D]` as so many `[L, D]`.
    fn unpack_heads(&self, x: &Self::Tensor, count: usize) -> Result<Vec<Self::Tensor>> {
        over_host::unpack_heads(self, x, count)
    }
    /// `[ranks, L, D]` to `[L, ranks D]`.
    fn join_heads(&self, x: &Self::Tensor) -> Result<Self::Tensor> {
        over_host::join_heads(self, x)
    }
    /// Rows `range` of `x` `[F, H, W, C]`.
    fn rows(&self, x: &Self::Tensor, range: Range<usize>) -> Result<Self::Tensor> {
        over_host::rows(self, x, range)
    }
    /// Pictures `[F, H, W, C]` of equal frames and columns, one below the other.
    fn join_rows(&self, parts: &[&Self::Tensor]) -> Result<Self::Tensor> {
        over_host::join_rows(self, parts)
    }
}
