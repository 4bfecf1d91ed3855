//! Which models there are, who has them, and which are not to be used.
//!
//! A model is its hash; names are for people. A *stored* model can be fetched by any worker; one
//! that is not stored is rendered with by the workers that say they have it.

use crate::effects::{Effects, Event};
use crate::state::{Core, Job};
use crate::workers::Worker;
use longtake_common::ids::{Hash, JobId, WorkerId};
use longtake_common::model::Role;
use longtake_common::spec::{JobSpec, ModelRef};
use longtake_common::task::Lane;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Longest name of a model, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Longest account of what is wrong with a model that is kept, in bytes.
const FAULT_BYTES_MAX: usize = 1000;
/// Models that one worker can say it has.
const HELD_MAX: usize = 4096;

/// A model in the artifact store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredModel {
    /// Its hash, by which its list of files is stored.
    pub hash: Hash,
    /// Length of its files together.
    pub bytes: u64,
    /// How many they are.
    pub files: u32,
    /// The models that it consists of when it is a set, with theirs counted in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<StoredPart>,
}

/// A model that is stored as a part of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPart {
    /// What it is there for.
    pub role: Role,
    /// What a pipeline file calls it.
    pub name: String,
    /// Its hash, by which its list of files is stored.
    pub hash: Hash,
    /// Length of its files together.
    pub bytes: u64,
}

impl StoredModel {
    /// Everything that is stored with it: its own hash and those of its parts.
    pub fn hashes(&self) -> impl Iterator<Item = Hash> {
        std::iter::once(self.hash).chain(self.parts.iter().map(|part| part.hash))
    }

    /// What a worker needs of it.
    fn needed(&self) -> impl Iterator<Item = Hash> {
        let own = self.parts.is_empty().then_some(self.hash);
        own.into_iter()
            .chain(self.parts.iter().map(|part| part.hash))
    }
}

/// What is wrong with a model that is not to be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// A sentence's end that says what.
    pub reason: String,
    /// The stored bytes are not those that the hash names, so that storing them again helps. Else
    /// the right bytes are no good.
    pub damaged: bool,
}

/// A model on its way to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetching {
    /// Which.
    pub hash: Hash,
    /// Bytes that are there.
    pub done_bytes: u64,
    /// Bytes that it has.
    pub total_bytes: u64,
}

/// A stored model, as users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// What it is.
    pub model: StoredModel,
    /// Why it is not to be used, when that is known.
    pub fault: Option<Fault>,
    /// Names of the connected workers that have it.
    pub workers: Vec<String>,
}

impl Core {
    /// All names with their models.
    pub fn models(&self) -> impl Iterator<Item = ModelView> {
        self.models.iter().map(|(name, model)| {
            let has = |worker: &&Worker| {
                let held = &worker.info.models;
                model.needed().all(|hash| held.contains(&hash))
            };
            let workers = self.workers.values().filter(has);
            ModelView {
                name: name.clone(),
                model: model.clone(),
                fault: self.fault_of(model),
                workers: workers.map(|worker| worker.info.name.clone()).collect(),
            }
        })
    }

    /// Whether any name stands for this model.
    pub fn is_stored(&self, hash: Hash) -> bool {
        let mut stored = self.models.values().flat_map(StoredModel::hashes);
        stored.any(|stored| stored == hash)
    }

    /// What is wrong with a model, or with the first of its parts that something is wrong with.
    fn fault_of(&self, model: &StoredModel) -> Option<Fault> {
        let of_part = |part: &StoredPart| {
            let fault = self.faults.get(&part.hash)?;
            Some(Fault {
                reason: format!("its {} {}: {}", part.role.shown(), part.name, fault.reason),
                damaged: fault.damaged,
            })
        };
        let own = self.faults.get(&model.hash).cloned();
        own.or_else(|| model.parts.iter().find_map(of_part))
    }

    /// Why a model is not to be used, when that is known.
    pub fn model_fault(&self, hash: Hash) -> Option<&Fault> {
        self.faults.get(&hash)
    }

    /// Whether work of `job` can be done by this worker: its instruction-set level is right, its
    /// memory may do, and it has the model or can get it.
    pub(crate) fn fits(&self, worker: &Worker, lane: Lane, job: &Job) -> bool {
        let gets_model = || {
            let mut hashes = job.record.spec.model_hashes();
            worker.info.takes_paths
                || hashes.all(|hash| worker.info.models.contains(&hash) || self.is_stored(hash))
        };
        let renders = || worker.has_memory(job) && gets_model();
        worker.has_level(lane, job) && (lane == Lane::Host || renders())
    }

    /// Why no new work with the models of `spec` is taken.
    pub(crate) fn refuse_models(&self, spec: &JobSpec) -> Option<String> {
        let mut models = std::iter::once(&spec.model).chain(spec.sampling.files());
        models.find_map(|model| self.refuse_model(model))
    }

