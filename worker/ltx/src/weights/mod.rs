//! Weight files: memory-mapped safetensors, one file or several, under any of the names that their
//! tensors go by (see [`crate::names`]).
//!
//! Nothing is copied that a backend can read where it lies.

mod file;
mod quantise;
mod scan;
mod shards;

pub use file::WeightFile;
pub(crate) use quantise::{is_quantised, to_e4m3};
pub(crate) use shards::{counted_set, shards, weight_files};

use crate::error::{Error, Result};
use crate::lora::Loras;
use crate::names::{Part, SCALE_ENDINGS, Style};
use longtake_tensor::{DType, KeptWeight, Loader, Shape, Storage, WeightView};
use safetensors::tensor::Dtype;
use scan::Target;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The weights of one part of a model.
pub struct Weights {
    files: Vec<Arc<WeightFile>>,
    /// From the engine's names to file and name in it.
    index: BTreeMap<String, (usize, String)>,
    /// File or folder, for messages about tensors that no file has.
    place: PathBuf,
    /// The names asked for so far.
    asked: Mutex<BTreeSet<String>>,
    /// Whether some of the 8-bit floats have scales, so that all must: one without would be used as if its
    /// scale were 1.
    is_scaled: bool,
    /// Keeps the large matrices of the blocks in 8 bits, whatever the file has.
    quantises: bool,
    /// Additions to the matrices.
    loras: Loras,
    /// Set when problems are collected rather than returned.
    problems: Option<Mutex<Vec<Error>>>,
}

/// How closely weights are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrutiny {
    /// Names, shapes, types, lengths: nothing large is read.
    Headers,
    /// Every value too: it must be finite.
    Values,
}

/// A tensor where it lies.
struct Stored<'a> {
    file: &'a Arc<WeightFile>,
    /// Its name in the file.
    name: &'a str,
    shape: Shape,
    dtype: DType,
    /// Its bytes in the file.
    range: std::ops::Range<usize>,
}

impl Weights {
    /// Opens the weights of `part` in `folder`; with [`Scrutiny::Values`] all of them are looked at.
    pub fn open(folder: &Path, stem: &str, part: Part, scrutiny: Scrutiny) -> Result<Self> {
        let files = weight_files(folder, stem)?;
        let files = files
            .iter()
            .map(|path| WeightFile::open(path).map(Arc::new));
        let weights = Self::of_files(files.collect::<Result<_>>()?, part, folder)?;
        if scrutiny == Scrutiny::Values {
            weights.check_values()?;
        }
        Ok(weights)
    }

    /// The weights of `part` in one file.
    pub fn open_file(path: &Path, part: Part, scrutiny: Scrutiny) -> Result<Self> {
        let file = Arc::new(WeightFile::open(path)?);
        let weights = Self::of_files(vec![file], part, path)?;
        if scrutiny == Scrutiny::Values {
            weights.check_values()?;
        }
        Ok(weights)
    }

