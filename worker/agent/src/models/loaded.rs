//! The model that the device lane keeps loaded.

use super::{Found, Shelf, Wanted};
use crate::error::{TaskError, story};
use crate::gang::{Crew, Equipment, GangError, GangSettings, Guard};
use crate::work::Desk;
use longtake_common::Hash;
use longtake_common::model::{ModelError, find_model};
use longtake_common::spec::{ModelRef, Sampling};
use longtake_common::task::Share;
use longtake_ltx::weights::Scrutiny;
use longtake_ltx::{Error, LatentUpsampler, LoraFile, Model, ModelFiles};
use longtake_tensor::{Backend, Collective};
use std::path::PathBuf;
use std::sync::Arc;

/// Loads models on demand and keeps the last one: a job's tasks come one after another.
pub struct ModelCache<B: Backend> {
    backend: B,
    shelf: Arc<Shelf>,
    /// Dropped in this order: nothing of the model is in use when it may be removed.
    gang: Option<Formed<B>>,
    crew: Option<Crew>,
    /// Our part of the gang that the task in hand is for, if it says so.
    share: Option<Share>,
    loaded: Option<Loaded<B>>,
    upscaler: Option<(Hash, LatentUpsampler<B>, Found)>,
}

/// A model and where it is from.
struct Loaded<B: Backend> {
    wanted: ModelRef,
    model: Model<B>,
    files: ModelFiles,
    _found: Vec<Found>,
}

/// The model as the leading rank of a gang.
struct Formed<B: Backend> {
    /// Of a gang with other workers, which is for one task. Lets go of the gang before the model does.
    _guard: Option<Guard>,
    share: Option<Share>,
    equipment: Equipment,
    model: Model<B>,
}

