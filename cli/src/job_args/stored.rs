//! Jobs with a model that is stored where they go to.

use super::recipe::found_beside;
use super::{CONFIG_DEFAULT, JobArgs, Recipe, Weights};
use crate::model_args;
use anyhow::{Result, anyhow};
use longtake_common::Hash;
use longtake_common::film::Film;
use longtake_common::model::{PIPELINE_FILE, Part, Role, find_config};
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
    /// What it consists of when it is a set.
    pub parts: &'a [Part],
}

impl Stored<'_> {
    /// The part that a pipeline file calls `name`: whatever folder it names, the file is the same.
    pub fn part(&self, name: &str) -> Option<&Part> {
        let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let mut parts = self.parts.iter();
        parts.find(|part| part.name == name && part.role != Role::TextEncoder)
    }

    fn part_of(&self, role: Role) -> Option<ModelRef> {
        let part = self.parts.iter().find(|part| part.role == role)?;
        Some(ModelRef::new(&*part.name, part.hash))
    }
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

    /// What a set made from the pipeline file that is asked for is called, where no model is.
    pub fn set_name(&self) -> Result<Option<String>> {
        let film = self.film.as_deref().map(Film::read).transpose()?;
        let (Some(config), None) = self.sources(film.as_ref()) else {
            return Ok(None);
        };
        let stem = Path::new(config).file_name().and_then(|name| name.to_str());
        let stem = stem.map(|name| name.trim_end_matches(".yaml").trim_end_matches(".yml"));
        Ok(stem.map(str::to_owned))
    }

    /// Name or path of the model that is asked for.
    pub fn model_name(&self) -> Result<String> {
        let film = self.film.as_deref().map(Film::read).transpose()?;
        let (config, model) = self.sources(film.as_ref());
        if let Some(model) = model {
            return Ok(model.to_owned());
        }
        let config = find_config(config.unwrap_or(CONFIG_DEFAULT))?;
        let pipeline = Pipeline::read(&config)?;
        Ok(found_beside(pipeline.model(), config.parent()))
    }

    /// How a stored model is to be sampled: as the pipeline file says, else as its own configuration
    /// does.
    pub(super) fn stored_recipe(&self, film: Option<&Film>, stored: &Stored<'_>) -> Result<Recipe> {
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| anyhow!("the temporary folder's path is not UTF-8"))
        };
        let sources = self.sources(film);
        let pipeline = stored.folder.join(PIPELINE_FILE);
        if sources.0.is_none() && pipeline.is_file() {
            let sources = (Some(&*text(&pipeline)?), None);
            return Recipe::find(sources, Weights::Stored(*stored));
        }
        if let (Some(_), _) | (None, None) = sources {
            return Recipe::find(sources, Weights::Stored(*stored));
        }
        Recipe::of_folder(&text(stored.folder)?).map_err(|error| {
            anyhow!(
                "the stored model '{}' does not say how it is sampled ({error:#}): give --config",
                stored.name
            )
        })
    }

    /// The stored model with what the flags add to it.
    pub(super) fn stored_model(&self, recipe: &Recipe, stored: &Stored<'_>) -> Result<ModelRef> {
        let text_encoder = recipe.text_encoder.as_deref();
        let whole = || ModelRef::new(stored.name, stored.hash);
        let named = stored.part_of(Role::Checkpoint).unwrap_or_else(whole);
        let parts = &self.parts;
        let mut model = parts.complete(named, false, text_encoder, recipe.eight_bit)?;
        if model.text_encoder.is_none() {
            model.text_encoder = stored.part_of(Role::TextEncoder).map(Box::new);
        }
        model_args::hashed(model)
    }
}
