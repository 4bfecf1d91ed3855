//! Blocks that encoder and decoder share.

use crate::error::Result;
use crate::weights::Weights;
use longtake_tensor::{Backend, ChannelModulation, Loader, Shape, Tensor, TimePadding};

pub(super) type Op<T> = longtake_tensor::Result<T>;

/// Epsilon of the norms over channels.
pub(super) const NORM_EPS: f32 = 1e-8;

/// Padding of a causal or a symmetric part.
pub(super) fn padding(causal: bool) -> TimePadding {
    if causal {
        TimePadding::Causal
    } else {
        TimePadding::Symmetric
    }
}

/// `LTXVideoResnetBlock3d` of equal widths: norm, SiLU, convolution, twice; plus its input.
pub(super) struct ResnetBlock<B: Loader> {
    conv1: B::Conv,
    conv2: B::Conv,
    /// `[4, C]`: shift, scale of the first norm, then of the second; with timestep conditioning.
    scale_shift_table: Option<B::Tensor>,
    padding: TimePadding,
}

impl<B: Loader> ResnetBlock<B> {
    pub fn load(
        b: &B,
        w: &Weights,
        name: &str,
        channels: usize,
        causal: bool,
        timestep: bool,
    ) -> Result<Self> {
        let conv = |i| w.conv(b, &format!("{name}.conv{i}.conv"), channels, channels, 3);
        let table = format!("{name}.scale_shift_table");
        let table = timestep.then(|| w.tensor(b, &table, &[4, channels]));
        Ok(Self {
            conv1: conv(1)?,
            conv2: conv(2)?,
            scale_shift_table: table.transpose()?,
            padding: padding(causal),
        })
    }
}

impl<B: Backend> ResnetBlock<B> {
    /// `temb` is `[1, 4 C]` when the block is conditioned.
    pub fn forward(&self, b: &B, x: B::Tensor, temb: Option<&B::Tensor>) -> Op<B::Tensor> {
        let table = match (&self.scale_shift_table, temb) {
            (Some(table), Some(temb)) => {
                let sum = b.add_table(temb, table)?; // [1, 4, C]
                Some(b.reshape(&sum, table.shape())?)
            }
            _ => None,
        };
        let modulation = |shift, scale| {
            table.as_ref().map(|table| ChannelModulation {
                table,
                shift,
                scale,
            })
        };
        let h = b.pixel_norm_silu(&x, NORM_EPS, modulation(0, 1).as_ref())?;
        let h = b.conv3d(&h, &self.conv1, self.padding)?;
        let h = b.pixel_norm_silu(&h, NORM_EPS, modulation(2, 3).as_ref())?;
        b.conv3d_add(&h, &self.conv2, self.padding, x)
    }
}

/// Loads `count` residual blocks `name.resnets.i`.
pub(super) fn load_resnets<B: Loader>(
    b: &B,
    w: &Weights,
    name: &str,
    count: usize,
    channels: usize,
    causal: bool,
    timestep: bool,
) -> Result<Vec<ResnetBlock<B>>> {
    (0..count)
        .map(|i| {
            let name = format!("{name}.resnets.{i}");
            ResnetBlock::load(b, w, &name, channels, causal, timestep)
        })
        .collect()
}

/// A vector of `values` on the backend.
pub(super) fn vector<B: Loader>(b: &B, values: &[f32]) -> Op<B::Tensor> {
    b.upload(Shape::from([values.len()]), values)
}
