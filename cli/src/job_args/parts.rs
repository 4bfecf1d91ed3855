//! Everything that a pipeline file needs, for storing it on a farm.

use super::{Recipe, Weights};
use crate::model_args::{self, ModelArgs};
use anyhow::{Context, Result, bail};
use longtake_common::Hash;
use longtake_common::model::{Hashes, Listed, Part, Role, find_config, find_model};
use longtake_common::pipeline::Pipeline;
use longtake_common::spec::ModelRef;
use std::path::Path;

/// A set of models, hashed, and the pipeline file that names them.
#[derive(Debug)]
pub struct ModelSet {
    /// The models, the checkpoint first.
    pub parts: Vec<(Part, Listed)>,
    /// The pipeline file's text, which needs no other file; `None`: nobody says how it is sampled.
    pub pipeline: Option<String>,
}

impl ModelSet {
    /// What the pipeline file `config` needs: checkpoints, upscaler, text encoder. All of them are
    /// opened before any is hashed.
    ///
    /// # Errors
    /// When one is missing or is not what it should be.
    pub fn of_pipeline(config: &str, text_encoder: Option<String>) -> Result<Self> {
        let file = find_config(config)?;
        let text = Pipeline::flattened(&file)?;
        let path = file
            .to_str()
            .with_context(|| format!("the path {} is not UTF-8", file.display()))?;
        let mut recipe = Recipe::find((Some(path), None), Weights::Required)?;
        let model = outline(
            &recipe.model,
            text_encoder,
            recipe.text_encoder.as_deref(),
            recipe.eight_bit,
        )?;
        recipe.complete_passes(&model);
        recipe.check_passes()?;
        let mut set = Self::of_model(&model)?;
        let own = recipe
            .sampling
            .passes()
            .filter_map(|pass| pass.model.as_ref());
        for own in own {
            set.add(Role::PassCheckpoint, own)?;
        }
        if let Some(second) = &recipe.sampling.second_pass {
            set.add(Role::Upscaler, &second.upscaler)?;
        }
        set.pipeline = Some(text);
        Ok(set)
    }

    /// A checkpoint and the text encoder that is named, or lies beside it.
    pub fn of_checkpoint(checkpoint: &str, text_encoder: Option<String>) -> Result<Self> {
        Self::of_model(&outline(checkpoint, text_encoder, None, false)?)
    }

    fn of_model(model: &ModelRef) -> Result<Self> {
        let mut set = Self {
            parts: Vec::new(),
            pipeline: None,
        };
        set.add(Role::Checkpoint, model)?;
        if let Some(text_encoder) = &model.text_encoder {
            set.add(Role::TextEncoder, text_encoder)?;
        }
        Ok(set)
    }

    /// Lists and hashes a part. One that two passes share is there once.
    fn add(&mut self, role: Role, model: &ModelRef) -> Result<()> {
        let path = find_model(&model.location)?;
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            bail!(
                "{} has no name that can be stored; rename it",
                path.display()
            );
        };
        let listed = match role {
            Role::TextEncoder => {
                longtake_agent::check_whole_text_encoder(&path)?;
                Listed::of_text_encoder(&path, &Hashes::usual())?
            }
            Role::Checkpoint | Role::PassCheckpoint | Role::Upscaler => {
                longtake_agent::check_whole_model(&path)?;
                Listed::of(&path, &Hashes::usual())?
            }
        };
        let part = Part {
            role,
            name: name.to_owned(),
            hash: listed.manifest.hash(),
        };
        let is_same = |(other, _): &&(Part, Listed)| other.name == part.name;
        match self.parts.iter().find(is_same) {
            Some((other, _)) if role != Role::TextEncoder && other.hash == part.hash => {}
            Some(_) if role != Role::TextEncoder => bail!(
                "two of the pipeline's files are called {name}, and jobs name them by that: rename one"
            ),
            _ => self.parts.push((part, listed)),
        }
        Ok(())
    }

    /// The set's own list.
    pub fn listed(&self, pipeline: Option<&Path>) -> Result<Listed> {
        let parts = self.parts.iter().map(|(part, _)| part.clone()).collect();
        Ok(Listed::of_set(parts, pipeline, &Hashes::forgetful())?)
    }

    /// Hashes of the parts, each once.
    pub fn hashes(&self) -> std::collections::BTreeSet<Hash> {
        self.parts.iter().map(|(part, _)| part.hash).collect()
    }
}

/// A model whose headers are as they should be.
fn outline(
    name: &str,
    text_encoder: Option<String>,
    listed: Option<&str>,
    eight_bit: bool,
) -> Result<ModelRef> {
    let args = ModelArgs::with_text_encoder(text_encoder);
    let model = args.outline(name, listed, eight_bit)?;
    longtake_agent::check_model(&model)?;
    model_args::hashed(model)
}
