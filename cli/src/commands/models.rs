//! `models`: the models that a farm stores, so that every worker can have them.

mod add;
mod progress;
mod table;

pub use add::send;

use crate::client::{Client, FarmArgs};
use crate::render;
use crate::size;
use crate::terminal::print;
use add::AddArgs;
use anyhow::{Context, Result, anyhow, bail};
use clap::Subcommand;
use longtake_agent::Dial;
use longtake_proto::v1;
use longtake_server::Handle;
use progress::Progress;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Flags of `models`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_required = true)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Subcommand)]
enum ModelsCommand {
    /// Store a model, so that workers can fetch it and jobs can name it. What was stored of it
    /// before is not sent again
    Add(AddArgs),
    /// Show the models that are stored
    List(HomeArgs),
    /// Read every byte of the stored models and compare it with its hash
    Verify(VerifyArgs),
    /// Take a model's name away, and the bytes that no other model has
    Remove(RemoveArgs),
}

/// Where models are stored, and how the answer is printed.
#[derive(clap::Args)]
struct HomeArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// Instead of a farm: the folder that 'render --state' works in
    #[arg(long, value_name = "DIR", conflicts_with = "coordinator")]
    state: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Flags of `models verify`.
#[derive(clap::Args)]
struct VerifyArgs {
    /// The model's name or hash [default: all models]
    name: Option<String>,
    #[command(flatten)]
    home: HomeArgs,
}

/// Flags of `models remove`.
#[derive(clap::Args)]
struct RemoveArgs {
    /// The model's name, as 'models list' shows it
    name: String,
    #[command(flatten)]
    home: HomeArgs,
}

/// A place for models. The coordinator of a folder runs as long as this is held.
struct Home {
    client: Client,
    embedded: Option<Handle>,
}

impl HomeArgs {
    async fn open(&self) -> Result<Home> {
        let Some(folder) = &self.state else {
            let client = self.farm.connect().await.map_err(|error| match self.farm.url() {
                Some(_) => error,
                None => anyhow!(
                    "no place for models is named; give --coordinator URL or set LONGTAKE_COORDINATOR, or give --state DIR"
                ),
            })?;
            return Ok(Home {
                client,
                embedded: None,
            });
        };
        let handle = render::open_state(folder).await?;
        let client = Client::connect(&Dial::plain(handle.url())).await?;
        Ok(Home {
            client,
            embedded: Some(handle),
        })
    }
}

impl Home {
    async fn close(self) {
        if let Some(handle) = self.embedded {
            handle.shutdown().await;
        }
    }
}

/// Adds, shows, verifies or removes.
pub async fn run(args: ModelsArgs) -> Result<()> {
    match args.command {
        ModelsCommand::Add(args) => add::run(args).await,
        ModelsCommand::List(home) => list(home).await,
        ModelsCommand::Verify(args) => verify(args).await,
        ModelsCommand::Remove(args) => remove(args).await,
    }
}

/// What a model is called when nobody says: its folder's or file's name, without what no name has.
pub fn usual_name(path: &Path) -> Result<String> {
    let stem = if path.is_dir() {
        path.file_name()
    } else {
        path.file_stem()
    };
    let stem = stem.and_then(|stem| stem.to_str()).unwrap_or_default();
    let stem = stem.trim_end_matches(".safetensors.index");
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = stem
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() {
        bail!(
            "{} has no usable name; give one with --name",
            path.display()
        );
    }
    Ok(name.to_owned())
}

async fn list(args: HomeArgs) -> Result<()> {
    let home = args.open().await?;
    let models = home.client.models().await;
    home.close().await;
    let models = models?;
    if args.json {
        let models: Vec<_> = models.iter().map(table::json).collect();
        return print(json!({ "models": models }));
    }
    print(table::text(&models).trim_end())
}

