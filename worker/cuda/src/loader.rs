//! [`Loader`] on a CUDA device: weights as the device wants them.

use crate::backend::CudaBackend;
use crate::check::{check_same, check_vector};
use crate::error::InOp;
use crate::park::Parking;
use crate::tensor::{CudaConv, CudaMatrix, CudaTensor, Element};
use longtake_tensor::{Error, Loader, Part, Shape, WeightView};

type Op<T> = longtake_tensor::Result<T>;

/// Uploads of at most so many values are remembered on the host: masks are looked at there.
const HOST_COPY_MAX: usize = 4096;

impl Loader for CudaBackend {
    type Tensor = CudaTensor;
    type Matrix = CudaMatrix;
    type Conv = CudaConv;

    fn part<T, E: From<Error>>(
        &self,
        load: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<Part<T>, E> {
        let device = self.device();
        let (parking, stay) = Parking::beside(&device.arena);
        let weights = device.within(parking.arena(), load)?;
        parking.arena().trim();
        drop(stay);
        Ok(Part::at(weights, parking))
    }

    fn upload(&self, shape: Shape, values: &[f32]) -> Op<CudaTensor> {
        let op = "upload";
        check_same(
            op,
            Shape::from([shape.count()]),
            Shape::from([values.len()]),
        )?;
        let block = self.upload_f32(values).in_op(op)?;
        let host = (values.len() <= HOST_COPY_MAX).then(|| values.to_vec());
        Ok(CudaTensor::kept(shape, block, Element::F32, host))
    }

    fn matrix(&self, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Op<CudaMatrix> {
        check_matrix(weight, bias)?;
        self.prepare_matrix(weight, bias, false).in_op("matrix")
    }

    fn block_matrix(&self, weight: &WeightView<'_>, bias: Option<&[f32]>) -> Op<CudaMatrix> {
        check_matrix(weight, bias)?;
        self.prepare_matrix(weight, bias, true).in_op("matrix")
    }

    fn add_low_rank(
        &self,
        matrix: &mut CudaMatrix,
        down: &WeightView<'_>,
        up: &WeightView<'_>,
        scale: f32,
    ) -> Op<()> {
        let op = "low-rank branch";
        let fits = match (down.shape().dims(), up.shape().dims()) {
            (&[rank, k], &[n, up_rank]) => [n, k, up_rank] == [matrix.n, matrix.k, rank],
            _ => false,
        };
        if !fits {
            let rule = "down [R, K] and up [N, R] of a layer [N, K] are needed";
            return Err(Error::mismatch(op, down.shape(), up.shape(), rule));
        }
        let branch = self.prepare_branch(down, up, scale).in_op(op)?;
        matrix.branches.push(branch);
        Ok(())
    }

    fn conv(&self, kernel: &WeightView<'_>, bias: Option<&[f32]>) -> Op<CudaConv> {
        let shape = kernel.shape();
        let &[n, c, kt, kh, kw] = shape.dims() else {
            return Err(Error::operand(
                "conv",
                shape,
                "[N, C, kt, kh, kw] is needed",
            ));
        };
        if [kt, kh, kw].iter().any(|size| size % 2 == 0) {
            return Err(Error::operand("conv", shape, "odd kernel sizes are needed"));
        }
        if let Some(bias) = bias {
            check_vector("conv", Shape::from([c, n]), Shape::from([bias.len()]))?;
        }
        self.prepare_conv(kernel, bias, n, c, [kt, kh, kw])
            .in_op("conv")
    }
}

fn check_matrix(weight: &WeightView<'_>, bias: Option<&[f32]>) -> Op<()> {
    let &[n, k] = weight.shape().dims() else {
        return Err(Error::operand("matrix", weight.shape(), "[N, K] is needed"));
    };
    match bias {
        Some(bias) => check_vector("matrix", Shape::from([k, n]), Shape::from([bias.len()])),
        None => Ok(()),
    }
}