impl<B: Backend + 'static> ModelCache<B> {
    /// Nothing is loaded yet. With `gang`, models are shared with other ranks.
    pub fn new(backend: B, shelf: Arc<Shelf>, gang: Option<GangSettings>) -> Self {
        Self {
            backend,
            shelf,
            gang: None,
            crew: gang.map(Crew::new),
            share: None,
            loaded: None,
            upscaler: None,
        }
    }

    /// The model that `wanted` names, with exactly the bytes that it names.
    pub fn get(&mut self, wanted: &ModelRef, desk: &Desk<'_>) -> Result<&Model<B>, TaskError> {
        self.keep(wanted, desk)?;
        self.form(None, desk)?;
        self.ready().ok_or_else(not_kept)
    }

    /// The same with the latent upscaler of `sampling`.
    pub fn refining(
        &mut self,
        wanted: &ModelRef,
        sampling: &Sampling,
        desk: &Desk<'_>,
    ) -> Result<(&Model<B>, Option<&LatentUpsampler<B>>), TaskError> {
        if let Some(second) = &sampling.second_pass {
            self.keep_upscaler(&second.upscaler, desk)?;
        }
        self.keep(wanted, desk)?;
        let path = self
            .upscaler
            .as_ref()
            .map(|(_, _, found)| found.path.clone());
        self.form(path, desk)?;
        let upscaler = self.upscaler.as_ref().map(|(_, upscaler, _)| upscaler);
        Ok((self.ready().ok_or_else(not_kept)?, upscaler))
    }

    /// The loaded model, as a gang's leading rank where there is one.
    fn ready(&self) -> Option<&Model<B>> {
        let shared = self.gang.as_ref().map(|formed| &formed.model);
        shared.or(self.loaded.as_ref().map(|loaded| &loaded.model))
    }

    /// Says which part of a gang the next task is for.
    pub fn set_share(&mut self, share: Option<Share>) {
        self.share = share;
    }

    /// Forms a gang for the loaded model, if there is to be one, unless it stands.
    fn form(&mut self, upscaler: Option<PathBuf>, desk: &Desk<'_>) -> Result<(), TaskError> {
        let ranks = self.ranks()?;
        let (Some(crew), Some(loaded)) = (&mut self.crew, &self.loaded) else {
            return Ok(());
        };
        let fits = |formed: &Formed<B>| {
            let have = &formed.equipment;
            let is_same = formed.share == self.share && formed._guard.is_none();
            let fits = upscaler.is_none() || have.upscaler == upscaler;
            is_same && have.files == loaded.files && fits
        };
        if self.gang.as_ref().is_some_and(fits) {
            return Ok(());
        }
        self.gang = None;
        if ranks == 1 {
            return Ok(());
        }
        let equipment = Equipment {
            files: loaded.files.clone(),
            upscaler,
        };
        let (gang, is_shared) = match self.share.filter(|share| !share.is_whole()) {
            Some(share) => (crew.take_part(share, &equipment, desk.control), true),
            None => (crew.form(ranks, &equipment), false),
        };
        let gang: Arc<dyn Collective<B>> = Arc::new(gang.map_err(unformed)?);
        let guard = is_shared.then(|| guard(&gang, desk)).transpose()?;
        let model = loaded.model.leading(gang).map_err(TaskError::fatal)?;
        self.gang = Some(Formed {
            _guard: guard,
            share: self.share,
            equipment,
            model,
        });
        Ok(())
    }

    /// Ranks of the gang for the loaded model: as many as the task wants, else the most of ours that
    /// divide its heads.
    fn ranks(&self) -> Result<usize, TaskError> {
        let (Some(loaded), most) = (&self.loaded, self.crew.as_ref().map_or(1, Crew::ranks_max))
        else {
            return Ok(1);
        };
        if let Some(share) = self.share {
            let ranks = share.ranks as usize;
            loaded.model.check_ranks(ranks).map_err(TaskError::fatal)?;
            if share.own as usize > most {
                return Err(TaskError::Retryable(format!(
                    "{} ranks are asked of a worker of {most}",
                    share.own
                )));
            }
            return Ok(ranks);
        }
        let heads = loaded.model.config().transformer.num_attention_heads;
        let ranks = (1..=most).rev().find(|&n| heads.is_multiple_of(n));
        let ranks = ranks.unwrap_or(1);
        if ranks < most {
            tracing::info!("{heads} attention heads are shared by {ranks} ranks, not {most}");
        }
        Ok(ranks)
    }

    /// Takes part in a task that another worker leads, until that ends.
    pub fn follow(
        &mut self,
        wanted: &ModelRef,
        refining: Option<&Sampling>,
        desk: &Desk<'_>,
    ) -> Result<(), TaskError> {
        let second = refining.and_then(|sampling| sampling.second_pass.as_ref());
        if let Some(second) = second {
            self.keep_upscaler(&second.upscaler, desk)?;
        }
        self.keep(wanted, desk)?;
        self.gang = None;
        self.ranks()?;
        let (Some(crew), Some(loaded), Some(share)) = (&mut self.crew, &self.loaded, self.share)
        else {
            return Err(not_kept());
        };
        let upscaler = self.upscaler.as_ref().filter(|_| second.is_some());
        let equipment = Equipment {
            files: loaded.files.clone(),
            upscaler: upscaler.map(|(_, _, found)| found.path.clone()),
        };
        let gang = crew.take_part(share, &equipment, desk.control);
        let gang: Arc<dyn Collective<B>> = Arc::new(gang.map_err(unformed)?);
        let guard = guard(&gang, desk)?;
        let upscaler = upscaler.map(|(_, upscaler, _)| upscaler);
        let Err(ended) = loaded.model.follow(gang, upscaler);
        drop(guard);
        tracing::debug!("the gang has ended: {}", story(&ended));
        crew.settle();
        Ok(())
    }

    /// Ends a gang with other workers: it was for one task.
    pub fn part(&mut self) {
        if self
            .gang
            .as_ref()
            .is_some_and(|formed| formed._guard.is_some())
        {
            self.gang = None;
            if let Some(crew) = &mut self.crew {
                crew.settle();
            }
        }
    }

    /// Ends the gang after a task has failed; the next one forms another, of the same processes as far
    /// as they live. Says whether the gang was what failed.
    pub fn disband(&mut self) -> bool {
        let Some(formed) = self.gang.take() else {
            return false;
        };
        let (broken, is_shared) = (formed.model.is_gang_broken(), formed._guard.is_some());
        drop(formed);
        if let Some(crew) = self.crew.as_mut().filter(|_| broken || is_shared) {
            crew.settle();
        }
        broken
    }

    /// Largest resident memory of the other ranks' processes, in bytes.
    pub fn ranks_peak_bytes(&self) -> u64 {
        self.crew.as_ref().map_or(0, Crew::peak_rss_bytes)
    }

    fn keep(&mut self, wanted: &ModelRef, desk: &Desk<'_>) -> Result<(), TaskError> {
        if self.loaded.as_ref().is_none_or(|l| l.wanted != *wanted) {
            // Two models side by side would double the worker's memory.
            (self.gang, self.loaded) = (None, None);
            self.loaded = Some(self.load(wanted, desk)?);
        }
        Ok(())
    }

    fn keep_upscaler(&mut self, wanted: &ModelRef, desk: &Desk<'_>) -> Result<(), TaskError> {
        let kept = self.upscaler.as_ref();
        if kept.is_some_and(|(have, ..)| *have == wanted.hash) {
            return Ok(());
        }
        self.upscaler = None;
        let part = Wanted {
            location: &wanted.location,
            hash: wanted.hash,
        };
        let found = self.shelf.find(part, desk.artifacts, desk.control)?;
        tracing::info!(upscaler = %found.path.display(), "loading");
        let loaded = LatentUpsampler::load(&found.path, &self.backend, Scrutiny::Values);
        let upscaler = loaded.map_err(|error| match error {
            Error::Read { .. } => TaskError::retryable(error),
            error => TaskError::fatal(error),
        })?;
        self.upscaler = Some((wanted.hash, upscaler, found));
        Ok(())
    }

    /// Unloads the model and the upscaler.
    pub fn clear(&mut self) {
        (self.gang, self.loaded, self.upscaler) = (None, None, None);
    }

    fn load(&self, wanted: &ModelRef, desk: &Desk<'_>) -> Result<Loaded<B>, TaskError> {
        let find = |location: &str, hash| {
            let part = Wanted { location, hash };
            self.shelf.find(part, desk.artifacts, desk.control)
        };
        let mut found = vec![find(&wanted.location, wanted.hash)?];
        let mut files = ModelFiles {
            model: found[0].path.clone(),
            text_encoder: None,
            quantises: wanted.eight_bit,
            loras: Vec::new(),
            fuses_loras: wanted.fuse_loras,
        };
        if let Some(text) = &wanted.text_encoder {
            let text = find(&text.location, text.hash)?;
            files.text_encoder = Some(text.path.clone());
            found.push(text);
        }
        for lora in &wanted.loras {
            let file = find(&lora.location, lora.hash)?;
            files.loras.push(LoraFile {
                path: file.path.clone(),
                strength: lora.strength,
            });
            found.push(file);
        }
        tracing::info!(model = %files.model.display(), "loading");
        match Model::load(&files, self.backend.clone()) {
            Ok(model) => {
                self.shelf.note_sound(wanted.hash);
                Ok(Loaded {
                    wanted: wanted.clone(),
                    model,
                    files,
                    _found: found,
                })
            }
            Err(error) => {
                // With an addition it is not known whose fault it is.
                let is_alone = wanted.text_encoder.is_none() && wanted.loras.is_empty();
                if is_alone && is_files(&error) {
                    self.shelf.note_fault(wanted.hash, &story(&error), false);
                }
                // The bytes are the right ones, so what is wrong with them is wrong everywhere.
                Err(match error {
                    Error::Read { .. } => TaskError::retryable(error),
                    error => TaskError::fatal(error),
                })
            }
        }
    }
}

