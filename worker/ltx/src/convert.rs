//! Writes a model in another form: an official file as a Diffusers folder, wide weights in 8 bits.
//! One matrix at a time is in memory.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::hash::DIFFUSION_STEM;
use crate::model::check_values;
use crate::source::ModelFiles;
use crate::weights::{Scrutiny, Weights, is_quantised, to_e4m3};
use longtake_tensor::KeptWeight;
use safetensors::View;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The first diffusers that knows models of 0.9.5 and later.
const DIFFUSERS_VERSION: &str = "0.33.0";
const SCHEDULER_CLASS: &str = "FlowMatchEulerDiscreteScheduler";

/// Writes the model of `files` as a Diffusers folder `to`, which must not be there. With
/// `files.quantises` the large matrices are written in 8 bits, with a scale for each row.
/// `progress` is called with each file begun.
///
/// # Errors
/// When the model cannot be read whole, or the folder cannot be written.
pub fn convert(files: &ModelFiles, to: &Path, mut progress: impl FnMut(&Path)) -> Result<()> {
    if !files.loras.is_empty() {
        let message = "LoRAs are added when a model is loaded, not when it is converted";
        return Err(Error::Request {
            what: "convert",
            message: message.to_owned(),
        });
    }
    if to.exists() {
        return Err(Error::Model {
            path: to.to_owned(),
            message: "is there already; name a folder that is not".to_owned(),
        });
    }
    // What cannot be rendered is not converted either.
    check_values(files)?;
    let opened = files.open(Scrutiny::Headers)?;
    for (part, weights) in [("transformer", &opened.transformer), ("vae", &opened.vae)] {
        let quantises = files.quantises && part == "transformer";
        let path = to.join(part).join(format!("{DIFFUSION_STEM}.safetensors"));
        progress(&path);
        write_weights(weights, quantises, &path)?;
    }
    let path = to.join("text_encoder/model.safetensors");
    progress(&path);
    write_weights(&opened.text_encoder, false, &path)?;
    let tokenizer = to.join("tokenizer/spiece.model");
    make_parent(&tokenizer)?;
    std::fs::copy(&opened.tokenizer, &tokenizer).map_err(|source| Error::Write {
        path: tokenizer,
        source,
    })?;
    for (name, value) in configurations(&opened.config) {
        write_json(&to.join(name), &value)?;
    }
    Ok(())
}

/// The configuration files of a Diffusers folder for a model of `config`.
fn configurations(config: &ModelConfig) -> Vec<(&'static str, Value)> {
    let class = |value: Value, class: &str| {
        let mut value = value;
        value["_class_name"] = json!(class);
        value
    };
    let index = json!({
        "_class_name": config.pipeline.diffusers_name(),
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", SCHEDULER_CLASS],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLLTXVideo"],
    });
    let mut text = json!(config.text_encoder);
    text["architectures"] = json!(["T5EncoderModel"]);
    text["model_type"] = json!("t5");
    vec![
        ("model_index.json", index),
        (
            "scheduler/scheduler_config.json",
            class(json!(config.scheduler), SCHEDULER_CLASS),
        ),
        (
            "transformer/config.json",
            class(json!(config.transformer), "LTXVideoTransformer3DModel"),
        ),
        (
            "vae/config.json",
            class(json!(config.vae), "AutoencoderKLLTXVideo"),
        ),
        ("text_encoder/config.json", text),
    ]
}

/// A tensor that is made when it is written.
struct Lazy {
    kept: KeptWeight,
    part: LazyPart,
    dtype: Dtype,
    shape: Vec<usize>,
    length: usize,
}

enum LazyPart {
    Stored,
    EightBits,
    Scales,
}

impl View for &Lazy {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let stored = || Cow::Owned(self.kept.view().bytes().to_vec());
        match self.part {
            LazyPart::Stored => stored(),
            // The shapes were checked when the weight was listed.
            LazyPart::EightBits => to_e4m3(&self.kept.view())
                .map_or_else(|_| stored(), |q| Cow::Owned(q.view().bytes().to_vec())),
            LazyPart::Scales => to_e4m3(&self.kept.view()).map_or_else(
                |_| stored(),
                |q| {
                    let scales = q.view().scale().unwrap_or_default().to_vec();
                    Cow::Owned(scales.iter().flat_map(|s| s.to_le_bytes()).collect())
                },
            ),
        }
    }

    fn data_len(&self) -> usize {
        self.length
    }
}

fn write_weights(weights: &Weights, quantises: bool, path: &Path) -> Result<()> {
    let mut tensors: Vec<(String, Lazy)> = Vec::new();
    for (name, kept, dtype) in weights.all_kept()? {
        let (shape, length) = (
            kept.view().shape().dims().to_vec(),
            kept.view().bytes().len(),
        );
        if quantises && is_quantised(&name, shape.len()) && kept.view().dtype().bytes() > 1 {
            let layer = name.strip_suffix("weight").unwrap_or(&name);
            let rows = shape[0];
            let scales = Lazy {
                kept: kept.clone(),
                part: LazyPart::Scales,
                dtype: Dtype::F32,
                shape: vec![rows],
                length: 4 * rows,
            };
            tensors.push((format!("{layer}scale_weight"), scales));
            let count = shape.iter().product();
            let part = LazyPart::EightBits;
            let narrow = Lazy {
                kept,
                part,
                dtype: Dtype::F8_E4M3,
                shape,
                length: count,
            };
            tensors.push((name, narrow));
        } else {
            let part = LazyPart::Stored;
            tensors.push((
                name,
                Lazy {
                    kept,
                    part,
                    dtype,
                    shape,
                    length,
                },
            ));
        }
    }
    make_parent(path)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors.iter().map(|(name, lazy)| (name.as_str(), lazy));
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| Error::Write {
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })
}

fn write_json(path: &PathBuf, value: &Value) -> Result<()> {
    make_parent(path)?;
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    std::fs::write(path, text).map_err(|source| Error::Write {
        path: path.clone(),
        source,
    })
}

fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|source| Error::Write {
        path: folder.to_owned(),
        source,
    })
}
