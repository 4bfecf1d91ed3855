//! Whether the models of a job can be sampled as it has it: said before there is a job.

use super::Weights;
use anyhow::{Context, Result};
use longtake_agent::Rules;
use longtake_common::model::find_model;
use longtake_common::spec::{JobSpec, ModelRef, Sampling};

/// The rules of a model; `None` where its configuration is not here.
fn rules(model: &ModelRef, weights: Weights<'_>) -> Result<Option<Rules>> {
    Ok(match weights {
        Weights::Required => Some(longtake_agent::rules(&find_model(&model.location)?)?),
        Weights::Stored(stored) if model.hash == stored.hash => {
            longtake_agent::rules(stored.folder).ok()
        }
        Weights::Stored(_) => None,
        // A plan needs no model, but heeds one that is there.
        Weights::Ignored => {
            let place = find_model(&model.location).ok();
            place.and_then(|place| longtake_agent::rules(&place).ok())
        }
    })
}

/// Fails when a model cannot run its pass over a window of the film.
pub(super) fn check(spec: &JobSpec, weights: Weights<'_>) -> Result<()> {
    let windows = longtake_core::plan(spec).windows;
    let base = rules(&spec.model, weights)?;
    for (number, pass) in spec.sampling.passes().enumerate() {
        let (model, own) = match &pass.model {
            Some(model) => (model, rules(model, weights)?),
            None => (&spec.model, base.clone()),
        };
        if let Some(rules) = own {
            let frames = windows.iter().map(|window| window.frames);
            longtake_agent::check_sampling(&rules, base.as_ref(), spec, number, frames)
                .with_context(|| format!("sample {}", model.location))?;
        }
    }
    Ok(())
}

/// Switches TeaCache off where a pass is one of a distilled model: its few steps differ too much to
/// stand for each other. Says so.
pub(super) fn spare_distilled(
    sampling: &mut Sampling,
    model: &ModelRef,
    weights: Weights<'_>,
) -> Result<Option<String>> {
    let mut found = None;
    for pass in sampling.passes_mut().filter(|pass| pass.teacache.is_some()) {
        let model = pass.model.as_ref().unwrap_or(model);
        let says_so = rules(model, weights)?.is_some_and(|rules| rules.is_distilled());
        if says_so || is_called_distilled(&model.location) {
            pass.teacache = None;
            found = Some(
                "use_teacache is switched off for a distilled model: each of its few steps changes \
                 too much to be left out"
                    .to_owned(),
            );
        }
    }
    Ok(found)
}

/// Whether the file or folder `path` is called distilled.
fn is_called_distilled(path: &str) -> bool {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    name.to_lowercase().contains("distilled")
}
