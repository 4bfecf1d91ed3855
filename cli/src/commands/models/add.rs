//! `models add`: stores a model, or all the models that a pipeline file needs.

use super::progress::Progress;
use super::{HomeArgs, table, usual_name};
use crate::client::Client;
use crate::job_args::ModelSet;
use crate::size;
use crate::terminal::{print, remark};
use anyhow::{Context, Result, bail};
use longtake_common::model::{Hashes, Listed, find_config, find_model, is_yaml};
use longtake_proto::v1;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Flags of `models add`.
#[derive(clap::Args)]
pub struct AddArgs {
    /// A Diffusers folder, a file of weights, a name under configs/models, or a pipeline file: then
    /// all the models that it names are stored
    path: String,
    /// What jobs call it [default: the name of the folder or file]
    #[arg(long)]
    name: Option<String>,
    /// Text encoder of a checkpoint: the file or the folder of T5-XXL, with its spiece.model beside
    /// it [default: the pipeline file's; else what lies beside the checkpoint]
    #[arg(long, value_name = "PATH")]
    text_encoder: Option<String>,
    #[command(flatten)]
    home: HomeArgs,
}

/// What is to be stored.
enum Wanted {
    Model(Listed),
    Set(ModelSet),
}

/// Adds it.
pub async fn run(args: AddArgs) -> Result<()> {
    let path = find(&args.path)?;
    let name = args.name.map_or_else(|| usual_name(&path), Ok)?;
    let (reading, text_encoder) = (path.clone(), args.text_encoder);
    let wanted = tokio::task::spawn_blocking(move || read(&reading, text_encoder)).await??;
    let mut home = args.home.open().await?;
    let added = match wanted {
        Wanted::Model(listed) => send(&mut home.client, &name, &listed).await,
        Wanted::Set(set) => store_set(&mut home.client, &name, &set).await,
    };
    home.close().await;
    let (model, sent_bytes) = added?;
    let of = match &model.parts[..] {
        [] => format!("in {} files", model.files),
        [part] => format!("in the model {}", part.name),
        parts => format!("in {} models", parts.len()),
    };
    remark(format_args!(
        "{}: {} {of}, {} of it sent now",
        path.display(),
        size::shown(model.bytes),
        size::shown(sent_bytes)
    ));
    if args.home.json {
        return print(serde_json::json!({
            "name": model.name,
            "hash": model.hash,
            "bytes": model.bytes,
            "files": model.files,
            "parts": table::parts(&model),
            "sent_bytes": sent_bytes,
        }));
    }
    print(format_args!("{} {}", model.name, model.hash))
}

/// A model comes before a pipeline file of the same name.
fn find(name: &str) -> Result<PathBuf> {
    if is_yaml(name) {
        return Ok(find_config(name)?);
    }
    match find_model(name) {
        Ok(path) => Ok(path),
        Err(error) => find_config(name).map_err(|_| error.into()),
    }
}

/// Opens, checks and hashes what is at `path`.
fn read(path: &Path, text_encoder: Option<String>) -> Result<Wanted> {
    let text = path.to_str();
    let text = text.with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    if is_yaml(text) {
        return ModelSet::of_pipeline(text, text_encoder).map(Wanted::Set);
    }
    longtake_agent::check_files(path)?;
    let found = longtake_agent::inspect(path)?;
    let has_encoder = text_encoder.is_some() || longtake_agent::text_encoder_beside(path).is_ok();
    match (found.kind, found.layout) {
        ("text encoder", _) => {
            longtake_agent::check_whole_text_encoder(path)?;
            let listed = Listed::of_text_encoder(path, &Hashes::usual())?;
            Ok(Wanted::Model(listed))
        }
        ("model", Some("official")) if has_encoder && path.is_file() => {
            ModelSet::of_checkpoint(text, text_encoder).map(Wanted::Set)
        }
        _ if text_encoder.is_some() => bail!(
            "{} needs no --text-encoder: it is no checkpoint of one file",
            path.display()
        ),
        _ => {
            longtake_agent::check_whole_model(path)?;
            let listed = Listed::of(path, &Hashes::usual())?;
            Ok(Wanted::Model(listed))
        }
    }
}

/// Stores a model, or what is not stored of it yet, and names it. Returns it and the bytes that were
/// sent.
pub async fn send(client: &mut Client, name: &str, listed: &Listed) -> Result<(v1::Model, u64)> {
    let mut progress = Progress::new("stored", listed.manifest.bytes());
    let added = client
        .add_model(name, listed, |done_bytes| progress.show(done_bytes))
        .await;
    progress.finish();
    added
}

/// Stores the models of a set, then the set.
async fn store_set(client: &mut Client, name: &str, set: &ModelSet) -> Result<(v1::Model, u64)> {
    let pipeline = match &set.pipeline {
        None => None,
        Some(text) => {
            let mut file = tempfile::NamedTempFile::new().context("make a temporary file")?;
            file.write_all(text.as_bytes())
                .context("write a temporary file")?;
            Some(file.into_temp_path())
        }
    };
    let listed = set.listed(pipeline.as_deref())?;
    client.check_model_name(name, &listed.manifest).await?;
    let (mut sent_bytes, mut left) = (0, set.hashes());
    for (part, files) in &set.parts {
        if !left.remove(&part.hash) {
            continue;
        }
        let label = format!("of {} stored", part.name);
        let mut progress = Progress::new(&label, files.manifest.bytes());
        let sent = client
            .add_part(files, |done_bytes| progress.show(done_bytes))
            .await;
        progress.finish();
        sent_bytes += sent?;
    }
    let (model, own_bytes) = client.add_model(name, &listed, |_| {}).await?;
    Ok((model, sent_bytes + own_bytes))
}
