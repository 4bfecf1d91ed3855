//! Jobs with a model that is stored where they go to.

use super::{CONFIG_DEFAULT, JobArgs, Recipe, Weights};
use crate::model_args;
use anyhow::{Result, anyhow};
use longtake_common::Hash;
use longtake_common::film::Film;
use longtake_common::model::find_config;
use longtake_common::pipeline::Pipeline;
use longtake_common::spec::ModelRef;
use std::path::Path;

/// A model that is stored where the job goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    /// What it is called there.
    pub name: &'a str,
    /// What it is.
    pub hash: Hash,
    /// A folder with its configuration, without its weights.
    pub folder: &'a Path,
}

impl JobArgs {
    /// Pipeline file and model that are asked for; a flag replaces all that the film file says.
    pub(super) fn sources<'a>(
        &'a self,
        film: Option<&'a Film>,
    ) -> (Option<&'a str>, Option<&'a str>) {
        match (self.config.as_deref(), self.model.as_deref()) {
            (None, None) => (film.and_then(Film::config), film.and_then(Film::model)),
            given => given,
        }
    }

    /// Name or path of the model that is asked for.
    pub fn model_name(&self) -> Result<String> {
        let film = self.film.as_deref().map(Film::read).transpose()?;
        let (config, model) = self.sources(film.as_ref());
        if let Some(model) = model {
            return Ok(model.to_owned());
        }
        let config = find_config(config.unwrap_or(CONFIG_DEFAULT))?;
        Ok(Pipeline::read(&config)?.model().to_owned())
    }

    /// How a stored model is to be sampled: as the pipeline file says, else as its own configuration
    /// does.
    pub(super) fn stored_recipe(&self, film: Option<&Film>, stored: &Stored<'_>) -> Result<Recipe> {
        let sources = self.sources(film);
        if let (Some(_), _) | (None, None) = sources {
            return Recipe::find(sources, Weights::Stored(*stored));
        }
        let folder = stored.folder.to_str();
        let folder = folder.ok_or_else(|| anyhow!("the temporary folder's path is not UTF-8"))?;
        Recipe::of_folder(folder).map_err(|error| {
            anyhow!(
                "the stored model '{}' does not say how it is sampled ({error:#}): give --config",
                stored.name
            )
        })
    }

    /// The stored model with what the flags add to it.
    pub(super) fn stored_model(&self, recipe: &Recipe, stored: &Stored<'_>) -> Result<ModelRef> {
        let text_encoder = recipe.text_encoder.as_deref();
        let named = ModelRef::new(stored.name, stored.hash);
        let parts = &self.parts;
        let model = parts.complete(named, false, text_encoder, recipe.eight_bit)?;
        model_args::hashed_additions(model)
    }
}
