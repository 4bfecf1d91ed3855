//! The model of a job: on this machine, or stored where the job goes to.

use crate::client::{Client, FarmArgs};
use crate::commands::models;
use crate::job_args::{JobArgs, Stored, Wanted, Weights};
use crate::render;
use crate::terminal::remark;
use anyhow::{Context, Result, anyhow, bail};
use longtake_agent::Dial;
use longtake_common::Hash;
use longtake_common::model::{
    CHUNK_BYTES, Hashes, Listed, Manifest, PIPELINE_FILE, Role, find_model, shipped_models,
};
use longtake_common::spec::Codec;
use longtake_proto::v1;
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
    let (name, stored) = match is_here {
        true => (name.clone(), stored(&client, &name).await?),
        false => find_stored(job, &client, name).await?,
    };
    let wanted = match (local, stored) {
        (Some(wanted), stored) => {
            check_same(&name, &wanted, stored)?;
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
    give(&mut client, &model.location, model.hash, Sort::Model).await?;
    if let Some(text) = &model.text_encoder {
        give(&mut client, &text.location, text.hash, Sort::TextEncoder).await?;
    }
    for lora in &model.loras {
        give(&mut client, &lora.location, lora.hash, Sort::Model).await?;
    }
    for file in wanted.spec.sampling.files() {
        give(&mut client, &file.location, file.hash, Sort::Model).await?;
    }
    Ok((wanted, client))
}

/// The job with a model that the farm stores and this machine does not have, if there is one: for
/// looking at, nothing is given to the farm.
pub async fn stored_on_farm(
    job: &JobArgs,
    codec: Codec,
    farm: &FarmArgs,
) -> Result<Option<Wanted>> {
    let name = job.model_name()?;
    if farm.url().is_none() || find_model(&name).is_ok() {
        return Ok(None);
    }
    let client = farm.connect().await?;
    match find_stored(job, &client, name).await? {
        (_, None) => Ok(None),
        (name, Some(stored)) => from_store(job, codec, &name, &client, stored)
            .await
            .map(Some),
    }
}

/// What is stored under the name of the job's model, else the set that is called like the pipeline
/// file, and its name.
async fn find_stored(
    job: &JobArgs,
    client: &Client,
    name: String,
) -> Result<(String, Option<(Hash, Manifest)>)> {
    if let Some(found) = stored(client, &name).await? {
        return Ok((name, Some(found)));
    }
    let Some(set) = job.set_name()? else {
        return Ok((name, None));
    };
    let found = stored(client, &set).await?;
    match found.filter(|(_, manifest)| !manifest.parts().is_empty()) {
        Some(found) => Ok((set, Some(found))),
        None => Ok((name, None)),
    }
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
        match find_stored(job, &client, name).await? {
            (name, Some(stored)) => from_store(job, codec, &name, &client, stored).await,
            (name, None) => bail!(
                "{}",
                nowhere(&name, "none of that name is stored in --state either")
            ),
        }
    };
    let found = found.await;
    handle.shutdown().await;
    found
}

/// What is listed of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    /// The files at the path.
    Model,
    /// Those of a text encoder, and its tokenizer's.
    TextEncoder,
}

/// A worker never opens a path that a job names: a model that is here and nowhere on the farm is
/// stored there.
async fn give(client: &mut Client, name: &str, hash: Hash, sort: Sort) -> Result<()> {
    let text = hash.to_string();
    let workers = client.workers().await?;
    let is_held = workers.iter().any(|worker| worker.models.contains(&text));
    let models = client.models().await?;
    let is_stored =
        |model: &v1::Model| model.hash == text || model.parts.iter().any(|part| part.hash == text);
    if is_held || models.iter().any(is_stored) {
        return Ok(());
    }
    let path = find_model(name)?;
    // Workers that come later have what comes with the program.
    if workers.is_empty() && shipped_models().contains(&path) {
        return Ok(());
    }
    let reading = path.clone();
    let listed = tokio::task::spawn_blocking(move || -> Result<Listed> {
        let hashes = Hashes::usual();
        if sort == Sort::TextEncoder {
            longtake_agent::check_whole_text_encoder(&reading)?;
            return Ok(Listed::of_text_encoder(&reading, &hashes)?);
        }
        longtake_agent::check_whole_model(&reading)?;
        Ok(Listed::of(&reading, &hashes)?)
    });
    let listed = listed.await??;
    let usual = match sort {
        Sort::Model => models::usual_name(&path)?,
        Sort::TextEncoder => format!("{}-text-encoder", models::usual_name(&path)?),
    };
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
    models::send(client, &name, &listed).await.map(drop)
}

/// Only a bare name or a hash can be that of a stored model; anything else is a path.
async fn stored(client: &Client, name: &str) -> Result<Option<(Hash, Manifest)>> {
    if name.contains(['/', '\\']) {
        return Ok(None);
    }
    client.stored_model(name).await
}

/// One name for two models would be a film that depends on where the command was given.
fn check_same(name: &str, wanted: &Wanted, stored: Option<(Hash, Manifest)>) -> Result<()> {
    let here = wanted.spec.model.hash;
    let checkpoint = |(hash, manifest): (Hash, Manifest)| {
        let mut parts = manifest.parts().iter();
        let part = parts.find(|part| part.role == Role::Checkpoint);
        part.map_or(hash, |part| part.hash)
    };
    match stored.map(checkpoint) {
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
        let is_small = file.bytes <= CHUNK_BYTES;
        if !is_small || !(file.path.ends_with(".json") || file.path == PIPELINE_FILE) {
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
        parts: manifest.parts(),
    };
    job.wanted(codec, Weights::Stored(stored))
}
