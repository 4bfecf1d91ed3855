//! Convolutions of the VAE: channels last, bf16 in and out, f32 sums, bias and skip in the same pass.

use super::descriptor::{BF16, Descriptor, F32, Home, pointwise, tensor};
use super::plan::{Graph, Plan, Target};
use crate::error::Result;
use cudarc::cudnn::sys as dn;
use dn::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptorType_t as Kind, cudnnPointwiseMode_t as Pointwise,
};

/// Sizes of a convolution of stride 1: `x` `[frames + kernel[0] - 1, height, width, c]` (padded in
/// time, not in space) to `y` `[frames, height, width, n]`; kernel `[n, kt, kh, kw, c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Frames of the result.
    pub frames: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels in; a multiple of 8.
    pub c: usize,
    /// Channels out; a multiple of 8.
    pub n: usize,
    /// `[kt, kh, kw]`, odd.
    pub kernel: [usize; 3],
    /// Whether a tensor like `y` is added.
    pub skip: bool,
}

pub(crate) const X: i64 = 1;
pub(crate) const W: i64 = 2;
pub(crate) const Y: i64 = 3;
pub(crate) const BIAS: i64 = 4;
pub(crate) const SKIP: i64 = 5;

/// Sizes and strides of `[1, channels, f, h, w]`, channels innermost.
fn channels_last(
    f: usize,
    h: usize,
    w: usize,
    channels: usize,
    count: usize,
) -> ([i64; 5], [i64; 5]) {
    let [f, h, w, c, n] = [f, h, w, channels, count].map(|v| v as i64);
    ([n, c, f, h, w], [f * h * w * c, 1, h * w * c, w * c, c])
}

impl ConvShape {
    /// Its plan.
    pub fn plan(&self, target: &Target, workspace_max: usize) -> Result<Plan> {
        Plan::make(target, self.graph()?, workspace_max)
    }

    /// Floating-point operations.
    pub fn flops(&self) -> f64 {
        let taps: usize = self.kernel.iter().product();
        2.0 * (self.frames * self.height * self.width) as f64 * (self.n * self.c * taps) as f64
    }

    fn graph(&self) -> Result<Graph> {
        let [kt, kh, kw] = self.kernel;
        let make = |id, of, (sizes, strides): ([i64; 5], [i64; 5]), home| {
            tensor(id, of, &sizes, &strides, home)
        };
        let padded = self.frames + kt - 1;
        let result = channels_last(self.frames, self.height, self.width, self.n, 1);
        let x = make(
            X,
            BF16,
            channels_last(padded, self.height, self.width, self.c, 1),
            Home::Device,
        )?;
        let w = make(
            W,
            BF16,
            channels_last(kt, kh, kw, self.c, self.n),
            Home::Device,
        )?;
        let bias = make(BIAS, F32, channels_last(1, 1, 1, self.n, 1), Home::Device)?;
        let sum = make(10, F32, result, Home::Virtual)?;
        let y = make(Y, BF16, result, Home::Device)?;

        let m = Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
        m.data_type(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, F32)?
            .set(
                Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE,
                Type::CUDNN_TYPE_CONVOLUTION_MODE,
                &[dn::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION],
            )?
            .int(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[3])?;
        let pads = [0, (kh / 2) as i64, (kw / 2) as i64];
        m.int(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &pads)?
            .int(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &pads)?
            .int(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1; 3])?
            .int(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &[1; 3])?;
        let m = m.finish("a convolution")?;
        let op = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)?;
        op.descriptor(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, &m)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, &x)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, &w)?
            .descriptor(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, &sum)?
            .set(
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                Type::CUDNN_TYPE_FLOAT,
                &[1f32],
            )?
            .set(
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                Type::CUDNN_TYPE_FLOAT,
                &[0f32],
            )?;
        let mut operations = vec![op.finish("a convolution")?];
        let mut parts = vec![x, w, bias, sum, y, m];
        let add = Pointwise::CUDNN_POINTWISE_ADD;
        if self.skip {
            let skip = make(SKIP, BF16, result, Home::Device)?;
            let biased = make(11, F32, result, Home::Virtual)?;
            let [op, m] = pointwise(add, &parts[3], Some(&parts[2]), &biased)?;
            let [op2, m2] = pointwise(add, &biased, Some(&skip), &parts[4])?;
            operations.extend([op, op2]);
            parts.extend([m, m2, skip, biased]);
        } else {
            let [op, m] = pointwise(add, &parts[3], Some(&parts[2]), &parts[4])?;
            operations.push(op);
            parts.push(m);
        }
        Ok(Graph { operations, parts })
    }
}