/// Ends what a gang exchanges once its task is taken back.
fn guard<B: Backend + 'static>(
    gang: &Arc<dyn Collective<B>>,
    desk: &Desk<'_>,
) -> Result<Guard, TaskError> {
    let gang = gang.clone();
    let guard = Guard::watch(desk.control, move |reason| gang.abort(reason));
    guard.map_err(TaskError::retryable)
}

/// What a gang that did not form means for its task.
fn unformed(error: GangError) -> TaskError {
    if matches!(error, GangError::Recalled) {
        return TaskError::Cancelled;
    }
    match error.unreached() {
        Some(rank) => TaskError::Peer {
            rank,
            story: story(&error),
        },
        None if error.is_loss() => TaskError::Gang(story(&error)),
        None => TaskError::retryable(error),
    }
}

fn not_kept() -> TaskError {
    TaskError::Retryable("the model was not kept".to_owned())
}

/// Whether an error is about what a model's files hold.
fn is_files(error: &Error) -> bool {
    matches!(
        error,
        Error::ConfigSyntax { .. }
            | Error::Unsupported { .. }
            | Error::WeightFile { .. }
            | Error::Weight { .. }
            | Error::Tokenizer { .. }
    )
}

/// Where the files of `model` are on this machine.
pub fn files_of(model: &ModelRef) -> Result<ModelFiles, ModelError> {
    let text_encoder = model.text_encoder.as_ref();
    let loras = model.loras.iter().map(|lora| {
        Ok(LoraFile {
            path: find_model(&lora.location)?,
            strength: lora.strength,
        })
    });
    Ok(ModelFiles {
        model: find_model(&model.location)?,
        text_encoder: text_encoder
            .map(|text| find_model(&text.location))
            .transpose()?,
        quantises: model.eight_bit,
        loras: loras.collect::<Result<_, ModelError>>()?,
        fuses_loras: model.fuse_loras,
    })
}