    /// Entry `key` of the first file's metadata, which is JSON.
    pub fn metadata_json<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let text = self.files.first().and_then(|file| file.text(key));
        let text = text.ok_or_else(|| Error::WeightFile {
            path: self.place.clone(),
            message: format!("has no `{key}` in its metadata; it was saved by another program"),
        })?;
        serde_json::from_str(text).map_err(|source| Error::ConfigSyntax {
            path: self.place.clone(),
            source,
        })
    }

    /// The weights of `part` in `files`; `place` is for messages.
    pub fn of_files(files: Vec<Arc<WeightFile>>, part: Part, place: &Path) -> Result<Self> {
        let mut index = BTreeMap::new();
        let all = || files.iter().flat_map(|file| file.names());
        // All files of a part are of one style, though each has only some of its names.
        if let Some(style) = Style::detect(part, all().collect::<Vec<_>>().into_iter()) {
            for (number, file) in files.iter().enumerate() {
                for name in file.names() {
                    let Some(canonical) = style.canonical(name) else {
                        continue;
                    };
                    if index.insert(canonical, (number, name.to_owned())).is_some() {
                        let message = "is there twice; keep one of the files that have it";
                        return Err(file.error(name, message.to_owned()));
                    }
                }
            }
        }
        let place = match files.as_slice() {
            [file] => file.path().to_owned(),
            _ => place.to_owned(),
        };
        let is_scaled = is_scaled(&files, &index);
        Ok(Self {
            files,
            index,
            place,
            is_scaled,
            asked: Mutex::default(),
            quantises: false,
            loras: Loras::none(),
            problems: None,
        })
    }

    /// Has the large matrices of the blocks kept in 8 bits.
    pub fn quantised(mut self, quantises: bool) -> Self {
        self.quantises = quantises;
        self
    }

    /// Has `loras` added to the matrices.
    pub fn with_loras(mut self, loras: Loras) -> Self {
        self.loras = loras;
        self
    }

    /// Has problems collected for [`Weights::problems`]; what is missing counts as zeros meanwhile.
    pub(crate) fn collecting(mut self) -> Self {
        self.problems = Some(Mutex::default());
        self
    }

    /// The problems collected.
    pub(crate) fn problems(&self) -> Vec<Error> {
        match &self.problems {
            None => Vec::new(),
            Some(problems) => std::mem::take(&mut *lock(problems)),
        }
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Whether there is any tensor.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The files.
    pub(crate) fn files(&self) -> &[Arc<WeightFile>] {
        &self.files
    }

    /// All tensors by the engine's names, as they are stored and without their scales' effect.
    pub(crate) fn all_kept(&self) -> Result<Vec<(String, KeptWeight, Dtype)>> {
        let all = self.index.iter().map(|(name, (number, raw))| {
            let file = &self.files[*number];
            let dtype = file
                .stored_as(raw)
                .map_or(Dtype::F32, |(_, dtype, _)| dtype);
            Ok((name.clone(), file.kept(raw)?, dtype))
        });
        all.collect()
    }

    /// The engine's names of all tensors, with the bytes that each takes and its shape.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, DTypeName, usize, Vec<usize>)> {
        self.index.iter().filter_map(|(name, (number, raw))| {
            let (bytes, dtype, shape) = self.files[*number].stored_as(raw)?;
            Some((name.as_str(), format!("{dtype:?}"), bytes, shape))
        })
    }

    /// Shape of tensor `name`.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (number, raw) = self.index.get(name)?;
        let (_, _, shape) = self.files[*number].stored_as(raw)?;
        Some(shape)
    }

    /// Looks at every value; see [`scan`].
    pub fn check_values(&self) -> Result<()> {
        let mut targets = Vec::with_capacity(self.index.len());
        for canonical in self.index.keys() {
            // What is of no known type is nobody's, or refused when it is asked for.
            if let Ok(stored) = self.stored(canonical) {
                targets.push(Target {
                    file: Arc::clone(stored.file),
                    name: stored.name.to_owned(),
                    dtype: stored.dtype,
                    range: stored.range,
                });
            }
        }
        scan::check_finite(&targets)
    }

    /// Fails when the files have tensors of this part that nobody asked for: their configuration
    /// is not theirs.
    pub(crate) fn check_all_asked(&self) -> Result<()> {
        let asked = lock(&self.asked);
        let is_scale = |name: &str| {
            let layer = |ending| Some(format!("{}weight", name.strip_suffix(ending)?));
            let weight = SCALE_ENDINGS.iter().find_map(layer);
            weight.is_some_and(|weight| asked.contains(&weight))
        };
        let mut left = self
            .index
            .keys()
            .filter(|name| !asked.contains(*name) && !is_scale(name));
        let Some(first) = left.next() else {
            return Ok(());
        };
        let (number, raw) = &self.index[first];
        let message = match left.count() {
            0 => "has no place in the model that the configuration describes".to_owned(),
            others => format!(
                "and {others} others have no place in the model that the configuration describes"
            ),
        };
        Err(self.files[*number].error(raw, message))
    }

    fn stored(&self, name: &str) -> Result<Stored<'_>> {
        let found = self
            .index
            .get_key_value(name)
            .and_then(|(_, (number, raw))| {
                let file = &self.files[*number];
                Some((file, raw, file.info(raw)?))
            });
        let Some((file, raw, info)) = found else {
            let message = "is missing; the file does not go with its configuration".to_owned();
            return Err(Error::Weight {
                path: self.place.clone(),
                tensor: name.to_owned(),
                message,
            });
        };
        let (shape, dtype) = file.tensor(raw, info)?;
        let (from, to) = info.data_offsets;
        Ok(Stored {
            file,
            name: raw,
            shape,
            dtype,
            range: file.base + from..file.base + to,
        })
    }

    /// Scale of the 8-bit tensor `name`, if there is one: a factor, or one for each row.
    fn scale(&self, name: &str) -> Result<Option<Arc<[f32]>>> {
        let Some(layer) = name.strip_suffix("weight") else {
            return Ok(None);
        };
        let names = SCALE_ENDINGS.map(|ending| format!("{layer}{ending}"));
        let Some(scale) = names.iter().find(|name| self.has(name)) else {
            return Ok(None);
        };
        let stored = self.stored(scale)?;
        let wrong = |message: String| stored.file.error(stored.name, message);
        if stored.dtype.bytes() == 1 {
            return Err(wrong(format!("is {}; F32 is expected", stored.dtype)));
        }
        let bytes = &stored.file.map[stored.range.clone()];
        let view = WeightView::new(stored.shape, stored.dtype, bytes, None);
        let values = view.map_err(|e| wrong(e.to_string()))?.to_f32();
        scan::check_scale(stored.file, stored.name, &values)?;
        Ok(Some(values.into()))
    }

    /// Tensor `name`, which must have `shape`, as it is stored.
    fn kept(&self, name: &str, shape: &[usize]) -> Result<KeptWeight> {
        lock(&self.asked).insert(name.to_owned());
        let stored = self.stored(name)?;
        let wrong = |message: String| stored.file.error(stored.name, message);
        if stored.shape.dims() != shape {
            let found = stored.shape;
            return Err(wrong(format!(
                "has shape {found}; the configuration asks for {shape:?}: give the file that belongs to the \
                 configuration, or fetch both again"
            )));
        }
        let scale = match stored.dtype.bytes() {
            1 => self.scale(name)?,
            _ => None,
        };
        if stored.dtype == DType::I8 && scale.is_none() {
            return Err(wrong("is I8 without a scale_weight beside it".to_owned()));
        }
        let is_scaled = self.is_scaled && shape.len() > 1 && has_scale(name);
        if stored.dtype == DType::F8E4M3 && scale.is_none() && is_scaled {
            let message = "has no scale_weight beside it, but others have; the file is not whole, fetch \
                           it again";
            return Err(wrong(message.to_owned()));
        }
        let storage: Storage = Arc::clone(&stored.file.map) as Storage;
        KeptWeight::new(
            stored.shape,
            stored.dtype,
            storage,
            stored.range.clone(),
            scale,
        )
        .map_err(|e| wrong(e.to_string()))
    }

    /// The same, or zeros where problems are collected.
    fn kept_or_zeros(&self, name: &str, shape: &[usize]) -> Result<KeptWeight> {
        match (self.kept(name, shape), &self.problems) {
            (Err(problem), Some(problems)) => lock(problems).push(problem),
            (found, _) => return found,
        }
        let zeros = Shape::try_new(shape).and_then(|shape| {
            let length = shape.count().checked_mul(DType::F32.bytes())?;
            KeptWeight::new(
                shape,
                DType::F32,
                Arc::new(vec![0; length]),
                0..length,
                None,
            )
            .ok()
        });
        zeros.ok_or_else(|| {
            let message = format!("cannot have shape {shape:?}");
            let (path, tensor) = (self.place.clone(), name.to_owned());
            Error::Weight {
                path,
                tensor,
                message,
            }
        })
    }

    /// Gives `f` tensor `name`, which must have `shape`, as it is stored.
    pub fn with_view<T>(
        &self,
        name: &str,
        shape: &[usize],
        f: impl FnOnce(&WeightView<'_>) -> longtake_tensor::Result<T>,
    ) -> Result<T> {
        let kept = self.kept_or_zeros(name, shape)?;
        f(&kept.view()).map_err(|e| self.refused(name, &e))
    }

    /// An error of the backend about tensor `name`.
    fn refused(&self, name: &str, error: &longtake_tensor::Error) -> Error {
        let found = self.index.get(name);
        let path = found.map_or(&self.place, |(number, _)| &self.files[*number].path);
        Error::Weight {
            path: path.clone(),
            tensor: found.map_or(name, |(_, raw)| raw).to_owned(),
            message: error.to_string(),
        }
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
        self.linear(b, layer, [n, k], bias, |weight, bias| {
            b.matrix(weight, bias)
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
        self.linear(b, layer, [n, k], bias, |weight, bias| {
            b.block_matrix(weight, bias)
        })
    }

    fn linear<B: Loader>(
        &self,
        b: &B,
        layer: &str,
        shape: [usize; 2],
        bias: bool,
        prepare: impl FnOnce(&WeightView<'_>, Option<&[f32]>) -> longtake_tensor::Result<B::Matrix>,
    ) -> Result<B::Matrix> {
        let bias = bias
            .then(|| self.values(&format!("{layer}.bias"), &shape[..1]))
            .transpose()?;
        let name = format!("{layer}.weight");
        let mut kept = self.kept_or_zeros(&name, &shape)?;
        let refused = |e: longtake_tensor::Error| self.refused(&name, &e);
        if self.quantises && is_quantised(&name, 2) && kept.view().dtype().bytes() > 1 {
            kept = to_e4m3(&kept.view()).map_err(refused)?;
        }
        // Last: 8 bits would lose much of what is added.
        if let Some(fused) = self.loras.fused(layer, &kept.view())? {
            kept = fused;
        }
        let mut matrix = prepare(&kept.view(), bias.as_deref()).map_err(refused)?;
        self.loras.attach(b, layer, shape, &mut matrix)?;
        Ok(matrix)
    }

    /// Convolution `layer` of 3 x 3 cells that keeps frames apart, stored without an axis for time.
    pub fn conv2d<B: Loader>(
        &self,
        b: &B,
        layer: &str,
        out: usize,
        channels: usize,
    ) -> Result<B::Conv> {
        let bias = self.values(&format!("{layer}.bias"), &[out])?;
        let shape = [out, channels, 3, 3];
        self.with_view(&format!("{layer}.weight"), &shape, |w| {
            let shape = Shape::from([out, channels, 1, 3, 3]);
            let flat = WeightView::new(shape, w.dtype(), w.bytes(), w.scale())?;
            b.conv(&flat, Some(&bias))
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

/// Whether some 8-bit float of `index` has a scale.
fn is_scaled(files: &[Arc<WeightFile>], index: &BTreeMap<String, (usize, String)>) -> bool {
    let is_narrow = |name: &str| {
        let stored = index.get(name).and_then(|(n, raw)| files[*n].info(raw));
        stored.is_some_and(|info| info.dtype == Dtype::F8_E4M3)
    };
    let weight = |name: &str| {
        let layer = |ending| Some(format!("{}weight", name.strip_suffix(ending)?));
        SCALE_ENDINGS.iter().find_map(layer)
    };
    index
        .keys()
        .filter_map(|name| weight(name))
        .any(|weight| is_narrow(&weight))
}

/// Whether tensor `name` has a scale where its file has any: tables of embeddings are cast as they are.
fn has_scale(name: &str) -> bool {
    let is_table = name == "shared.weight" || name.ends_with("relative_attention_bias.weight");
    name.ends_with(".weight") && !is_table
}

/// How a file calls an element type.
pub type DTypeName = String;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
