//! Attention: one operation where cuDNN has it (9.13.1 and newer), else the graph that it stands for.

use super::descriptor::{BF16, Descriptor, F32, Home, pointwise, tensor};
use super::plan::{Graph, Plan, Target};
use crate::error::Result;
use cudarc::cudnn::sys as dn;
use dn::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptorType_t as Kind, cudnnPointwiseMode_t as Pointwise,
    cudnnReduceTensorOp_t as Reduce,
};

/// Sizes of an attention: `q` `[lq, heads * head_dim]`, `k` and `v` `[lk, heads * head_dim]`, bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SdpaShape {
    /// Heads, side by side in a token.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Queries.
    pub lq: usize,
    /// Keys.
    pub lk: usize,
}

/// How attention is described to cuDNN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SdpaForm {
    /// One operation.
    Unified,
    /// Product, softmax, product.
    Composite,
}

pub(crate) const Q: i64 = 1;
pub(crate) const K: i64 = 2;
pub(crate) const V: i64 = 3;
pub(crate) const O: i64 = 4;
pub(crate) const SCALE: i64 = 5;

impl SdpaShape {
    /// A plan of `form`.
    pub fn plan(&self, target: &Target, form: SdpaForm, workspace_max: usize) -> Result<Plan> {
        let graph = match form {
            SdpaForm::Unified => self.unified()?,
            SdpaForm::Composite => self.composite()?,
        };
        Plan::make(target, graph, workspace_max)
    }

    /// Sizes and strides (batch, head, token, channel) of `tokens` tokens.
    fn layout(&self, tokens: usize) -> ([i64; 4], [i64; 4]) {
        let (h, d, s) = (self.heads as i64, self.head_dim as i64, tokens as i64);
        ([1, h, s, d], [h * s * d, d, h * d, 1])
    }

    fn io(&self, id: i64, tokens: usize) -> Result<Descriptor> {
        let (sizes, strides) = self.layout(tokens);
        tensor(id, BF16, &sizes, &strides, Home::Device)
    }

    fn unified(&self) -> Result<Graph> {
        let parts = vec![
            self.io(Q, self.lq)?,
            self.io(K, self.lk)?,
            self.io(V, self.lk)?,
            self.io(O, self.lq)?,
            tensor(SCALE, F32, &[1; 4], &[1; 4], Home::Host)?,
        ];
        let op = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR)?;
        op.descriptor(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, &parts[0])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, &parts[1])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, &parts[2])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, &parts[3])?
            .descriptor(Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, &parts[4])?;
        Ok(Graph {
            operations: vec![op.finish("attention")?],
            parts,
        })
    }

    /// The engines want the statistics of the softmax (log and add) in the graph even where
    /// nobody reads them.
    fn composite(&self) -> Result<Graph> {
        let (h, lq, lk) = (self.heads as i64, self.lq as i64, self.lk as i64);
        let (q, k, v, o) = (
            self.io(Q, self.lq)?,
            {
                let ([_, _, s, d], [b, head, token, channel]) = self.layout(self.lk);
                // Seen as k transposed.
                tensor(
                    K,
                    BF16,
                    &[1, h, d, s],
                    &[b, head, channel, token],
                    Home::Device,
                )?
            },
            self.io(V, self.lk)?,
            self.io(O, self.lq)?,
        );
        let scale = tensor(SCALE, F32, &[1; 4], &[1; 4], Home::Host)?;
        let score = |id, of| {
            let strides = [h * lq * lk, lq * lk, lk, 1];
            tensor(id, of, &[1, h, lq, lk], &strides, Home::Virtual)
        };
        let row = |id| tensor(id, F32, &[1, h, lq, 1], &[h * lq, lq, 1, 1], Home::Virtual);
        let (p, scaled, shifted, exp) = (
            score(10, F32)?,
            score(11, F32)?,
            score(12, F32)?,
            score(13, F32)?,
        );
        let weight = score(14, BF16)?;
        let (max, sum, log, statistics) = (row(15)?, row(16)?, row(17)?, row(18)?);
        let steps = [
            product(&q, &k, &p)?,
            pointwise(Pointwise::CUDNN_POINTWISE_MUL, &p, Some(&scale), &scaled)?,
            reduction(Reduce::CUDNN_REDUCE_TENSOR_MAX, &scaled, &max)?,
            pointwise(
                Pointwise::CUDNN_POINTWISE_SUB,
                &scaled,
                Some(&max),
                &shifted,
            )?,
            pointwise(Pointwise::CUDNN_POINTWISE_EXP, &shifted, None, &exp)?,
            reduction(Reduce::CUDNN_REDUCE_TENSOR_ADD, &exp, &sum)?,
            pointwise(Pointwise::CUDNN_POINTWISE_LOG, &sum, None, &log)?,
            pointwise(
                Pointwise::CUDNN_POINTWISE_ADD,
                &max,
                Some(&log),
                &statistics,
            )?,
            pointwise(Pointwise::CUDNN_POINTWISE_DIV, &exp, Some(&sum), &weight)?,
            product(&weight, &v, &o)?,
        ];
        let mut parts = vec![
            q, k, v, o, scale, p, scaled, shifted, exp, weight, max, sum, log, statistics,
        ];
        let mut operations = Vec::new();
        for [operation, of] in steps {
            operations.push(operation);
            parts.push(of);
        }
        Ok(Graph { operations, parts })
    }
}

fn product(a: &Descriptor, b: &Descriptor, c: &Descriptor) -> Result<[Descriptor; 2]> {
    let m = Descriptor::new(Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR)?;
    m.data_type(Name::CUDNN_ATTR_MATMUL_COMP_TYPE, F32)?;
    let m = m.finish("a product")?;
    let op = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)?;
    op.descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_ADESC, a)?
        .descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_BDESC, b)?
        .descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_CDESC, c)?
        .descriptor(Name::CUDNN_ATTR_OPERATION_MATMUL_DESC, &m)?;
    Ok([op.finish("a product")?, m])
}

fn reduction(of: Reduce, x: &Descriptor, y: &Descriptor) -> Result<[Descriptor; 2]> {
    let m = Descriptor::new(Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR)?;
    m.set(
        Name::CUDNN_ATTR_REDUCTION_OPERATOR,
        Type::CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
        &[of],
    )?;
    m.data_type(Name::CUDNN_ATTR_REDUCTION_COMP_TYPE, F32)?;
    let m = m.finish("a reduction")?;
    let op = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR)?;
    op.descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_DESC, &m)?
        .descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x)?
        .descriptor(Name::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y)?;
    Ok([op.finish("a reduction")?, m])
}
