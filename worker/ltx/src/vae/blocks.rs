//! Blocks that encoder and decoder share.

use super::stream::Line;
use crate::band::Band;
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

/// The frames that a residual block keeps for the next part.
pub(super) struct ResnetLines<T> {
    conv1: Line<T>,
    conv2: Line<T>,
    skip: Line<T>,
}

impl<T> Default for ResnetLines<T> {
    fn default() -> Self {
        Self {
            conv1: Line::default(),
            conv2: Line::default(),
            skip: Line::default(),
        }
    }
}

impl<B: Backend> ResnetBlock<B> {
    /// Shifts and scales of both norms, `[4, C]`, when the block is conditioned.
    fn table(&self, b: &Band<'_, B>, temb: Option<&B::Tensor>) -> Op<Option<B::Tensor>> {
        let (Some(table), Some(temb)) = (&self.scale_shift_table, temb) else {
            return Ok(None);
        };
        let sum = b.add_table(temb, table)?; // [1, 4, C]
        b.reshape(&sum, table.shape()).map(Some)
    }

    /// Norm, modulation by rows `row` and `row + 1` of the table, SiLU.
    fn normed(
        b: &Band<'_, B>,
        x: &B::Tensor,
        table: Option<&B::Tensor>,
        row: usize,
    ) -> Op<B::Tensor> {
        let modulation = table.map(|table| ChannelModulation {
            table,
            shift: row,
            scale: row + 1,
        });
        b.pixel_norm_silu(x, NORM_EPS, modulation.as_ref())
    }

    /// `temb` is `[1, 4 C]` when the block is conditioned.
    pub fn forward(
        &self,
        b: &Band<'_, B>,
        x: B::Tensor,
        temb: Option<&B::Tensor>,
    ) -> Op<B::Tensor> {
        let table = self.table(b, temb)?;
        let h = Self::normed(b, &x, table.as_ref(), 0)?;
        let h = b.conv3d(&h, &self.conv1, self.padding)?;
        let h = Self::normed(b, &h, table.as_ref(), 2)?;
        b.conv3d_add(&h, &self.conv2, self.padding, x)
    }

    /// The same for a part of the frames; what it gives lags behind by two frames until the end.
    pub fn push(
        &self,
        b: &Band<'_, B>,
        lines: &mut ResnetLines<B::Tensor>,
        x: B::Tensor,
        ends: bool,
        temb: Option<&B::Tensor>,
    ) -> Op<Option<B::Tensor>> {
        let table = self.table(b, temb)?;
        let h = Self::normed(b, &x, table.as_ref(), 0)?;
        lines.skip.push(b, x)?;
        let conv1 = &mut lines.conv1;
        let Some(h) = conv1.convolve(b, &self.conv1, h, ends, None)? else {
            return Ok(None);
        };
        let h = Self::normed(b, &h, table.as_ref(), 2)?;
        let (conv2, skip) = (&mut lines.conv2, &mut lines.skip);
        conv2.convolve(b, &self.conv2, h, ends, Some(skip))
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
