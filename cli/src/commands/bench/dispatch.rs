//! `bench dispatch`: a real coordinator process, real jobs, and workers that answer at once.

use super::farm::{Coordinator, Etcd};
use super::gpu::quantile;
use super::load::Workers;
use crate::terminal;
use anyhow::{Context, Result};
use longtake_common::Hash;
use longtake_common::artifact::file_url;
use longtake_common::spec::{Codec, Continuity, JobSpec, ModelRef, Sampling, Schedule};
use longtake_proto::v1;
use longtake_server::convert::spec_to_proto;
use serde::Serialize;
use std::time::{Duration, Instant};
use v1::jobs_client::JobsClient;

/// Windows of one job. A job of w windows has w denoisings, w decodings, w - 1 seams, a text and a
/// mux.
const WINDOWS_MAX: u32 = 100;
const SEGMENT_FRAMES: u32 = 33;
const OVERLAP_FRAMES: u32 = 9;
/// Longest a measurement may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// Flags of `bench dispatch`.
#[derive(clap::Args)]
pub struct DispatchArgs {
    /// Workers that are connected, all from one process
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: u32,
    /// Tasks to give out, rounded to whole jobs
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(4..=1_000_000))]
    tasks: u32,
    /// Where the coordinator keeps its state: file (a folder of its own), etcd (one that is started
    /// for this; has to be installed), or the URL of a store
    #[arg(long, value_name = "file|etcd|URL", default_value = "file")]
    state: String,
    /// Let the workers sleep for so long over each window, and measure how much of the time they do
    #[arg(long, value_name = "MS", default_value_t = 0)]
    sleep_ms: u64,
    /// Then let the workers do nothing for so long (20 when not said), and measure what that costs
    #[arg(long, value_name = "SECONDS", default_value_t = 0, num_args = 0..=1, default_missing_value = "20")]
    idle: u32,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    workers: u32,
    tasks: usize,
    seconds: f64,
    dispatches_per_second: f64,
    decision_ms_p50: f64,
    decision_ms_p99: f64,
    /// Most memory that the coordinator had.
    rss_bytes: u64,
    /// Processor time of the coordinator while it gave out work, in cores.
    busy_cores: f64,
    /// Share of the time that workers slept over windows, while there were windows for all.
    busy_share: Option<f64>,
    /// Processor time of the coordinator while the workers only beat their hearts, in cores.
    idle_cores: Option<f64>,
}

/// Measures and prints.
pub async fn run(args: DispatchArgs) -> Result<()> {
    crate::commands::allow_many_connections();
    let scratch = tempfile::tempdir().context("make a folder for the coordinator")?;
    let mut etcd = None;
    let state = match args.state.as_str() {
        "file" => file_url(&scratch.path().join("state"))?,
        "etcd" => etcd.insert(Etcd::start(scratch.path())?).url(),
        url => url.to_owned(),
    };
    let artifacts = file_url(&scratch.path().join("artifacts"))?;
    let coordinator = Coordinator::start(&state, &artifacts).await?;
    let sleep = Duration::from_millis(args.sleep_ms);
    let workers = Workers::attach(coordinator.url(), args.workers, sleep).await?;
    let report = tokio::time::timeout(DEADLINE, measure(&args, &coordinator, workers)).await;
    let report = report.with_context(|| format!("not done within {} s", DEADLINE.as_secs()))??;
    coordinator.stop().await;
    drop(etcd);
    if args.json {
        return terminal::print(serde_json::to_string(&report)?);
    }
    terminal::print(format_args!(
        "{:.0} dispatches a second ({} tasks in {:.1} s, {} workers, state {})\n\
         decision: {:.1} ms median, {:.1} ms in 99 of 100 cases\n\
         coordinator: {:.0} MB, {:.2} cores",
        report.dispatches_per_second,
        report.tasks,
        report.seconds,
        report.workers,
        args.state,
        report.decision_ms_p50,
        report.decision_ms_p99,
        report.rss_bytes as f64 / 1e6,
        report.busy_cores,
    ))?;
    if let Some(share) = report.busy_share {
        terminal::print(format_args!("workers: {:.1}% busy", 100.0 * share))?;
    }
    match report.idle_cores {
        Some(cores) => terminal::print(format_args!("heartbeats alone: {cores:.2} cores")),
        None => Ok(()),
    }
}

