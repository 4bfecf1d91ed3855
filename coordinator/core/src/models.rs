//! Which models there are, who has them, and which are not to be used.
//!
//! A model is its hash; names are for people. A *stored* model can be fetched by any worker; one
//! that is not stored is rendered with by the workers that say they have it.

use crate::effects::{Effects, Event};
use crate::state::{Core, Job};
use crate::workers::Worker;
use longtake_common::ids::{Hash, JobId, WorkerId};
use longtake_common::spec::ModelRef;
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
            let has = |worker: &&Worker| worker.info.models.contains(&model.hash);
            let workers = self.workers.values().filter(has);
            ModelView {
                name: name.clone(),
                model: model.clone(),
                fault: self.faults.get(&model.hash).cloned(),
                workers: workers.map(|worker| worker.info.name.clone()).collect(),
            }
        })
    }

    /// Whether any name stands for this model.
    pub fn is_stored(&self, hash: Hash) -> bool {
        self.models.values().any(|model| model.hash == hash)
    }

    /// Why a model is not to be used, when that is known.
    pub fn model_fault(&self, hash: Hash) -> Option<&Fault> {
        self.faults.get(&hash)
    }

    /// Whether work of `job` can be done by this worker: its instruction-set level is right, and it
    /// has the model or can get it.
    pub(crate) fn fits(&self, worker: &Worker, lane: Lane, job: &Job) -> bool {
        let gets_model = || {
            let mut hashes = job.record.spec.model_hashes();
            worker.info.takes_paths
                || hashes.all(|hash| worker.info.models.contains(&hash) || self.is_stored(hash))
        };
        worker.has_level(lane, job) && (lane == Lane::Host || gets_model())
    }

    /// Why no new work with this model is taken.
    pub(crate) fn refuse_model(&self, model: &ModelRef) -> Option<String> {
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
        let is_last = self.names_of(model.hash).count() == 1;
        let user = self.unfinished_with(model.hash).filter(|_| is_last)?;
        Some(format!(
            "job {user} is not finished and renders with '{name}': wait for it, or 'longtake cancel {user}'"
        ))
    }

    fn names_of(&self, hash: Hash) -> impl Iterator<Item = &String> {
        let named = self
            .models
            .iter()
            .filter(move |(_, model)| model.hash == hash);
        named.map(|(name, _)| name)
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
                self.set_fault(model.hash, None, fx);
                fx.write_model(&name, &model);
                self.models.insert(name, model);
            }
            Event::RemoveModel { name } => {
                fx.remove_model(&name);
                let removed = self.models.remove(&name);
                if let Some(model) = removed.filter(|model| !self.is_stored(model.hash)) {
                    self.set_fault(model.hash, None, fx);
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

/// At most so many bytes of a text, whole characters.
fn shortened(mut text: String, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max);
    text.truncate(end);
    text
}
