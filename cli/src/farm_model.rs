//! The model of a job: on this machine, or stored where the job goes to.

use crate::client::{Client, FarmArgs};
use crate::commands::models;
use crate::job_args::{JobArgs, Stored, Wanted, Weights};
use crate::render;
use crate::terminal::remark;
use anyhow::{Context, Result, anyhow, bail};
use longtake_agent::Dial;
use longtake_common::Hash;
use longtake_common::model::{CHUNK_BYTES, Manifest, find_model, shipped_models};
use longtake_common::spec::Codec;
use std::path::Path;

/// The job that `job` describes, for a farm, and the farm.
pub async fn wanted_on_farm(
    job: &JobArgs,
    codec: Codec,
    farm: &FarmArgs,
) -> Result<(Wanted, Client)> {
    let name = job.model_name()?;
    let is_here = find_model(&name).is_ok();
    // What is wrong with the flags is said before anybody is called.
    let local = is_here
        .then(|| job.wanted(codec, Weights::Required))
        .transpose()?;
    let mut client = farm.connect().await?;
    let stored = stored(&client, &name).await?;
    let wanted = match (local, stored) {
        (Some(wanted), stored) => {
            check_same(&name, &wanted, stored.map(|(hash, _)| hash))?;
            give(&mut client, &name, wanted.spec.model.hash).await?;
            wanted
        }
        (None, Some(stored)) => from_store(job, codec, &name, &client, stored).await?,
        (None, None) => bail!(
            "{}",
            nowhere(
                &name,
                "the farm stores none of that name either ('longtake models list')"
            )
        ),
    };
    let model = &wanted.spec.model;
    if let Some(text) = &model.text_encoder {
        give(&mut client, &text.location, text.hash).await?;
    }
    for lora in &model.loras {
        give(&mut client, &lora.location, lora.hash).await?;
    }
    for file in wanted.spec.sampling.files() {
        give(&mut client, &file.location, file.hash).await?;
    }
    Ok((wanted, client))
}

/// The job that `job` describes, for workers of our own that work in `state`.
pub async fn wanted_here(job: &JobArgs, codec: Codec, state: Option<&Path>) -> Result<Wanted> {
    let name = job.model_name()?;
    let state = state.filter(|state| render::has_database(state));
    let (Err(_), Some(state)) = (find_model(&name), state) else {
        return job.wanted(codec, Weights::Required);
    };
    let handle = render::open_state(state).await?;
    let found = async {
        let client = Client::connect(&Dial::plain(handle.url())).await?;
        match stored(&client, &name).await? {
            Some(stored) => from_store(job, codec, &name, &client, stored).await,
            None => bail!(
                "{}",
                nowhere(&name, "none of that name is stored in --state either")
            ),
        }
    };
    let found = found.await;
    handle.shutdown().await;
    found
}

/// A worker never opens a path that a job names: a model that is here and nowhere on the farm is
/// stored there.
async fn give(client: &mut Client, name: &str, hash: Hash) -> Result<()> {
    let path = find_model(name)?;
    let text = hash.to_string();
    let workers = client.workers().await?;
    let is_held = workers.iter().any(|worker| worker.models.contains(&text));
    // Workers that come later have what comes with the program.
    let is_expected = workers.is_empty() && shipped_models().contains(&path);
    let models = client.models().await?;
    if is_held || is_expected || models.iter().any(|model| model.hash == text) {
        return Ok(());
    }
    let usual = models::usual_name(&path)?;
    let is_taken = models.iter().any(|model| model.name == usual);
    let name = if is_taken {
        format!("{usual}-{}", hash.short())
    } else {
        usual
    };
    remark(format_args!(
        "note: no worker has {}: storing it on the farm as '{name}'",
        path.display()
    ));
    models::store(client, &name, &path).await.map(drop)
}

/// Only a bare name or a hash can be that of a stored model; anything else is a path.
async fn stored(client: &Client, name: &str) -> Result<Option<(Hash, Manifest)>> {
    if name.contains(['/', '\\']) {
        return Ok(None);
    }
    client.stored_model(name).await
}

/// One name for two models would be a film that depends on where the command was given.
fn check_same(name: &str, wanted: &Wanted, stored: Option<Hash>) -> Result<()> {
    let here = wanted.spec.model.hash;
    match stored {
        Some(there) if there != here => bail!(
            "the name '{name}' stands for model {} here and for {} on the farm: give the path of the one or the hash of the other as --model",
            here.short(),
            there.short()
        ),
        _ => Ok(()),
    }
}

fn nowhere(name: &str, there: &str) -> anyhow::Error {
    match find_model(name) {
        Err(error) => anyhow!("{error}; {there}"),
        Ok(_) => anyhow!("the model '{name}' was just put here: run the command again"),
    }
}

async fn from_store(
    job: &JobArgs,
    codec: Codec,
    name: &str,
    client: &Client,
    (hash, manifest): (Hash, Manifest),
) -> Result<Wanted> {
    // Its configuration says how it is sampled; its weights stay where they are.
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    for file in manifest.files() {
        if file.bytes > CHUNK_BYTES || !file.path.ends_with(".json") {
            continue;
        }
        let path = manifest.place(folder.path(), &file.path);
        let bytes = client.model_file(file).await?;
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, bytes));
        written.with_context(|| format!("write {}", path.display()))?;
    }
    let stored = Stored {
        name,
        hash,
        folder: folder.path(),
    };
    job.wanted(codec, Weights::Stored(stored))
}
