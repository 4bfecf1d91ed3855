//! Self-attention in 8 bits through cuDNN, whose result is in 8 bits too on Hopper: the next product
//! takes it as it is.

use crate::arena::Block;
use crate::backend::CudaBackend;
use crate::device::Arg;
use crate::dnn::sdpa::{
    AMAX_O, AMAX_S, DESCALE_K, DESCALE_Q, DESCALE_S, DESCALE_V, K, O, Q, SCALE, SCALE_O, SCALE_S, V,
};
use crate::dnn::{Binding, SdpaForm, SdpaShape};
use crate::error::Result;
use crate::kernels::{Crowd, qk_spec, row_threads, tensor_scale_spec};
use crate::tensor::{CudaTensor, Pending, Quantised};
use crate::timing::Work;
use longtake_tensor::Tensor;
use std::sync::Arc;

/// Bytes between two factors in memory.
const FACTOR_BYTES: usize = 16;
/// Factors, and the two largest magnitudes that cuDNN writes.
const FACTORS: [i64; 8] = [
    DESCALE_Q, DESCALE_K, DESCALE_V, SCALE_S, DESCALE_S, SCALE_O, AMAX_S, AMAX_O,
];
/// Largest value of E4M3.
const E4M3_MAX: f32 = 448.0;

/// A note of norm and rotation: what it works on, weight, epsilon, angles.
type Turn = (CudaTensor, CudaTensor, f32, (CudaTensor, CudaTensor));

fn turn(x: &CudaTensor) -> Option<Turn> {
    match &x.node.lock().pending {
        Some(Pending::Rotated {
            x,
            weight,
            eps,
            rope: Some(rope),
        }) => Some((x.clone(), weight.clone(), *eps, rope.clone())),
        _ => None,
    }
}

/// A power of two that no value of a normed row times `weight` leaves the range of E4M3 with: after the
/// norm a row's length is the root of its channels, and neither rotation nor transform changes it.
fn factor(weight: &CudaTensor) -> Option<f32> {
    let most = weight
        .node
        .host
        .as_ref()?
        .iter()
        .fold(0f32, |most, w| most.max(w.abs()));
    let bound = most * (weight.shape().count() as f32).sqrt();
    // Without its mantissa: the power of two below.
    let below = |x: f32| f32::from_bits(x.to_bits() & 0x7f80_0000);
    (bound > 0.0 && bound.is_finite()).then(|| below(E4M3_MAX / bound))
}

impl CudaBackend {
    /// Attention of queries and keys that still wait for their norm and rotation, in 8 bits; `None`
    /// where that cannot be had.
    pub(crate) fn attend8(
        &self,
        [q, k, v]: [&CudaTensor; 3],
        shape: SdpaShape,
        scale: f32,
    ) -> Result<Option<CudaTensor>> {
        let d = shape.heads * shape.head_dim;
        let threads = row_threads(d) as usize;
        let fits = shape.head_dim.is_power_of_two()
            && (8..=256).contains(&shape.head_dim)
            && d.is_multiple_of(8 * threads)
            && shape.lq == shape.lk
            && self.options().rows_scaled;
        let (Some(q_turn), Some(k_turn)) = (turn(q), turn(k)) else {
            return Ok(None);
        };
        let alike = Arc::ptr_eq(&q_turn.3.0.node, &k_turn.3.0.node) && q_turn.2 == k_turn.2;
        let (Some(q_by), Some(k_by)) = (factor(&q_turn.1), factor(&k_turn.1)) else {
            return Ok(None);
        };
        if !fits || !alike || !self.plan_sdpa(shape, scale, SdpaForm::Fp8)? {
            return Ok(None);
        }
        let by = q_by.min(k_by);
        let [q8, k8] = self.rotate8(&q_turn, &k_turn, shape.head_dim, by)?;
        let (v8, scales, factors) = self.values8(v, by)?;
        let o8 = self.device().take(shape.lq * d)?;
        self.run_sdpa(shape, scale, SdpaForm::Fp8, |scale| {
            let bind = |id, address| Binding { id, address };
            let mut bindings = vec![
                bind(Q, q8.address()),
                bind(K, k8.address()),
                bind(V, v8.address()),
                bind(O, o8.address()),
                bind(SCALE, scale),
            ];
            for (i, id) in FACTORS.into_iter().enumerate() {
                bindings.push(bind(id, factors.address() + (i * FACTOR_BYTES) as u64));
            }
            bindings
        })?;
        let SdpaShape { lq, lk, .. } = shape;
        let label = || {
            let label = format!("attention {lq} x {lk}, fp8");
            (label, Work::Flops(shape.flops()))
        };
        self.device().watch.saw(self.device(), label)?;
        let quantised = Quantised { values: o8, scales };
        Ok(Some(CudaTensor::in_8_bits(q.shape(), quantised)))
    }

