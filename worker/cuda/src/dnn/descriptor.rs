//! Descriptors: what cuDNN's graph API is made of.

use crate::error::{CudaError, Result};
use cudarc::cudnn::sys as dn;
use dn::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptorType_t as Kind,
};
use std::ffi::CStr;

/// Turns a status into an error with cuDNN's own words.
pub(super) fn check(status: dn::cudnnStatus_t, call: impl Fn() -> String) -> Result<()> {
    if status == dn::cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    let mut text = [0; 512];
    // SAFETY: cuDNN writes at most `text.len()` bytes and ends them with a zero.
    let words = unsafe {
        dn::cudnnGetLastErrorString(text.as_mut_ptr(), text.len());
        text[text.len() - 1] = 0;
        CStr::from_ptr(text.as_ptr())
    };
    Err(CudaError::Dnn {
        call: call(),
        message: format!("{status:?} {}", words.to_string_lossy()),
    })
}

/// A descriptor; destroyed when dropped.
pub struct Descriptor(dn::cudnnBackendDescriptor_t);

// SAFETY: cuDNN's descriptors may move between threads; ours are used under one lock.
unsafe impl Send for Descriptor {}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        unsafe { dn::cudnnBackendDestroyDescriptor(self.0) };
    }
}

impl Descriptor {
    pub(super) fn new(kind: Kind) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: `raw` is for writing.
        let status = unsafe { dn::cudnnBackendCreateDescriptor(kind, &mut raw) };
        check(status, || format!("create {kind:?}"))?;
        Ok(Self(raw))
    }

    pub(super) fn raw(&self) -> dn::cudnnBackendDescriptor_t {
        self.0
    }

    /// Sets an attribute. `T` must be what cuDNN expects for `of`: i64 for INT64 and so on.
    pub(super) fn set<T: Copy>(&self, name: Name, of: Type, values: &[T]) -> Result<&Self> {
        // SAFETY: `values` has as many elements as are stated, of the type that `of` names.
        let status = unsafe {
            let count = values.len() as i64;
            dn::cudnnBackendSetAttribute(self.0, name, of, count, values.as_ptr().cast())
        };
        check(status, || format!("set {name:?}"))?;
        Ok(self)
    }

    pub(super) fn int(&self, name: Name, values: &[i64]) -> Result<&Self> {
        self.set(name, Type::CUDNN_TYPE_INT64, values)
    }

    pub(super) fn data_type(&self, name: Name, value: dn::cudnnDataType_t) -> Result<&Self> {
        self.set(name, Type::CUDNN_TYPE_DATA_TYPE, &[value])
    }

    pub(super) fn descriptor(&self, name: Name, value: &Descriptor) -> Result<&Self> {
        self.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[value.0])
    }

    pub(super) fn finish(self, what: &str) -> Result<Self> {
        // SAFETY: the descriptor is valid.
        let status = unsafe { dn::cudnnBackendFinalize(self.0) };
        check(status, || format!("finalize {what}"))?;
        Ok(self)
    }
}

pub(super) const BF16: dn::cudnnDataType_t = dn::cudnnDataType_t::CUDNN_DATA_BFLOAT16;
pub(super) const E4M3: dn::cudnnDataType_t = dn::cudnnDataType_t::CUDNN_DATA_FP8_E4M3;
pub(super) const F32: dn::cudnnDataType_t = dn::cudnnDataType_t::CUDNN_DATA_FLOAT;

/// Where a tensor of a graph lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// In device memory.
    Device,
    /// Nowhere: between two operations of the graph.
    Virtual,
    /// One value, in host memory.
    Host,
}

/// A tensor of a graph.
pub(super) fn tensor(
    id: i64,
    data_type: dn::cudnnDataType_t,
    sizes: &[i64],
    strides: &[i64],
    home: Home,
) -> Result<Descriptor> {
    let d = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    d.int(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id])?
        .data_type(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, data_type)?
        .int(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, sizes)?
        .int(Name::CUDNN_ATTR_TENSOR_STRIDES, strides)?
        .int(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[16])?;
    let flag = |name| d.set(name, Type::CUDNN_TYPE_BOOLEAN, &[true]);
    match home {
        Home::Device => {}
        Home::Virtual => drop(flag(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL)?),
        Home::Host => drop(flag(Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE)?),
    }
    d.finish("a tensor")
}

/// `y = mode(x, b)`, computed in f32. The second descriptor must live as long as the first.
pub(super) fn pointwise(
    mode: dn::cudnnPointwiseMode_t,
    x: &Descriptor,
    b: Option<&Descriptor>,
    y: &Descriptor,
) -> Result<[Descriptor; 2]> {
    let m = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
    m.set(
        Name::CUDNN_ATTR_POINTWISE_MODE,
        Type::CUDNN_TYPE_POINTWISE_MODE,
        &[mode],
    )?;
    m.data_type(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, F32)?;
    let m = m.finish("a pointwise mode")?;
    let op = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
    op.descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, &m)?
        .descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x)?
        .descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y)?;
    if let Some(b) = b {
        op.descriptor(Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b)?;
    }
    Ok([op.finish("a pointwise operation")?, m])
}
