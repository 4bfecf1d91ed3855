//! LoRA: low-rank additions to the transformer's linear layers, under the names that diffusers and
//! peft, ComfyUI, or kohya's scripts give them.
//!
//! `y = x W^T + b + strength alpha / rank (x down^T) up^T`, as a side branch of the layer, or fused
//! into a copy of its matrix.

use crate::config::TransformerConfig;
use crate::error::{Error, Result};
use crate::names::transformer_layer;
use crate::weights::WeightFile;
use longtake_tensor::{DType, KeptWeight, Loader, Storage, WeightView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What stands before the name of a layer, the longest first where one begins with another.
const PREFIXES: [&str; 5] = [
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_unet_",
];
/// What stands behind it: the matrix `[R, K]`.
const DOWN_ENDINGS: [&str; 5] = [
    ".lora_A.weight",
    ".lora_A.default.weight",
    ".lora_down.weight",
    ".lora.down.weight",
    ".lora_linear_layer.down.weight",
];
/// The matrix `[N, R]`.
const UP_ENDINGS: [&str; 5] = [
    ".lora_B.weight",
    ".lora_B.default.weight",
    ".lora_up.weight",
    ".lora.up.weight",
    ".lora_linear_layer.up.weight",
];
/// The figure that is divided by the rank.
const ALPHA_ENDING: &str = ".alpha";
/// Metadata in which diffusers keeps peft's configuration.
const PEFT_METADATA: &str = "lora_adapter_metadata";
/// Metadata of IC-LoRAs that were trained with smaller reference videos.
const REFERENCE_METADATA: &str = "reference_downscale_factor";

/// A LoRA that is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraFile {
    /// The file.
    pub path: PathBuf,
    /// Factor on what it adds.
    pub strength: f32,
}

/// What a LoRA says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoraInfo {
    /// Layers that it changes.
    pub layers: usize,
    /// Its largest rank.
    pub rank: usize,
    /// Whose spelling of the names it has: `diffusers`, `comfyui`, `kohya`, `peft` or `bare`.
    pub style: &'static str,
    /// Width of the transformer that it is for, where it changes an attention.
    pub width: Option<usize>,
    /// Blocks that the transformer has at least.
    pub blocks: usize,
    /// Whether it takes a reference video: an IC-LoRA, by its metadata or its name.
    pub is_ic: bool,
    /// IC-LoRA: how much smaller than the film its reference video is; `None`: as large, or no
    /// IC-LoRA.
    pub reference_downscale_factor: Option<f64>,
}

impl LoraInfo {
    /// The models that it fits, by the width of the attentions that it changes.
    pub(crate) fn family(&self) -> Option<String> {
        let of_ltx = self.blocks > 0;
        Some(match self.width.filter(|_| of_ltx)? {
            4096 => "LTX-Video 13B".to_owned(),
            2048 => "LTX-Video 2B".to_owned(),
            width => format!("LTX-Video, {width} wide"),
        })
    }
}

struct Branch {
    down: KeptWeight,
    up: KeptWeight,
    scale: f32,
}

/// The LoRAs of a model, by layer.
pub struct Loras {
    branches: Arc<BTreeMap<String, Vec<Branch>>>,
    fuses: bool,
}

/// The two matrices and the alpha of a layer, as they are found.
#[derive(Default)]
struct Found<'a> {
    down: Option<&'a str>,
    up: Option<&'a str>,
    alpha: Option<&'a str>,
}

impl Loras {
    /// Nothing is added.
    pub fn none() -> Self {
        Self {
            branches: Arc::default(),
            fuses: false,
        }
    }

    /// Opens `files` for a transformer of configuration `config`. `fuses`: the matrices that they
    /// touch are copied and changed, rather than computed beside.
    ///
    /// # Errors
    /// When a file cannot be read, is for another model, or contradicts itself.
    pub fn open(files: &[LoraFile], config: &TransformerConfig, fuses: bool) -> Result<Self> {
        let layers = config.linear_layers();
        let mut branches: BTreeMap<String, Vec<Branch>> = BTreeMap::new();
        for lora in files {
            if !lora.strength.is_finite() {
                return Err(Error::Request {
                    what: "LoRA strength",
                    message: format!("{} is not a finite number", lora.strength),
                });
            }
            let file = WeightFile::open(&lora.path)?;
            for (layer, branch) in read(&file, &layers, lora.strength)? {
                branches.entry(layer).or_default().push(branch);
            }
        }
        Ok(Self {
            branches: Arc::new(branches),
            fuses,
        })
    }

    /// Whether anything is added.
    pub fn is_empty(&self) -> bool {
        self.branches.is_empty()
    }

