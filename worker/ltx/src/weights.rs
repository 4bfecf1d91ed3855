//! Weight files: memory-mapped safetensors, one file or several with an index.

use crate::error::{Error, Result};
use longtake_tensor::{DType, Loader, Shape, WeightView};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Names that the scale of an 8-bit matrix goes by, beside its `weight`.
const SCALE_NAMES: [&str; 2] = ["scale_weight", "weight_scale"];

struct WeightFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the values start.
    base: usize,
}

/// The weights of one part of a model.
pub struct Weights {
    files: Vec<WeightFile>,
    /// Folder, for messages about tensors that no file has.
    folder: PathBuf,
    scrutiny: Scrutiny,
}

/// How closely weights are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrutiny {
    /// Names, shapes, types, lengths: nothing large is read.
    Headers,
    /// Every value too: it must be finite.
    Values,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The weight files of folder `folder`: `<stem>.safetensors`, or those that
/// `<stem>.safetensors.index.json` lists.
pub(crate) fn weight_files(folder: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    let single = folder.join(format!("{stem}.safetensors"));
    let index = folder.join(format!("{stem}.safetensors.index.json"));
    if single.is_file() || !index.is_file() {
        return Ok(vec![single]);
    }
    let bytes = std::fs::read(&index).map_err(|source| Error::Read {
        path: index.clone(),
        source,
    })?;
    let shards: ShardIndex =
        serde_json::from_slice(&bytes).map_err(|source| Error::ConfigSyntax {
            path: index.clone(),
            source,
        })?;
    let names: BTreeSet<String> = shards.weight_map.into_values().collect();
    if names.is_empty() || names.iter().any(|name| name.contains(['/', '\\'])) {
        let message = "the index must list files of its own folder".to_owned();
        return Err(Error::WeightFile {
            path: index,
            message,
        });
    }
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

impl WeightFile {
    fn open(path: PathBuf) -> Result<Self> {
        let read = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(read)?;
        // SAFETY: the map is only read. Should another process shorten the file meanwhile, access
        // faults and the process ends; files of a model are not written to while it is in use.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::WeightFile {
                path: path.clone(),
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
            return Err(Error::WeightFile { path, message });
        }
        Ok(Self {
            path,
            map,
            metadata,
            base,
        })
    }
}

impl Weights {
    /// Opens the weights in `folder`; nothing is read yet but headers.
    pub fn open(folder: &Path, stem: &str, scrutiny: Scrutiny) -> Result<Self> {
        let files = weight_files(folder, stem)?;
        let files = files
            .into_iter()
            .map(WeightFile::open)
            .collect::<Result<_>>()?;
        Ok(Self {
            files,
            folder: folder.to_owned(),
            scrutiny,
        })
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.files
            .iter()
            .any(|file| file.metadata.info(name).is_some())
    }