async fn verify(args: VerifyArgs) -> Result<()> {
    let home = args.home.open().await?;
    let checked = verify_all(&home.client, args.name.as_deref()).await;
    home.close().await;
    let checked = checked?;
    let bad: Vec<_> = checked
        .iter()
        .filter(|model| !model.damage.is_empty())
        .collect();
    if args.home.json {
        let models: Vec<_> = checked.iter().map(Checked::json).collect();
        print(json!({ "models": models }))?;
    } else if checked.is_empty() {
        print("no models are stored")?;
    } else {
        let lines: Vec<_> = checked.iter().map(Checked::line).collect();
        print(lines.join("\n"))?;
    }
    match bad[..] {
        [] => Ok(()),
        [first, ..] => bail!(
            "{} of {} models are damaged; 'longtake models add PATH --name {}' with the model's files mends it",
            bad.len(),
            checked.len(),
            first.name
        ),
    }
}

/// What came of verifying a model.
struct Checked {
    name: String,
    bytes: u64,
    /// Names of the models that it consists of when it is a set.
    parts: Vec<String>,
    damage: Vec<String>,
}

impl Checked {
    fn json(&self) -> serde_json::Value {
        json!({ "name": self.name, "parts": self.parts, "bytes": self.bytes, "ok": self.damage.is_empty(), "damage": self.damage })
    }

    fn line(&self) -> String {
        match &self.damage[..] {
            [] if self.parts.is_empty() => {
                format!("{}: every byte is as it was stored", self.name)
            }
            [] => format!(
                "{}: every byte is as it was stored, of {} too",
                self.name,
                self.parts.join(", ")
            ),
            [only] => format!("{}: {only}", self.name),
            [first, rest @ ..] => format!("{}: {first}, and {} more", self.name, rest.len()),
        }
    }
}

async fn verify_all(client: &Client, name: Option<&str>) -> Result<Vec<Checked>> {
    let all = client.models().await?;
    let is_meant =
        |model: &&v1::Model| name.is_none_or(|name| model.name == name || model.hash == name);
    let mut meant: Vec<_> = all.iter().filter(is_meant).collect();
    if let Some(name) = name {
        // Two names may stand for one model: it is read once.
        meant.truncate(1);
        if meant.is_empty() {
            bail!("there is no model '{name}' here: 'longtake models list' shows those there are");
        }
    }
    let mut checked = Vec::new();
    for model in meant {
        let mut damage = Vec::new();
        let mut progress = Progress::new(&format!("of {} read", model.name), model.bytes);
        let done = client.verify_model(&model.name, |reply| {
            progress.show(reply.done_bytes);
            if !reply.damage.is_empty() {
                damage.push(reply.damage.clone());
            }
        });
        let done = done.await;
        progress.finish();
        done.with_context(|| format!("verify {}", model.name))?;
        checked.push(Checked {
            name: model.name.clone(),
            bytes: model.bytes,
            parts: model.parts.iter().map(|part| part.name.clone()).collect(),
            damage,
        });
    }
    Ok(checked)
}

async fn remove(args: RemoveArgs) -> Result<()> {
    let home = args.home.open().await?;
    let removed = home.client.remove_model(&args.name).await;
    home.close().await;
    let bytes = removed?;
    if args.home.json {
        return print(json!({ "name": args.name, "removed_bytes": bytes }));
    }
    print(format_args!(
        "{}: {} removed from the store",
        args.name,
        size::shown(bytes)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_like_its_folder_or_file() {
        for (path, name) in [
            ("/m/ltxv-13b", "ltxv-13b"),
            ("/m/LTX Video (2B).safetensors", "LTX-Video--2B-"),
            ("/m/.cache", "cache"),
        ] {
            assert_eq!(usual_name(Path::new(path)).expect("a name"), name);
        }
        let error = usual_name(Path::new("/m/---.safetensors")).expect_err("none");
        assert!(error.to_string().contains("--name"), "{error}");
    }
}