    /// The changed copy of the matrix of `layer`, when LoRAs are fused and touch it: in 32 bits, because
    /// what they add is often less than a step of fewer.
    pub(crate) fn fused(&self, layer: &str, weight: &WeightView<'_>) -> Result<Option<KeptWeight>> {
        let Some(branches) = self.branches.get(layer).filter(|_| self.fuses) else {
            return Ok(None);
        };
        let mut values = weight.to_f32();
        for branch in branches {
            add_product(
                &mut values,
                &branch.up.view(),
                &branch.down.view(),
                branch.scale,
            );
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let (range, storage) = (0..bytes.len(), Arc::new(bytes) as Storage);
        KeptWeight::new(weight.shape(), DType::F32, storage, range, None)
            .map(Some)
            .map_err(|error| backend(layer, error))
    }

    /// Adds what there is for `layer` `[n, k]` to its prepared matrix.
    pub(crate) fn attach<B: Loader>(
        &self,
        b: &B,
        layer: &str,
        shape: [usize; 2],
        matrix: &mut B::Matrix,
    ) -> Result<()> {
        let none = Vec::new();
        let branches = self.branches.get(layer).filter(|_| !self.fuses);
        for branch in branches.unwrap_or(&none) {
            debug_assert_eq!(branch.up.view().shape().dims()[0], shape[0]);
            b.add_low_rank(matrix, &branch.down.view(), &branch.up.view(), branch.scale)
                .map_err(|error| backend(layer, error))?;
        }
        Ok(())
    }
}

fn backend(layer: &str, source: longtake_tensor::Error) -> Error {
    Error::Backend {
        part: format!("the LoRA of {layer}"),
        source,
    }
}

/// What file `path` says of itself.
///
/// # Errors
/// As [`Loras::open`], but for what only the model can tell.
pub fn lora_info(path: &Path) -> Result<LoraInfo> {
    let file = WeightFile::open(path)?;
    let found = matrices(&file)?;
    let side = |name: Option<&str>| file.stored_as(name?)?.2.first().copied();
    let is_attention = |name: &str| ["attn1", "attn2"].iter().any(|part| name.contains(part));
    let attention = found.iter().find(|(name, _)| is_attention(name));
    let factor = reference_factor(&file)?;
    Ok(LoraInfo {
        layers: found.len(),
        rank: found
            .values()
            .filter_map(|f| side(f.down))
            .max()
            .unwrap_or(0),
        style: style(found.keys().copied()),
        width: attention.and_then(|(_, found)| side(found.up)),
        blocks: found
            .keys()
            .filter_map(|name| block(name))
            .max()
            .map_or(0, |last| last + 1),
        is_ic: factor.is_some() || says_ic(path),
        reference_downscale_factor: factor,
    })
}

/// Whose spelling layers have.
fn style<'a>(mut layers: impl Iterator<Item = &'a str>) -> &'static str {
    let first = layers.next().unwrap_or("");
    let styles = [
        ("base_model.", "peft"),
        ("model.diffusion_model.", "comfyui"),
        ("diffusion_model.", "comfyui"),
        ("transformer.", "diffusers"),
        ("lora_unet_", "kohya"),
    ];
    let found = styles.iter().find(|(prefix, _)| first.starts_with(prefix));
    found.map_or("bare", |(_, style)| style)
}

/// Index of the block that layer `name` is in.
fn block(name: &str) -> Option<usize> {
    let (_, rest) = name.split_once("transformer_blocks")?;
    rest.get(1..)?.split(['.', '_']).next()?.parse().ok()
}

/// Whether the file is called an IC-LoRA, as Lightricks calls its own.
fn says_ic(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_lowercase().replace(['_', '.', ' '], "-");
    name.contains("ic-lora") || name.contains("iclora")
}

/// Whether a file with tensors `names` is a LoRA.
pub(crate) fn is_lora<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| DOWN_ENDINGS.iter().any(|ending| name.ends_with(ending)))
}

fn reference_factor(file: &WeightFile) -> Result<Option<f64>> {
    let Some(text) = file.text(REFERENCE_METADATA) else {
        return Ok(None);
    };
    match text.trim().parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor >= 1.0 => Ok(Some(factor)),
        _ => Err(refuse(
            file,
            format!("its metadata has {REFERENCE_METADATA}: {text}, which is no factor from 1"),
        )),
    }
}

fn refuse(file: &WeightFile, message: String) -> Error {
    Error::Lora {
        path: file.path().to_owned(),
        message,
    }
}

/// The matrices in `file`, by the name that it gives the layer.
fn matrices(file: &WeightFile) -> Result<BTreeMap<&str, Found<'_>>> {
    let mut found: BTreeMap<&str, Found<'_>> = BTreeMap::new();
    for name in file.names() {
        let without =
            |endings: &[&str]| endings.iter().find_map(|ending| name.strip_suffix(ending));
        if let Some(layer) = without(&DOWN_ENDINGS) {
            found.entry(layer).or_default().down = Some(name);
        } else if let Some(layer) = without(&UP_ENDINGS) {
            found.entry(layer).or_default().up = Some(name);
        } else if let Some(layer) = name.strip_suffix(ALPHA_ENDING) {
            found.entry(layer).or_default().alpha = Some(name);
        } else {
            let message = format!(
                "tensor `{name}` is no part of a LoRA that is understood (lora_A and lora_B, or \
                 lora_down and lora_up)"
            );
            return Err(refuse(file, message));
        }
    }
    if found.is_empty() {
        return Err(refuse(file, "it has no tensors".to_owned()));
    }
    Ok(found)
}

