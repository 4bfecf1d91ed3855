//! `workers`: who works on a farm, and taking one of them out of service.

use crate::client::FarmArgs;
use crate::terminal;
use anyhow::Result;
use clap::Subcommand;
use longtake_proto::v1;
use serde::Serialize;

/// Flags of `workers`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct WorkersArgs {
    #[command(subcommand)]
    command: Option<WorkersCommand>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Subcommand)]
enum WorkersCommand {
    /// Show the workers that are connected
    List(ListArgs),
    /// Give a worker nothing new; it finishes what it has, and stays drained when it connects again
    Drain(WorkerRef),
    /// Let a drained worker work again
    Resume(WorkerRef),
}

/// Flags of `workers list`.
#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A worker and the farm that has it.
#[derive(clap::Args)]
struct WorkerRef {
    /// The worker's name, as 'workers list' shows it
    name: String,
    #[command(flatten)]
    farm: FarmArgs,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A worker as the JSON has it.
#[derive(Serialize)]
struct WorkerJson<'a> {
    name: &'a str,
    worker: &'a str,
    device: &'a str,
    isa: &'a str,
    threads: u32,
    memory_bytes: u64,
    peak_rss_bytes: u64,
    state: &'a str,
    tasks: Vec<TaskJson<'a>>,
    /// Of a gang that it can be at a time.
    ranks: u32,
    /// Hashes of the models that it has.
    models: &'a [String],
    fetching: Option<FetchingJson<'a>>,
}

#[derive(Serialize)]
struct FetchingJson<'a> {
    model: &'a str,
    done_bytes: u64,
    total_bytes: u64,
}

#[derive(Serialize)]
struct TaskJson<'a> {
    job: &'a str,
    task: &'a str,
    progress: f64,
    /// Where it is shared with other workers.
    share: Option<ShareJson>,
}

#[derive(Serialize)]
struct ShareJson {
    ranks: u32,
    first: u32,
    own: u32,
}

impl<'a> From<&'a v1::Worker> for WorkerJson<'a> {
    fn from(worker: &'a v1::Worker) -> Self {
        let task = |task: &'a v1::WorkerTask| TaskJson {
            job: &task.job,
            task: &task.task,
            progress: task.progress,
            share: task.share.map(|share| ShareJson {
                ranks: share.ranks,
                first: share.first,
                own: share.own,
            }),
        };
        Self {
            name: &worker.name,
            worker: &worker.worker,
            device: &worker.device,
            isa: &worker.isa,
            threads: worker.threads,
            memory_bytes: worker.memory_bytes,
            peak_rss_bytes: worker.peak_rss_bytes,
            state: &worker.state,
            tasks: worker.tasks.iter().map(task).collect(),
            ranks: worker.ranks,
            models: &worker.models,
            fetching: worker.fetching.as_ref().map(|fetching| FetchingJson {
                model: &fetching.model,
                done_bytes: fetching.done_bytes,
                total_bytes: fetching.total_bytes,
            }),
        }
    }
}

/// Shows, drains or resumes.
pub async fn run(args: WorkersArgs) -> Result<()> {
    let (farm, json) = match &args.command {
        None => (&args.list.farm, args.list.json),
        Some(WorkersCommand::List(list)) => (&list.farm, list.json),
        Some(WorkersCommand::Drain(of) | WorkersCommand::Resume(of)) => (&of.farm, of.json),
    };
    let mut client = farm.connect().await?;
    let workers = match &args.command {
        None | Some(WorkersCommand::List(_)) => client.workers().await?,
        Some(WorkersCommand::Drain(of)) => client.drain_worker(&of.name).await?,
        Some(WorkersCommand::Resume(of)) => client.resume_worker(&of.name).await?,
    };
    if json {
        let workers: Vec<_> = workers.iter().map(WorkerJson::from).collect();
        return terminal::print(serde_json::json!({ "workers": workers }));
    }
    let models = client.models().await?;
    terminal::print(table(&workers, &models).trim_end())
}

fn table(workers: &[v1::Worker], models: &[v1::Model]) -> String {
    const HEAD: [&str; 9] = [
        "NAME", "STATE", "DEVICE", "ISA", "THREADS", "MEMORY", "PEAK", "MODELS", "DOES",
    ];
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(workers.iter().map(|worker| row(worker, models)));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..HEAD.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn row(worker: &v1::Worker, models: &[v1::Model]) -> [String; 9] {
    let name = |hash: &str| {
        let stored = models.iter().find(|model| model.hash == hash);
        let mut parts = models.iter().flat_map(|model| &model.parts);
        let part = parts.find(|part| part.hash == hash);
        let name = stored.map(|model| &model.name);
        name.or(part.map(|part| &part.name))
            .map_or_else(|| short(hash), String::clone)
    };
    let held: Vec<_> = worker.models.iter().map(|hash| name(hash)).collect();
    let task = |task: &v1::WorkerTask| {
        let share = task.share.map_or_else(String::new, |share| {
            let last = (share.first + share.own).saturating_sub(1);
            match share.own {
                1 => format!(", rank {} of {}", share.first, share.ranks),
                _ => format!(", ranks {} to {last} of {}", share.first, share.ranks),
            }
        });
        format!(
            "{} of {} ({:.0}%{share})",
            task.task,
            task.job,
            100.0 * task.progress
        )
    };
    let mut tasks: Vec<_> = worker.tasks.iter().map(task).collect();
    tasks.extend(worker.fetching.as_ref().map(|fetching| {
        let share = fetching.done_bytes as f64 / fetching.total_bytes.max(1) as f64;
        format!("fetches {} ({:.0}%)", name(&fetching.model), 100.0 * share)
    }));
    [
        worker.name.clone(),
        worker.state.clone(),
        worker.device.clone(),
        worker.isa.clone(),
        worker.threads.to_string(),
        gibibytes(worker.memory_bytes),
        gibibytes(worker.peak_rss_bytes),
        held.join(", "),
        tasks.join(", "),
    ]
}

/// A hash for people.
fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let worker = |name: &str, tasks| v1::Worker {
            name: name.into(),
            state: "busy".into(),
            device: "cpu".into(),
            isa: "avx2".into(),
            threads: 2,
            memory_bytes: 16 << 30,
            peak_rss_bytes: 1 << 29,
            tasks,
            ..v1::Worker::default()
        };
        let task = v1::WorkerTask {
            job: "j-1".into(),
            task: "denoise/3".into(),
            progress: 0.456,
            share: Some(v1::Share {
                ranks: 4,
                first: 2,
                own: 2,
            }),
        };
        let mut fetching = worker("worker-12", vec![]);
        fetching.models = vec!["0123456789abcdef".into()];
        fetching.fetching = Some(v1::Fetching {
            model: "ff".into(),
            done_bytes: 1,
            total_bytes: 4,
        });
        let stored = v1::Model {
            name: "large".into(),
            hash: "ff".into(),
            ..v1::Model::default()
        };
        let text = table(&[worker("a", vec![task]), fetching], &[stored]);
        let expected = "NAME       STATE  DEVICE  ISA   THREADS  MEMORY    PEAK     MODELS        DOES\n\
                        a          busy   cpu     avx2  2        16.0 GiB  0.5 GiB                denoise/3 of j-1 (46%, ranks 2 to 3 of 4)\n\
                        worker-12  busy   cpu     avx2  2        16.0 GiB  0.5 GiB  0123456789ab  fetches large (25%)\n";
        assert_eq!(text, expected);
    }
}
