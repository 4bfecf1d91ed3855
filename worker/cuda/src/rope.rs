//! Rotations of all tokens, spread from the tables of the three axes.

use crate::backend::CudaBackend;
use crate::device::Arg;
use crate::error::Result;
use crate::tensor::{CudaTensor, Element};
use longtake_tensor::{Rope, RopeAxes, Shape};

impl CudaBackend {
    pub(crate) fn spread_rope(&self, axes: &RopeAxes) -> Result<Rope<Self>> {
        let shape = Shape::from([axes.tokens(), axes.pairs()]);
        if axes.strides.iter().any(|&stride| stride != 1) {
            // Rare, and small enough: what lies in front at a coarser grid.
            let [cos, sin] = axes.spread();
            let upload = |values: &[f32]| -> Result<CudaTensor> {
                Ok(CudaTensor::ready(
                    shape,
                    self.upload_f32(values)?,
                    Element::F32,
                ))
            };
            return Ok(Rope {
                cos: upload(&cos)?,
                sin: upload(&sin)?,
            });
        }
        let tables = self.upload_f32(&axes.tables.concat())?;
        let count = shape.count();
        let device = self.device();
        let (cos, sin) = (device.take(count * 4)?, device.take(count * 4)?);
        let [frames, height, width] = axes.places();
        let args = [
            Arg::U64(tables.address()),
            Arg::U64(cos.address()),
            Arg::U64(sin.address()),
            Arg::U64(count as u64),
            Arg::I32(axes.identity as i32),
            Arg::I32(axes.frequencies as i32),
            Arg::I32(frames as i32),
            Arg::I32(height as i32),
            Arg::I32(width as i32),
        ];
        self.layout("spread_rope", count, &args)?;
        Ok(Rope {
            cos: CudaTensor::ready(shape, cos, Element::F32),
            sin: CudaTensor::ready(shape, sin, Element::F32),
        })
    }
}