fn read(
    file: &WeightFile,
    layers: &BTreeMap<String, [usize; 2]>,
    strength: f32,
) -> Result<Vec<(String, Branch)>> {
    reference_factor(file)?;
    let peft_alpha = peft_alpha(file)?;
    let by_underscores: BTreeMap<String, &String> = layers
        .keys()
        .map(|layer| (layer.replace('.', "_"), layer))
        .collect();
    let mut branches = Vec::new();
    for (name, found) in matrices(file)? {
        let bare = PREFIXES.iter().fold(name, |name, prefix| {
            name.strip_prefix(prefix).unwrap_or(name)
        });
        // Kohya's scripts write every dot as an underscore, so the name has to be looked up.
        let canonical = match by_underscores.get(&underscored(bare)) {
            Some(layer) if !bare.contains('.') => (*layer).clone(),
            _ => transformer_layer(bare),
        };
        let Some(&shape) = layers.get(&canonical) else {
            let message = format!(
                "it is for another model: it changes `{name}`, a layer that this one does not have"
            );
            return Err(refuse(file, message));
        };
        let branch = branch(file, name, &found, shape, peft_alpha, strength)?;
        branches.push((canonical, branch));
    }
    Ok(branches)
}

/// A name in kohya's spelling with the official segments replaced by diffusers'.
fn underscored(name: &str) -> String {
    let pairs = [("patchify_proj", "proj_in"), ("adaln_single", "time_embed")];
    pairs
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

fn branch(
    file: &WeightFile,
    name: &str,
    found: &Found<'_>,
    [n, k]: [usize; 2],
    peft_alpha: Option<f32>,
    strength: f32,
) -> Result<Branch> {
    let (Some(down), Some(up)) = (found.down, found.up) else {
        let message = format!("layer `{name}` has only one of its two matrices; fetch it again");
        return Err(refuse(file, message));
    };
    let (down, up) = (file.kept(down)?, file.kept(up)?);
    let (down_shape, up_shape) = (down.view().shape(), up.view().shape());
    let (&[rank, down_k], &[up_n, up_rank]) = (down_shape.dims(), up_shape.dims()) else {
        let message = format!("layer `{name}` has matrices {down_shape} and {up_shape}");
        return Err(refuse(file, message));
    };
    if rank != up_rank || rank == 0 {
        let message = format!(
            "layer `{name}` contradicts itself: rank {rank} in {down_shape}, rank {up_rank} in {up_shape}"
        );
        return Err(refuse(file, message));
    }
    if [up_n, down_k] != [n, k] {
        let message = format!(
            "it is for another model: its layer `{name}` is [{up_n}, {down_k}], the model's is [{n}, {k}]"
        );
        return Err(refuse(file, message));
    }
    file.check_values(&[found.down, found.up, found.alpha])?;
    let alpha = match found.alpha {
        None => peft_alpha,
        Some(alpha) => file.kept(alpha)?.view().to_f32().first().copied(),
    };
    let scale = strength * alpha.map_or(1.0, |alpha| alpha / rank as f32);
    Ok(Branch { down, up, scale })
}

/// The alpha that diffusers saved beside the matrices, for all layers.
fn peft_alpha(file: &WeightFile) -> Result<Option<f32>> {
    let Some(text) = file.text(PEFT_METADATA) else {
        return Ok(None);
    };
    let metadata: Value = serde_json::from_str(text).map_err(|source| Error::ConfigSyntax {
        path: file.path().to_owned(),
        source,
    })?;
    let key = |name: &str| {
        metadata
            .get(format!("transformer.{name}"))
            .or(metadata.get(name))
    };
    for unknown in ["use_dora", "use_rslora"] {
        if key(unknown) == Some(&Value::Bool(true)) {
            let message = format!("it was trained with {unknown}, which is not supported");
            return Err(refuse(file, message));
        }
    }
    let pattern = key("alpha_pattern").and_then(Value::as_object);
    if pattern.is_some_and(|pattern| !pattern.is_empty()) {
        let message = "it has an alpha for each layer in its metadata, which is not supported";
        return Err(refuse(file, message.to_owned()));
    }
    Ok(key("lora_alpha")
        .and_then(Value::as_f64)
        .map(|alpha| alpha as f32))
}

/// `values += scale up down`, row by row.
fn add_product(values: &mut [f32], up: &WeightView<'_>, down: &WeightView<'_>, scale: f32) {
    let (rank, k) = (down.shape().rows(), down.shape().last());
    let (up, down) = (up.to_f32(), down.to_f32());
    for (row, up) in values.chunks_exact_mut(k).zip(up.chunks_exact(rank)) {
        for (factor, down) in up.iter().zip(down.chunks_exact(k)) {
            let factor = scale * factor;
            for (value, down) in row.iter_mut().zip(down) {
                *value += factor * down;
            }
        }
    }
}
