//! `bench schedule`: what the farm's brain takes for its decisions alone. Workers are names that
//! report everything at once; nothing is stored or sent.

use super::gpu::Times;
use super::{dispatch, load};
use crate::terminal;
use anyhow::{Result, bail};
use longtake_common::ids::{Epoch, JobId, WorkerId};
use longtake_common::task::Assignment;
use longtake_core::{Core, Effect, Effects, Event, Limits, WorkerInfo};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// Flags of `bench schedule`.
#[derive(clap::Args)]
pub struct ScheduleArgs {
    /// Workers that are attached
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: u32,
    /// Tasks to give out, rounded to whole jobs
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(4..=1_000_000))]
    tasks: u32,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    workers: u32,
    tasks: usize,
    /// Time within the core, for all events.
    seconds: f64,
    /// Tasks given out and taken back in each of them.
    decisions_per_second: f64,
    /// Of a report: what follows from a result and who does it.
    decision_ms_p50: f64,
    decision_ms_p99: f64,
    #[serde(flatten)]
    times: Times,
    /// Milliseconds of all events of a kind.
    parts: BTreeMap<&'static str, f64>,
}

/// A core, and what it has given out that nobody has reported yet.
struct Farm {
    core: Core,
    given: VecDeque<(WorkerId, Assignment)>,
    /// Milliseconds of each event, by kind.
    ms: BTreeMap<&'static str, Vec<f64>>,
}

impl Farm {
    fn new() -> Result<Self> {
        let mut fx = Effects::new();
        Ok(Self {
            core: Core::restore(0, Epoch(1), Limits::default(), [], &mut fx)?,
            given: VecDeque::new(),
            ms: BTreeMap::new(),
        })
    }

    /// Has the core handle an event, and notes how long that took. Its records, which are made
    /// meanwhile, are thrown away.
    fn handle(&mut self, kind: &'static str, event: Event) -> Result<()> {
        let mut fx = Effects::new();
        let begun = Instant::now();
        self.core.handle(0, event, &mut fx);
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        self.ms.entry(kind).or_default().push(ms);
        for effect in fx.take() {
            match effect {
                Effect::Assign { worker, assignment } => {
                    self.given.push_back((worker, *assignment));
                }
                Effect::Refused { error, .. } => bail!("the core refuses a job: {error}"),
                Effect::Revoke { task, .. } => bail!("the core takes {task} away"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reports everything, oldest first; how many tasks that was.
    fn work(&mut self) -> Result<usize> {
        let mut tasks = 0;
        while let Some((worker, assignment)) = self.given.pop_front() {
            let report = Event::Done {
                worker,
                output: Box::new(load::output(&assignment.work)),
                job: assignment.job,
                task: assignment.task,
                token: assignment.token,
            };
            self.handle("report", report)?;
            tasks += 1;
        }
        Ok(tasks)
    }
}

/// Measures and prints.
pub fn run(args: &ScheduleArgs) -> Result<()> {
    let report = measure(args.workers, args.tasks)?;
    if args.json {
        return terminal::print(serde_json::to_string(&report)?);
    }
    terminal::print(format_args!(
        "{:.0} decisions a second ({} tasks in {:.2} s, {} workers)\n\
         decision: {:.4} ms median, {:.4} ms in 99 of 100 cases",
        report.decisions_per_second,
        report.tasks,
        report.seconds,
        report.workers,
        report.decision_ms_p50,
        report.decision_ms_p99,
    ))?;
    for (part, ms) in &report.parts {
        terminal::print(format_args!("  {ms:9.3} ms  {part}"))?;
    }
    Ok(())
}

fn measure(workers: u32, tasks: u32) -> Result<Report> {
    let mut farm = Farm::new()?;
    for index in 0..workers {
        let attach = Event::Attach {
            worker: WorkerId(format!("w-{index}")),
            info: WorkerInfo {
                name: format!("bench-{index}"),
                instance: format!("bench-{index}"),
                device: "cpu".to_owned(),
                isa: "scalar".to_owned(),
                threads: 1,
                memory_bytes: 8 << 30,
                takes_paths: true,
                ..WorkerInfo::default()
            },
            running: Vec::new(),
        };
        farm.handle("attach", attach)?;
    }
    let jobs = dispatch::jobs(tasks);
    let wanted: usize = jobs
        .iter()
        .map(|&windows| dispatch::tasks_of(windows))
        .sum();
    for (index, &windows) in jobs.iter().enumerate() {
        let submit = Event::Submit {
            job: JobId(format!("j-{index:010x}")),
            spec: Box::new(dispatch::spec(index as u64, windows)),
            isa: None,
            ranks: None,
        };
        farm.handle("submit", submit)?;
    }
    let tasks = farm.work()?;
    if tasks != wanted {
        bail!("{tasks} tasks were given out, of {wanted}");
    }
    let reports = farm.ms.get("report").cloned().unwrap_or_default();
    let parts: BTreeMap<_, f64> = farm
        .ms
        .iter()
        .map(|(kind, ms)| (*kind, ms.iter().sum()))
        .collect();
    let seconds = parts.values().sum::<f64>() / 1e3;
    let times = Times::of(reports.clone());
    Ok(Report {
        workers,
        tasks,
        seconds,
        decisions_per_second: tasks as f64 / seconds,
        decision_ms_p50: times.median_ms,
        decision_ms_p99: super::gpu::quantile(reports, 0.99),
        times,
        parts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_given_out_once_and_counted() {
        for (workers, tasks, given) in [(1, 4, 4), (3, 310, 310), (7, 650, 650)] {
            let report = measure(workers, tasks).expect("a report");
            assert!(
                (given - 3..=given).contains(&report.tasks),
                "{}",
                report.tasks
            );
            assert!(report.decision_ms_p50 <= report.decision_ms_p99);
            assert_eq!(report.parts.len(), 3);
        }
    }
}
