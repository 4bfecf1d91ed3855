//! Norm over groups of channels.

use crate::backend::{CudaBackend, unsupported};
use crate::device::Arg;
use crate::error::Result;
use crate::kernels::group_norm_spec;
use crate::tensor::{CudaTensor, Element};
use longtake_tensor::{GroupNorm, Tensor};

impl CudaBackend {
    /// `silu(group_norm(x) + skip)`; shapes are checked.
    pub(crate) fn group_normed(
        &self,
        x: &CudaTensor,
        norm: &GroupNorm<'_, Self>,
        skip: Option<&CudaTensor>,
    ) -> Result<CudaTensor> {
        let shape = x.shape();
        let c = shape.last();
        if !c.is_multiple_of(8) {
            return unsupported(format!(
                "a norm over {c} channels: a multiple of 8 is needed"
            ));
        }
        let sets = if norm.by_frame { shape.dims()[0] } else { 1 };
        let cells = shape.rows() / sets;
        let device = self.device();
        let values = self.bf16(x)?;
        let skip = skip.map(|s| self.bf16(s)).transpose()?;
        let (weight, bias) = (self.f32(norm.weight)?, self.f32(norm.bias)?);
        let stats = device.take(sets * norm.groups * 8)?;
        let out = device.take(shape.count() * 2)?;
        let args = [
            Arg::U64(values.block.address()),
            Arg::U64(stats.address()),
            Arg::U64(cells as u64),
            Arg::I32(c as i32),
            Arg::I32(norm.groups as i32),
            Arg::F32(norm.eps),
        ];
        let function = device.function(&group_norm_spec(), "group_stats")?;
        // SAFETY: `values` has sets * cells * c values, `stats` two a group and set; arguments as in
        // `group_norm.cu`.
        unsafe {
            let grid = [norm.groups as u32, sets as u32];
            device.launch(function, grid, 512, 0, &args)
        }?;
        let vecs = shape.count() / 8;
        let args = [
            Arg::U64(values.block.address()),
            Arg::U64(skip.as_ref().map_or(0, |b| b.block.address())),
            Arg::U64(stats.address()),
            Arg::U64(weight.block.address()),
            Arg::U64(bias.block.address()),
            Arg::U64(out.address()),
            Arg::U64(vecs as u64),
            Arg::U64(cells as u64),
            Arg::I32(c as i32),
            Arg::I32(norm.groups as i32),
        ];
        let function = device.function(&group_norm_spec(), "group_apply")?;
        // SAFETY: as above; `skip`, weight and bias were checked to fit `x`.
        unsafe { device.launch(function, [vecs.div_ceil(256) as u32, 1], 256, 0, &args) }?;
        Ok(CudaTensor::ready(shape, out, Element::Bf16))
    }
}
