//! Launches of small operations: a thread an element.

use crate::arena::Block;
use crate::backend::CudaBackend;
use crate::device::Arg;
use crate::error::Result;
use crate::kernels::{elementwise_spec, layout_spec};
use crate::tensor::{Buffer, CudaTensor, Element};
use longtake_tensor::Shape;
use std::sync::Arc;

impl CudaBackend {
    /// One launch of an elementwise kernel that writes `count` values.
    pub(crate) fn elementwise(
        &self,
        op: u32,
        x: Option<&Arc<Buffer>>,
        y: Option<&Arc<Buffer>>,
        out: &Block,
        to: Element,
        count: usize,
        with: &With,
    ) -> Result<()> {
        let f32 = |b: Option<&Arc<Buffer>>| b.is_none_or(|b| b.element.is_f32());
        let spec = elementwise_spec(op, f32(x), f32(y), to.is_f32());
        let function = self.device().function(&spec, "")?;
        let args = [
            Arg::U64(x.map_or(0, |b| b.block.address())),
            Arg::U64(y.map_or(0, |b| b.block.address())),
            Arg::U64(with.z),
            Arg::U64(with.index),
            Arg::U64(out.address()),
            Arg::F32(with.a),
            Arg::F32(with.b),
            Arg::U64(count as u64),
            Arg::U64(with.width as u64),
            Arg::U64(with.stride as u64),
        ];
        // SAFETY: callers have checked the shapes; arguments as in `elementwise.cu`.
        unsafe {
            self.device()
                .launch(function, [count.div_ceil(256) as u32, 1], 256, 0, &args)
        }
    }

    /// One launch of a kernel of `layout.cu` with a thread for each of `count`.
    pub(crate) fn layout(&self, entry: &'static str, count: usize, args: &[Arg]) -> Result<()> {
        let function = self.device().function(&layout_spec(), entry)?;
        // SAFETY: callers pass what `entry` takes, for shapes that they have checked.
        unsafe {
            self.device()
                .launch(function, [count.div_ceil(256) as u32, 1], 256, 0, args)
        }
    }

    /// An f32 tensor of `shape` by elementwise operation `op`.
    pub(crate) fn new_f32(
        &self,
        op: u32,
        shape: Shape,
        x: &CudaTensor,
        y: Option<&CudaTensor>,
        with: &With,
    ) -> Result<CudaTensor> {
        let x = self.values(x)?;
        let y = y.map(|y| self.values(y)).transpose()?;
        let out = self.device().take(shape.count() * 4)?;
        self.elementwise(
            op,
            Some(&x),
            y.as_ref(),
            &out,
            Element::F32,
            shape.count(),
            with,
        )?;
        Ok(CudaTensor::ready(shape, out, Element::F32))
    }
}

/// Further arguments of an elementwise kernel.
#[derive(Default)]
pub(crate) struct With {
    pub z: u64,
    pub index: u64,
    pub a: f32,
    pub b: f32,
    pub width: usize,
    pub stride: usize,
}