async fn measure(
    args: &DispatchArgs,
    coordinator: &Coordinator,
    mut workers: Workers,
) -> Result<Report> {
    let jobs = jobs(args.tasks);
    let tasks: usize = jobs.iter().map(|&windows| tasks_of(windows)).sum();
    let mut client = JobsClient::connect(coordinator.url().to_owned()).await?;
    let (started, cpu_before) = (Instant::now(), coordinator.cpu_seconds()?);
    for (index, windows) in jobs.iter().enumerate() {
        let spec = Some(spec_to_proto(&spec(index as u64, *windows)));
        client
            .submit(v1::SubmitRequest {
                spec,
                isa: None,
                ranks: None,
            })
            .await?;
    }
    let load = workers.work(tasks).await?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu_after = coordinator.cpu_seconds()?;
    let idle_cores = match args.idle {
        0 => None,
        idle => {
            tokio::time::sleep(Duration::from_secs(idle.into())).await;
            Some((coordinator.cpu_seconds()? - cpu_after) / f64::from(idle))
        }
    };
    let busy_share = load.busy_share(args.workers);
    let decisions_ms = load.decisions_ms;
    Ok(Report {
        workers: args.workers,
        tasks,
        seconds,
        dispatches_per_second: tasks as f64 / seconds,
        decision_ms_p50: quantile(decisions_ms.clone(), 0.5),
        decision_ms_p99: quantile(decisions_ms, 0.99),
        rss_bytes: coordinator.peak_rss_bytes()?,
        busy_cores: (cpu_after - cpu_before) / seconds,
        busy_share,
        idle_cores,
    })
}

/// Tasks of a job of so many windows.
pub fn tasks_of(windows: u32) -> usize {
    3 * windows as usize + 1
}

/// Windows of each job, so that all of them have about `tasks` tasks.
pub fn jobs(tasks: u32) -> Vec<u32> {
    let whole = tasks / (3 * WINDOWS_MAX + 1);
    let rest = tasks % (3 * WINDOWS_MAX + 1);
    let mut jobs = vec![WINDOWS_MAX; whole as usize];
    // The smallest job has one window and 4 tasks.
    jobs.extend((rest >= 4).then_some((rest - 1) / 3));
    jobs
}

/// A job like no other of another seed.
pub fn spec(seed: u64, windows: u32) -> JobSpec {
    let stride = SEGMENT_FRAMES - OVERLAP_FRAMES;
    JobSpec {
        // Equal work is not done twice, so nothing may be equal in two jobs.
        prompt: format!("film {seed}"),
        negative: String::new(),
        frames: SEGMENT_FRAMES + (windows - 1) * stride,
        width: 256,
        height: 160,
        fps: 24.0,
        seed: seed << 32,
        model: ModelRef::new("bench", Hash::of(b"bench")),
        continuity: Continuity::None,
        segment_frames: SEGMENT_FRAMES,
        overlap_frames: OVERLAP_FRAMES,
        sampling: Sampling::plain(Schedule::Timesteps(vec![1.0]), 1.0, 32),
        codec: Codec::H264,
        conditioning: Vec::new(),
        previews: false,
        shots: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_the_tasks_that_were_asked_for() {
        for tasks in [4, 5, 300, 301, 302, 305, 1000, 10_000] {
            let made: u32 = jobs(tasks).iter().map(|windows| 3 * windows + 1).sum();
            assert!(made <= tasks && tasks - made < 4, "{made} of {tasks}");
            assert!(
                jobs(tasks)
                    .iter()
                    .all(|windows| (1..=WINDOWS_MAX).contains(windows))
            );
        }
        for windows in [1, 2, WINDOWS_MAX] {
            let spec = spec(1, windows);
            spec.check().expect("a good job");
            assert_eq!(longtake_core::plan::plan(&spec).window_count(), windows);
        }
    }
}