    fn refuse_model(&self, model: &ModelRef) -> Option<String> {
        if let Some(text_encoder) = &model.text_encoder
            && let Some(refusal) = self.refuse_model(text_encoder)
        {
            return Some(refusal);
        }
        let fault = model.hashes().find_map(|hash| self.faults.get(&hash))?;
        let way_out = if fault.damaged {
            "'longtake models add' with its files mends it"
        } else {
            "get a good copy of it; 'longtake models add' with these very files has it tried again"
        };
        Some(format!(
            "the model '{}' ({}) cannot be rendered with: {}; {way_out}",
            model.location,
            model.hash.short(),
            fault.reason
        ))
    }

    pub(crate) fn refuse_model_command(&self, event: &Event) -> Option<String> {
        match event {
            Event::AddModel { name, model } => self.refuse_add(name, model),
            Event::RemoveModel { name } => self.refuse_remove(name),
            _ => None,
        }
    }

    fn refuse_add(&self, name: &str, model: &StoredModel) -> Option<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let good = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name.starts_with(['.', '-'])
            && name.chars().all(plain);
        // A job names its model by name or by hash: no name may look like a hash.
        if !good || name.parse::<Hash>().is_ok() {
            return Some(format!(
                "'{}' is no name for a model: use at most {NAME_BYTES_MAX} letters, digits, '.', '_' and '-', a letter or digit first (--name)",
                name.escape_debug()
            ));
        }
        let other = self
            .models
            .get(name)
            .filter(|there| there.hash != model.hash)?;
        Some(format!(
            "the name '{name}' stands for another model ({}, this one is {}): choose another --name, or 'longtake models remove {name}' first",
            other.hash.short(),
            model.hash.short()
        ))
    }

    fn refuse_remove(&self, name: &str) -> Option<String> {
        let Some(model) = self.models.get(name) else {
            return Some(format!(
                "there is no model '{}' here: 'longtake models list' shows those there are",
                name.escape_debug()
            ));
        };
        let others = self.models.iter().filter(|(other, _)| *other != name);
        let kept: BTreeSet<Hash> = others.flat_map(|(_, model)| model.hashes()).collect();
        let mut gone = model.hashes().filter(|hash| !kept.contains(hash));
        let user = gone.find_map(|hash| self.unfinished_with(hash))?;
        Some(format!(
            "job {user} is not finished and renders with '{name}': wait for it, or 'longtake cancel {user}'"
        ))
    }

    fn unfinished_with(&self, hash: Hash) -> Option<&JobId> {
        let mut jobs = self.jobs.iter();
        let found = jobs.find(|(_, job)| {
            let mut hashes = job.record.spec.model_hashes();
            job.is_open() && hashes.any(|of_job| of_job == hash)
        });
        found.map(|(id, _)| id)
    }

    pub(crate) fn model_command(&mut self, event: Event, fx: &mut Effects) {
        match event {
            Event::AddModel { name, model } => {
                // Whoever stores its files again has seen to what was wrong with them.
                for hash in model.hashes() {
                    self.set_fault(hash, None, fx);
                }
                fx.write_model(&name, &model);
                self.models.insert(name, model);
            }
            Event::RemoveModel { name } => {
                fx.remove_model(&name);
                let removed = self.models.remove(&name);
                for hash in removed.iter().flat_map(StoredModel::hashes) {
                    if !self.is_stored(hash) {
                        self.set_fault(hash, None, fx);
                    }
                }
            }
            Event::ModelFault { hash, fault } => {
                let known = self.faults.get(&hash);
                // Bytes that are as they should be may still be no good.
                if fault.is_some() || known.is_some_and(|known| known.damaged) {
                    self.set_fault(hash, fault, fx);
                }
            }
            _ => {}
        }
    }

    fn set_fault(&mut self, hash: Hash, fault: Option<Fault>, fx: &mut Effects) {
        let fault = fault.map(|fault| Fault {
            reason: shortened(fault.reason, FAULT_BYTES_MAX),
            ..fault
        });
        if self.faults.get(&hash) == fault.as_ref() {
            return;
        }
        fx.write_fault(hash, fault.as_ref());
        match fault {
            Some(fault) => self.faults.insert(hash, fault),
            None => self.faults.remove(&hash),
        };
    }

    /// A worker says which models it has and which it is fetching.
    pub(crate) fn note_models(
        &mut self,
        worker: &WorkerId,
        models: BTreeSet<Hash>,
        fetching: Option<Fetching>,
    ) {
        let Some(state) = self.workers.get_mut(worker) else {
            return;
        };
        let models: BTreeSet<Hash> = models.into_iter().take(HELD_MAX).collect();
        let before = std::mem::replace(&mut state.info.models, models.clone());
        state.fetching = fetching;
        for hash in models.difference(&before) {
            *self.holders.entry(*hash).or_default() += 1;
        }
        for hash in before.difference(&models) {
            if let Some(count) = self.holders.get_mut(hash) {
                *count -= 1;
                if *count == 0 {
                    self.holders.remove(hash);
                }
            }
        }
    }
}

/// Bytes for people.
pub(crate) fn shown_bytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// At most so many bytes of a text, whole characters.
fn shortened(mut text: String, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max);
    text.truncate(end);
    text
}
