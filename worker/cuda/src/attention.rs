//! Attention: cuDNN's for what is large, the kernel of this crate for the rest.

use crate::backend::{CudaBackend, unsupported};
use crate::device::Arg;
use crate::dnn::sdpa::{K, O, Q, SCALE, V};
use crate::dnn::{Binding, Plan, SdpaForm, SdpaShape};
use crate::error::{CudaError, Result};
use crate::kernels::{ATTENTION_TILE, ATTENTION_WARPS, attention_spec};
use crate::options::AttentionBits;
use crate::tensor::{Buffer, CudaTensor, Element};
use crate::timing::Work;
use longtake_tensor::{AttentionBias, Tensor};
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Fewest queries and keys that a cuDNN plan is made for: smaller products take microseconds either way.
const DNN_LENGTH_MIN: usize = 512;
/// A bias below this leaves a weight of zero beside one of a bias of zero.
const MASKED: f32 = -1000.0;

/// A plan, and the factor that it reads from host memory while it runs.
pub(crate) struct SdpaPlan {
    plan: Plan,
    scale: Box<f32>,
}

/// Number of keys that count, when the others, behind them, are masked off and nothing else is added.
fn leading_keys(bias: &CudaTensor) -> Option<usize> {
    let bias = bias.node.host.as_ref()?;
    let count = bias.iter().take_while(|&&b| b == 0.0).count();
    (count > 0 && bias[count..].iter().all(|&b| b <= MASKED)).then_some(count)
}

impl CudaBackend {
    /// `softmax(scale q k^T + bias) v` by head; shapes are checked.
    pub(crate) fn attend(
        &self,
        q: &CudaTensor,
        k: &CudaTensor,
        v: &CudaTensor,
        heads: usize,
        scale: f32,
        bias: &AttentionBias<'_, Self>,
    ) -> Result<CudaTensor> {
        let length = q.shape().rows();
        if self.options().attention == AttentionBits::Fp8
            && bias.keys.is_none()
            && bias.positions.is_none()
            && length >= DNN_LENGTH_MIN
        {
            let shape = SdpaShape {
                heads,
                head_dim: q.shape().last() / heads,
                lq: length,
                lk: k.shape().rows(),
            };
            if let Some(done) = self.attend8([q, k, v], shape, scale)? {
                return Ok(done);
            }
        }
        self.rotate(&[q, k])?;
        let (q_at, k_at, v_at) = (self.bf16(q)?, self.bf16(k)?, self.bf16(v)?);
        let mut shape = SdpaShape {
            heads,
            head_dim: q.shape().last() / heads,
            lq: q.shape().rows(),
            lk: k.shape().rows(),
        };
        let mut keys = bias.keys;
        if let (Some(bias), None) = (keys, bias.positions)
            && let Some(count) = leading_keys(bias)
        {
            shape.lk = count;
            keys = None;
        }
        let out = self.device().take(q.shape().count() * 2)?;
        let unbiased = keys.is_none() && bias.positions.is_none();
        // A plan for each prompt's length would cost more than it brings.
        let whole = shape.lk == k.shape().rows();
        let large = shape.lq >= DNN_LENGTH_MIN && shape.lk * 2 >= DNN_LENGTH_MIN;
        let addresses = [&q_at, &k_at, &v_at].map(|b| b.block.address());
        let done = unbiased
            && whole
            && large
            && self.attend_dnn(shape, addresses, out.address(), scale)?;
        if !done {
            let keys = keys.map(|b| self.f32(b)).transpose()?;
            let positions = bias.positions.map(|b| self.f32(b)).transpose()?;
            let biases = [keys.as_ref(), positions.as_ref()];
            self.attend_own(shape, addresses, out.address(), scale, biases)?;
        }
        Ok(CudaTensor::ready(q.shape(), out, Element::Bf16))
    }

