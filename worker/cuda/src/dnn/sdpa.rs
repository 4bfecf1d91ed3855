//! Attention: one operation where cuDNN has it (9.13.1 and newer), else the graph that it stands for.

use super::descriptor::{BF16, Descriptor, E4M3, F32, Home, pointwise, tensor};
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
    /// The same on E4M3 operands, with an E4M3 result.
    Fp8,
}

pub(crate) const Q: i64 = 1;
pub(crate) const K: i64 = 2;
pub(crate) const V: i64 = 3;
pub(crate) const O: i64 = 4;
pub(crate) const SCALE: i64 = 5;
/// Factors of 8-bit operands, in device memory.
pub(crate) const DESCALE_Q: i64 = 30;
pub(crate) const DESCALE_K: i64 = 31;
pub(crate) const DESCALE_V: i64 = 32;
pub(crate) const SCALE_S: i64 = 33;
pub(crate) const DESCALE_S: i64 = 34;
pub(crate) const SCALE_O: i64 = 35;
/// Largest magnitudes, which come with them.
pub(crate) const AMAX_S: i64 = 36;
pub(crate) const AMAX_O: i64 = 37;

impl SdpaShape {
    /// A plan of `form`.
    pub fn plan(&self, target: &Target, form: SdpaForm, workspace_max: usize) -> Result<Plan> {
        let graph = match form {
            SdpaForm::Unified => self.unified()?,
            SdpaForm::Composite => self.composite()?,
            SdpaForm::Fp8 => self.fp8()?,
        };
        Plan::make(target, graph, workspace_max)
    }

    /// Floating-point operations of the two products.
    pub fn flops(&self) -> f64 {
        4.0 * self.lq as f64 * self.lk as f64 * (self.heads * self.head_dim) as f64
    }

    /// Sizes and strides (batch, head, token, channel) of `tokens` tokens.
    fn layout(&self, tokens: usize) -> ([i64; 4], [i64; 4]) {
        let (h, d, s) = (self.heads as i64, self.head_dim as i64, tokens as i64);
        ([1, h, s, d], [h * s * d, d, h * d, 1])
    }

    fn io(&self, id: i64, of: dn::cudnnDataType_t, tokens: usize) -> Result<Descriptor> {
        let (sizes, strides) = self.layout(tokens);
        tensor(id, of, &sizes, &strides, Home::Device)
    }

    /// Keys, seen transposed.
    fn keys(&self, of: dn::cudnnDataType_t) -> Result<Descriptor> {
        let ([_, h, s, d], [b, head, token, channel]) = self.layout(self.lk);
        let strides = [b, head, channel, token];
        tensor(K, of, &[1, h, d, s], &strides, Home::Device)
    }

    /// A score for each query and key, between two operations.
    fn score(&self, id: i64, of: dn::cudnnDataType_t) -> Result<Descriptor> {
        let (h, lq, lk) = (self.heads as i64, self.lq as i64, self.lk as i64);
        let strides = [h * lq * lk, lq * lk, lk, 1];
        tensor(id, of, &[1, h, lq, lk], &strides, Home::Virtual)
    }

