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
}

#[derive(Serialize)]
struct TaskJson<'a> {
    job: &'a str,
    task: &'a str,
    progress: f64,
}

impl<'a> From<&'a v1::Worker> for WorkerJson<'a> {
    fn from(worker: &'a v1::Worker) -> Self {
        let task = |task: &'a v1::WorkerTask| TaskJson {
            job: &task.job,
            task: &task.task,
            progress: task.progress,
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
        }
    }
}

/// Shows, drains or resumes.
pub async fn run(args: WorkersArgs) -> Result<()> {
    let (workers, json) = match args.command {
        None => (
            args.list.farm.connect().await?.workers().await?,
            args.list.json,
        ),
        Some(WorkersCommand::List(list)) => {
            (list.farm.connect().await?.workers().await?, list.json)
        }
        Some(WorkersCommand::Drain(of)) => {
            let workers = of.farm.connect().await?.drain_worker(&of.name).await?;
            (workers, of.json)
        }
        Some(WorkersCommand::Resume(of)) => {
            let workers = of.farm.connect().await?.resume_worker(&of.name).await?;
            (workers, of.json)
        }
    };
    if json {
        let workers: Vec<_> = workers.iter().map(WorkerJson::from).collect();
        return terminal::print(serde_json::json!({ "workers": workers }));
    }
    terminal::print(table(&workers).trim_end())
}

fn table(workers: &[v1::Worker]) -> String {
    const HEAD: [&str; 8] = [
        "NAME", "STATE", "DEVICE", "ISA", "THREADS", "MEMORY", "PEAK", "DOES",
    ];
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(workers.iter().map(row));
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

fn row(worker: &v1::Worker) -> [String; 8] {
    let task = |task: &v1::WorkerTask| {
        format!(
            "{} of {} ({:.0}%)",
            task.task,
            task.job,
            100.0 * task.progress
        )
    };
    let tasks: Vec<_> = worker.tasks.iter().map(task).collect();
    [
        worker.name.clone(),
        worker.state.clone(),
        worker.device.clone(),
        worker.isa.clone(),
        worker.threads.to_string(),
        gibibytes(worker.memory_bytes),
        gibibytes(worker.peak_rss_bytes),
        tasks.join(", "),
    ]
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
        };
        let text = table(&[worker("a", vec![task]), worker("worker-12", vec![])]);
        let expected = "NAME       STATE  DEVICE  ISA   THREADS  MEMORY    PEAK     DOES\n\
                        a          busy   cpu     avx2  2        16.0 GiB  0.5 GiB  denoise/3 of j-1 (46%)\n\
                        worker-12  busy   cpu     avx2  2        16.0 GiB  0.5 GiB\n";
        assert_eq!(text, expected);
    }
}