    /// Queries and keys, normed, rotated and transformed, times `by`.
    fn rotate8(&self, q: &Turn, k: &Turn, head_dim: usize, by: f32) -> Result<[Block; 2]> {
        let device = self.device();
        let shape = q.0.shape();
        let (rows, d) = (shape.rows(), shape.last());
        let (q_at, k_at) = (self.bf16(&q.0)?, self.bf16(&k.0)?);
        let (q_weight, k_weight) = (self.f32(&q.1)?, self.f32(&k.1)?);
        let rope = self.packed_rope(&q.3.0, &q.3.1)?;
        let out = [device.take(rows * d)?, device.take(rows * d)?];
        let function = device
            .function(&qk_spec(d, 2, true, Some(head_dim)), "")?
            .moving(rows * d * 8);
        let args = [
            Arg::U64(q_at.block.address()),
            Arg::U64(k_at.block.address()),
            Arg::U64(q_weight.block.address()),
            Arg::U64(k_weight.block.address()),
            Arg::U64(rope.address()),
            Arg::F32(q.2),
            Arg::I32(rows as i32),
            Arg::U64(out[0].address()),
            Arg::U64(out[1].address()),
            Arg::F32(by),
        ];
        // SAFETY: all have rows * d values, weights d, the rotation rows * d / 2 pairs; the arguments
        // are those of `qk.cu`, in order.
        unsafe {
            device.launch(
                function,
                self.row_grid(rows, d, Crowd::of_qk(2, true)),
                row_threads(d),
                0,
                &args,
            )
        }?;
        Ok(out)
    }

    /// Values in 8 bits, the scale of the result's rows, and the factors that cuDNN takes.
    fn values8(&self, v: &CudaTensor, by: f32) -> Result<(Block, Block, Block)> {
        let device = self.device();
        let (rows, count) = (v.shape().rows(), v.shape().count());
        let wide = self.bf16(v)?;
        let factors = device.take(FACTORS.len() * FACTOR_BYTES)?;
        let (most, out) = (device.take(4)?, device.take(count)?);
        let scales = device.take(rows * 4)?;
        let vecs = count / 8;
        device.zero(&most)?;
        let function = device
            .function(&tensor_scale_spec(), "largest")?
            .moving(count * 2);
        let args = [
            Arg::U64(wide.block.address()),
            Arg::U64(most.address()),
            Arg::I32(vecs as i32),
        ];
        let grid = (device.card.multiprocessors * 8).min(vecs.div_ceil(256) as u32);
        // SAFETY: `wide` has 8 * vecs values, `most` one; arguments as in `tensor_scale.cu`.
        unsafe { device.launch(function, [grid, 1], 256, 0, &args) }?;
        let function = device
            .function(&tensor_scale_spec(), "quantise")?
            .moving(count * 3);
        let args = [
            Arg::U64(wide.block.address()),
            Arg::U64(most.address()),
            Arg::U64(out.address()),
            Arg::U64(scales.address()),
            Arg::U64(factors.address()),
            Arg::F32(1.0 / by),
            Arg::F32(1.0 / by),
            Arg::I32(vecs as i32),
            Arg::I32(rows as i32),
        ];
        let grid = [vecs.div_ceil(256) as u32, 1];
        // SAFETY: `wide` and `out` have 8 * vecs values, `scales` one a row, of which there are fewer
        // than threads, `factors` six at every fourth; arguments as in `tensor_scale.cu`.
        unsafe { device.launch(function, grid, 256, 0, &args) }?;
        Ok((out, scales, factors))
    }
}