    fn unified(&self) -> Result<Graph> {
        let parts = vec![
            self.io(Q, BF16, self.lq)?,
            self.io(K, BF16, self.lk)?,
            self.io(V, BF16, self.lk)?,
            self.io(O, BF16, self.lq)?,
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

    fn composite(&self) -> Result<Graph> {
        let (q, k) = (self.io(Q, BF16, self.lq)?, self.keys(BF16)?);
        let (v, o) = (self.io(V, BF16, self.lk)?, self.io(O, BF16, self.lq)?);
        let scale = tensor(SCALE, F32, &[1; 4], &[1; 4], Home::Host)?;
        let (p, scaled) = (self.score(10, F32)?, self.score(11, F32)?);
        let weight = self.score(14, BF16)?;
        let mut graph = Graph::default();
        graph.push(product(&q, &k, &p)?);
        graph.push(multiplied(&p, &scale, &scaled)?);
        self.softmax(&mut graph, &scaled, &weight)?;
        graph.push(product(&weight, &v, &o)?);
        graph.parts.extend([q, k, v, o, scale, p, scaled, weight]);
        Ok(graph)
    }

    /// Adds `weight = softmax(x)`. The engines want the statistics of the softmax (log and add) in
    /// the graph even where nobody reads them.
    pub(super) fn softmax(
        &self,
        graph: &mut Graph,
        x: &Descriptor,
        weight: &Descriptor,
    ) -> Result<()> {
        let (h, lq) = (self.heads as i64, self.lq as i64);
        let row = |id| tensor(id, F32, &[1, h, lq, 1], &[h * lq, lq, 1, 1], Home::Virtual);
        let (shifted, exp) = (self.score(12, F32)?, self.score(13, F32)?);
        let (max, sum, log, statistics) = (row(15)?, row(16)?, row(17)?, row(18)?);
        use Pointwise::{
            CUDNN_POINTWISE_ADD as ADD, CUDNN_POINTWISE_DIV as DIV, CUDNN_POINTWISE_EXP as EXP,
            CUDNN_POINTWISE_LOG as LOG, CUDNN_POINTWISE_SUB as SUB,
        };
        graph.push(reduction(Reduce::CUDNN_REDUCE_TENSOR_MAX, x, &max)?);
        graph.push(pointwise(SUB, x, Some(&max), &shifted)?);
        graph.push(pointwise(EXP, &shifted, None, &exp)?);
        graph.push(reduction(Reduce::CUDNN_REDUCE_TENSOR_ADD, &exp, &sum)?);
        graph.push(pointwise(LOG, &sum, None, &log)?);
        graph.push(pointwise(ADD, &max, Some(&log), &statistics)?);
        graph.push(pointwise(DIV, &exp, Some(&sum), weight)?);
        let parts = [shifted, exp, max, sum, log, statistics];
        graph.parts.extend(parts);
        Ok(())
    }

    /// As `SDPA_FP8_FWD` of NVIDIA's cudnn-frontend lowers it: every operand has a factor, and the
    /// largest magnitudes of weights and result are written whether anybody reads them or not.
    fn fp8(&self) -> Result<Graph> {
        let (h, lq, d) = (self.heads as i64, self.lq as i64, self.head_dim as i64);
        let (q, k) = (self.io(Q, E4M3, self.lq)?, self.keys(E4M3)?);
        let (v, o) = (self.io(V, E4M3, self.lk)?, self.io(O, E4M3, self.lq)?);
        let scale = tensor(SCALE, F32, &[1; 4], &[1; 4], Home::Host)?;
        let one = |id| tensor(id, F32, &[1; 4], &[1; 4], Home::Device);
        let [dq, dk, to_s, from_s, dv, to_o] =
            [DESCALE_Q, DESCALE_K, SCALE_S, DESCALE_S, DESCALE_V, SCALE_O].map(one);
        let (dq, dk, to_s) = (dq?, dk?, to_s?);
        let (from_s, dv, to_o) = (from_s?, dv?, to_o?);
        let (amax_s, amax_o) = (one(AMAX_S)?, one(AMAX_O)?);
        let score = |id| self.score(id, F32);
        let (p, scaled, p_q, p_k) = (score(10)?, score(11)?, score(19)?, score(20)?);
        let (weight, weight8) = (score(14)?, self.score(21, E4M3)?);
        let sum = |id| {
            let strides = [h * lq * d, lq * d, d, 1];
            tensor(id, F32, &[1, h, lq, d], &strides, Home::Virtual)
        };
        let (raw, raw_s, raw_v) = (sum(22)?, sum(23)?, sum(24)?);
        let amax = Reduce::CUDNN_REDUCE_TENSOR_AMAX;
        let mut graph = Graph::default();
        graph.push(product(&q, &k, &p)?);
        graph.push(multiplied(&p, &scale, &scaled)?);
        graph.push(multiplied(&scaled, &dq, &p_q)?);
        graph.push(multiplied(&p_q, &dk, &p_k)?);
        self.softmax(&mut graph, &p_k, &weight)?;
        graph.push(reduction(amax, &weight, &amax_s)?);
        graph.push(multiplied(&weight, &to_s, &weight8)?);
        graph.push(product(&weight8, &v, &raw)?);
        graph.push(multiplied(&raw, &from_s, &raw_s)?);
        graph.push(multiplied(&raw_s, &dv, &raw_v)?);
        graph.push(multiplied(&raw_v, &to_o, &o)?);
        graph.push(reduction(amax, &raw_v, &amax_o)?);
        graph
            .parts
            .extend([q, k, v, o, scale, dq, dk, to_s, from_s, dv, to_o]);
        graph.parts.extend([amax_s, amax_o, p, scaled, p_q, p_k]);
        graph.parts.extend([weight, weight8, raw, raw_s, raw_v]);
        Ok(graph)
    }
}

fn multiplied(x: &Descriptor, by: &Descriptor, y: &Descriptor) -> Result<[Descriptor; 2]> {
    pointwise(Pointwise::CUDNN_POINTWISE_MUL, x, Some(by), y)
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