    fn stored(&self, name: &str) -> Result<(&WeightFile, Shape, DType, &[u8])> {
        let found = self
            .files
            .iter()
            .find_map(|f| f.metadata.info(name).map(|info| (f, info)));
        let Some((file, info)) = found else {
            let path = match self.files.as_slice() {
                [file] => file.path.clone(),
                _ => self.folder.clone(),
            };
            let message = "is missing; the file does not go with config.json".to_owned();
            return Err(Error::Weight {
                path,
                tensor: name.to_owned(),
                message,
            });
        };
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F8_E4M3 => DType::F8E4M3,
            Dtype::I8 => DType::I8,
            other => {
                let message = format!("is {other:?}; F32, F16, BF16, F8_E4M3 and I8 are supported");
                return Err(weight_error(file, name, message));
            }
        };
        let shape = Shape::try_new(&info.shape).ok_or_else(|| {
            weight_error(
                file,
                name,
                format!("has shape {:?}: too many axes", info.shape),
            )
        })?;
        let (from, to) = info.data_offsets;
        Ok((
            file,
            shape,
            dtype,
            &file.map[file.base + from..file.base + to],
        ))
    }

    /// Scale of the 8-bit tensor `name`, if there is one: a factor, or one for each row.
    fn scale(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(layer) = name.strip_suffix("weight") else {
            return Ok(None);
        };
        let names = SCALE_NAMES.map(|scale| format!("{layer}{scale}"));
        let Some(scale) = names.iter().find(|name| self.has(name)) else {
            return Ok(None);
        };
        let (file, shape, dtype, bytes) = self.stored(scale)?;
        if dtype != DType::F32 {
            return Err(weight_error(
                file,
                scale,
                format!("is {dtype}; F32 is expected"),
            ));
        }
        let view = WeightView::new(shape, dtype, bytes, None)
            .map_err(|e| weight_error(file, scale, e.to_string()))?;
        check_finite(file, scale, &view)?;
        Ok(Some(view.to_f32()))
    }

    /// Gives `f` tensor `name`, which must have `shape`, as it is stored.
    pub fn with_view<T>(
        &self,
        name: &str,
        shape: &[usize],
        f: impl FnOnce(&WeightView<'_>) -> longtake_tensor::Result<T>,
    ) -> Result<T> {
        let (file, found, dtype, bytes) = self.stored(name)?;
        if found.dims() != shape {
            let message = format!("has shape {found}; the configuration asks for {shape:?}");
            return Err(weight_error(file, name, message));
        }
        let scale = if dtype.bytes() == 1 {
            self.scale(name)?
        } else {
            None
        };
        if dtype == DType::I8 && scale.is_none() {
            let message = "is I8 without a scale_weight beside it".to_owned();
            return Err(weight_error(file, name, message));
        }
        let named = |e: longtake_tensor::Error| weight_error(file, name, e.to_string());
        let view = WeightView::new(found, dtype, bytes, scale.as_deref()).map_err(named)?;
        if self.scrutiny == Scrutiny::Values {
            check_finite(file, name, &view)?;
        }
        f(&view).map_err(named)
    }

    /// Values of tensor `name`, which must have `shape`.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.with_view(name, shape, |view| Ok(view.to_f32()))
    }

    /// Tensor `name` on the backend.
    pub fn tensor<B: Loader>(&self, b: &B, name: &str, shape: &[usize]) -> Result<B::Tensor> {
        self.with_view(name, shape, |view| b.upload(view.shape(), &view.to_f32()))
    }

    /// Linear layer `layer` with weight `[n, k]` and, if `bias`, a bias `[n]`.
    pub fn matrix<B: Loader>(
        &self,
        b: &B,
        layer: &str,
        n: usize,
        k: usize,
        bias: bool,
    ) -> Result<B::Matrix> {
        let bias = bias
            .then(|| self.values(&format!("{layer}.bias"), &[n]))
            .transpose()?;
        self.with_view(&format!("{layer}.weight"), &[n, k], |w| {
            b.matrix(w, bias.as_deref())
        })
    }

    /// The same for a layer that repeats from block to block.
    pub fn block_matrix<B: Loader>(
        &self,
        b: &B,
        layer: &str,
        n: usize,
        k: usize,
        bias: bool,
    ) -> Result<B::Matrix> {
        let bias = bias
            .then(|| self.values(&format!("{layer}.bias"), &[n]))
            .transpose()?;
        self.with_view(&format!("{layer}.weight"), &[n, k], |w| {
            b.block_matrix(w, bias.as_deref())
        })
    }

    /// Convolution `layer` with a cubic kernel of side `size`.
    pub fn conv<B: Loader>(
        &self,
        b: &B,
        layer: &str,
        out: usize,
        channels: usize,
        size: usize,
    ) -> Result<B::Conv> {
        let bias = self.values(&format!("{layer}.bias"), &[out])?;
        let shape = [out, channels, size, size, size];
        self.with_view(&format!("{layer}.weight"), &shape, |w| {
            b.conv(w, Some(&bias))
        })
    }
}

fn weight_error(file: &WeightFile, tensor: &str, message: String) -> Error {
    Error::Weight {
        path: file.path.clone(),
        tensor: tensor.to_owned(),
        message,
    }
}

/// Refuses NaN and infinities: they would spread over every pixel.
fn check_finite(file: &WeightFile, name: &str, view: &WeightView<'_>) -> Result<()> {
    let bytes = view.bytes();
    let pairs = |mask: u16| {
        bytes
            .as_chunks::<2>()
            .0
            .iter()
            .position(|b| u16::from_le_bytes(*b) & mask == mask)
    };
    let bad = match view.dtype() {
        DType::F32 => {
            let finite = |b: &[u8; 4]| f32::from_le_bytes(*b).is_finite();
            bytes.as_chunks::<4>().0.iter().position(|b| !finite(b))
        }
        DType::F16 => pairs(0x7c00),
        DType::BF16 => pairs(0x7f80),
        DType::F8E4M3 => bytes.iter().position(|b| b & 0x7f == 0x7f),
        DType::I8 => None,
    };
    match bad {
        None => Ok(()),
        Some(at) => {
            let message = format!("value {at} is not finite; the file is damaged, fetch it again");
            Err(weight_error(file, name, message))
        }
    }
}