    /// Whether cuDNN has taken the work.
    fn attend_dnn(
        &self,
        shape: SdpaShape,
        [q, k, v]: [u64; 3],
        o: u64,
        scale: f32,
    ) -> Result<bool> {
        let forms = [SdpaForm::Unified, SdpaForm::Composite];
        let mut form = None;
        for candidate in forms {
            if form.is_none() && self.plan_sdpa(shape, scale, candidate)? {
                form = Some(candidate);
            }
        }
        let Some(form) = form else {
            return Ok(false);
        };
        let bind = |id, address| Binding { id, address };
        self.run_sdpa(shape, scale, form, |scale| {
            vec![
                bind(Q, q),
                bind(K, k),
                bind(V, v),
                bind(O, o),
                bind(SCALE, scale),
            ]
        })?;
        let SdpaShape { lq, lk, .. } = shape;
        let label = || (format!("attention {lq} x {lk}"), Work::Flops(shape.flops()));
        self.device().watch.saw(self.device(), label)?;
        Ok(true)
    }

    /// Whether cuDNN has an engine for an attention of this form; makes the plan at the first call.
    pub(crate) fn plan_sdpa(&self, shape: SdpaShape, scale: f32, form: SdpaForm) -> Result<bool> {
        let mut plans = self.plans();
        let place = match plans.sdpa.entry((shape, scale.to_bits(), form)) {
            Entry::Occupied(known) => return Ok(known.get().is_some()),
            Entry::Vacant(place) => place,
        };
        self.device().bind()?;
        let workspace = self.options().dnn_workspace_bytes;
        let made = match self.dnn(|dnn| shape.plan(dnn.target(), form, workspace)) {
            Ok(plan) => {
                tracing::debug!(?shape, ?form, engine = plan.engine(), "attention plan");
                let scale = Box::new(scale);
                Some(SdpaPlan { plan, scale })
            }
            Err(error) => {
                tracing::warn!(?shape, ?form, %error, "cuDNN has no attention for this");
                None
            }
        };
        Ok(place.insert(made).is_some())
    }

    /// Runs a plan that there is, on what `bindings` names; it is given the factor's address.
    pub(crate) fn run_sdpa(
        &self,
        shape: SdpaShape,
        scale: f32,
        form: SdpaForm,
        bindings: impl FnOnce(u64) -> Vec<Binding>,
    ) -> Result<()> {
        let plans = self.plans();
        let key = (shape, scale.to_bits(), form);
        let Some(Some(SdpaPlan { plan, scale })) = plans.sdpa.get(&key) else {
            return unsupported(format!("attention {shape:?} {form:?}"));
        };
        let workspace = self.device().take(plan.workspace_bytes())?;
        let bindings = bindings(std::ptr::from_ref::<f32>(scale).expose_provenance() as u64);
        self.device().bind()?;
        // SAFETY: the tensors have the sizes of `shape`; the factor lives as long as the plan.
        self.dnn(|dnn| unsafe { dnn.run(plan, &bindings, workspace.address()) })
    }

    fn attend_own(
        &self,
        shape: SdpaShape,
        [q, k, v]: [u64; 3],
        o: u64,
        scale: f32,
        [keys, positions]: [Option<&Arc<Buffer>>; 2],
    ) -> Result<()> {
        let d = shape.head_dim;
        if !d.is_multiple_of(16) || d > 128 {
            return Err(CudaError::Unsupported(format!(
                "attention with {d} channels a head: a multiple of 16 up to 128 is needed"
            )));
        }
        let spec = attention_spec(d, keys.is_some(), positions.is_some());
        let function = self.device().function(&spec, "")?;
        // Two tiles of keys and of values; rows padded by 8 values against bank conflicts.
        let shared_bytes = 4 * ATTENTION_TILE * (d + 8) * 2;
        let rows = 16 * ATTENTION_WARPS as usize;
        let args = [
            Arg::U64(q),
            Arg::U64(k),
            Arg::U64(v),
            Arg::U64(o),
            Arg::U64(keys.map_or(0, |b| b.block.address())),
            Arg::U64(positions.map_or(0, |b| b.block.address())),
            Arg::F32(scale),
            Arg::I32(shape.lq as i32),
            Arg::I32(shape.lk as i32),
            Arg::I32(shape.heads as i32),
        ];
        let grid = [shape.lq.div_ceil(rows) as u32, shape.heads as u32];
        // SAFETY: the tensors have the sizes of `shape`, biases too; arguments as in `attention.cu`.
        unsafe {
            let device = self.device();
            device.launch(
                function,
                grid,
                32 * ATTENTION_WARPS,
                shared_bytes as u32,
                &args,
            )
        }
    }
}
