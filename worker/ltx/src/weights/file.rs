//! One memory-mapped safetensors file.

use crate::error::{Error, Result};
use longtake_tensor::{DType, KeptWeight, Shape, Storage};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file of weights; of its values, nothing has been read.
pub struct WeightFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) map: Arc<Mmap>,
    metadata: Metadata,
    /// Names of the tensors, sorted.
    names: Vec<String>,
    /// Where the values start.
    pub(super) base: usize,
}

impl WeightFile {
    /// Opens and maps the file, and reads its header.
    pub fn open(path: &Path) -> Result<Self> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        // SAFETY: the map is only read. Should another process shorten the file meanwhile, access
        // faults and the process ends; files of a model are not written to while it is in use.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::WeightFile {
                path: path.to_owned(),
                message: format!("truncated or not a safetensors file ({e})"),
            })?;
        let base = header + size_of::<u64>();
        let end = metadata
            .tensors()
            .values()
            .map(|t| t.data_offsets.1)
            .max()
            .unwrap_or(0);
        if map.len() < base + end {
            let message = format!("truncated: {} bytes of {}", map.len(), base + end);
            return Err(Error::WeightFile {
                path: path.to_owned(),
                message,
            });
        }
        let mut names = metadata.offset_keys();
        names.sort_unstable();
        Ok(Self {
            path: path.to_owned(),
            file,
            map: Arc::new(map),
            metadata,
            names,
            base,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of its tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.names.iter().map(String::as_str)
    }

    /// Text `key` of the file's own metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        let texts = self.metadata.metadata().as_ref()?;
        texts.get(key).map(String::as_str)
    }

    /// All of the file's own metadata, by key.
    pub fn texts(&self) -> BTreeMap<String, String> {
        let texts = self.metadata.metadata().clone().unwrap_or_default();
        texts.into_iter().collect()
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Bytes that tensor `name` takes, and how its values are stored; `None` when it is not there.
    pub fn stored_as(&self, name: &str) -> Option<(usize, Dtype, Vec<usize>)> {
        let info = self.info(name)?;
        let (from, to) = info.data_offsets;
        Some((to - from, info.dtype, info.shape.clone()))
    }

    /// Shape and type of tensor `name`, which is there.
    pub(super) fn tensor(&self, name: &str, info: &TensorInfo) -> Result<(Shape, DType)> {
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F8_E4M3 => DType::F8E4M3,
            Dtype::I8 => DType::I8,
            other => {
                let message = format!(
                    "is {other:?}; F32, F16, BF16, F8_E4M3 and I8 are supported: store it as one of \
                     them, or fetch the file again"
                );
                return Err(self.error(name, message));
            }
        };
        let shape = Shape::try_new(&info.shape).ok_or_else(|| {
            self.error(name, format!("has shape {:?}: too many axes", info.shape))
        })?;
        Ok((shape, dtype))
    }

    /// Tensor `name` as it is stored, for keeping.
    pub(crate) fn kept(&self, name: &str) -> Result<KeptWeight> {
        let Some(info) = self.info(name) else {
            return Err(self.error(name, "is missing".to_owned()));
        };
        let (shape, dtype) = self.tensor(name, info)?;
        let (from, to) = info.data_offsets;
        let storage: Storage = Arc::clone(&self.map) as Storage;
        KeptWeight::new(
            shape,
            dtype,
            storage,
            self.base + from..self.base + to,
            None,
        )
        .map_err(|e| self.error(name, e.to_string()))
    }

    /// Fails on values of these tensors that are not finite.
    pub(crate) fn check_values(&self, names: &[Option<&str>]) -> Result<()> {
        for name in names.iter().flatten() {
            let view = self.kept(name)?;
            let view = view.view();
            if let Some(at) = super::scan::first_bad(view.dtype(), view.bytes()) {
                let message =
                    format!("value {at} is not finite; the file is damaged, fetch it again");
                return Err(self.error(name, message));
            }
        }
        Ok(())
    }

    pub(super) fn error(&self, tensor: &str, message: String) -> Error {
        Error::Weight {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            message,
        }
    }
}
