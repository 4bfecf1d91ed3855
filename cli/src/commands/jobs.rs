//! `status`, `watch`, `list`, `explain`, and what a user does to a job: `cancel`, `pause`, `resume`,
//! `retry`.

use crate::client::{FarmArgs, state_name};
use crate::progress::{Progress, duration};
use crate::terminal;
use anyhow::{Result, bail};
use longtake_proto::v1;
use serde::Serialize;
use std::time::Duration;

/// A coordinator that is away this long is given up by those who only watch.
pub const WATCH_PATIENCE: Duration = Duration::from_secs(60);

/// A job and the farm that has it.
#[derive(clap::Args)]
pub struct JobRef {
    /// The job, like j-0123456789
    pub job: String,
    #[command(flatten)]
    pub farm: FarmArgs,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Flags of a command that needs no more than a job.
#[derive(clap::Args)]
pub struct JobArgs {
    #[command(flatten)]
    of: JobRef,
}

/// Flags of `list`.
#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    farm: FarmArgs,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A job's state as the JSON has it.
#[derive(Serialize)]
pub struct StatusJson<'a> {
    job: &'a str,
    state: &'static str,
    segments_done: u32,
    segments_total: u32,
    eta_s: Option<f64>,
    error: Option<&'a str>,
}

impl<'a> From<&'a v1::Job> for StatusJson<'a> {
    fn from(job: &'a v1::Job) -> Self {
        Self {
            job: &job.job,
            state: state_name(job.state()),
            segments_done: job.segments_done,
            segments_total: job.segments_total,
            eta_s: job.eta_s,
            error: (!job.error.is_empty()).then_some(job.error.as_str()),
        }
    }
}

/// Shows a job once.
pub async fn status(args: JobArgs) -> Result<()> {
    let job = args.of.farm.connect().await?.get(&args.of.job).await?;
    print(&job, args.of.json)
}

/// Follows a job until it ends. Fails when the job did.
pub async fn watch(args: JobArgs) -> Result<()> {
    let mut client = args.of.farm.connect().await?;
    let job = follow(&mut client, &args.of.job).await?;
    print(&job, args.of.json)?;
    match job.state() {
        v1::JobState::Failed => bail!("job {} failed: {}", job.job, job.error),
        v1::JobState::Cancelled => bail!("job {} was cancelled", job.job),
        _ => Ok(()),
    }
}

/// Follows a job with progress on stderr until it ends, however it ends.
pub async fn follow(client: &mut crate::client::Client, job: &str) -> Result<v1::Job> {
    follow_showing(client, job, |_| {}).await
}

/// The same; `see` is told each of its states, too.
pub async fn follow_showing(
    client: &mut crate::client::Client,
    job: &str,
    see: impl Fn(&v1::Job),
) -> Result<v1::Job> {
    let mut progress = Progress::new();
    let show = |job: &v1::Job| {
        progress.show(job);
        see(job);
    };
    let last = client.watch(job, WATCH_PATIENCE, show).await;
    progress.finish();
    last
}

/// Cancels a job; what it has rendered stays in the artifact store.
pub async fn cancel(args: JobArgs) -> Result<()> {
    let job = args.of.farm.connect().await?.cancel(&args.of.job).await?;
    print(&job, args.of.json)
}

/// Has a job wait: nothing more of it is given out, what runs is finished.
pub async fn pause(args: JobArgs) -> Result<()> {
    let job = args.of.farm.connect().await?.pause(&args.of.job).await?;
    print(&job, args.of.json)
}

/// Has a paused job go on.
pub async fn resume(args: JobArgs) -> Result<()> {
    let job = args.of.farm.connect().await?.resume(&args.of.job).await?;
    print(&job, args.of.json)
}

/// Has a failed or cancelled job go on from what is stored.
pub async fn retry(args: JobArgs) -> Result<()> {
    let job = args.of.farm.connect().await?.retry(&args.of.job).await?;
    print(&job, args.of.json)
}

/// A job's state and why it is like that, as the JSON has it.
#[derive(Serialize)]
struct ExplainJson<'a> {
    #[serde(flatten)]
    status: StatusJson<'a>,
    isa: Option<&'a str>,
    reasons: &'a [String],
}

/// Says why a job is where it is.
pub async fn explain(args: JobArgs) -> Result<()> {
    let explanation = args.of.farm.connect().await?.reasons(&args.of.job).await?;
    let job = explanation.job.unwrap_or_default();
    if args.of.json {
        let json = ExplainJson {
            status: StatusJson::from(&job),
            isa: job.isa.as_deref(),
            reasons: &explanation.reasons,
        };
        return terminal::print(serde_json::to_string(&json)?);
    }
    terminal::print(line(&job))?;
    for reason in &explanation.reasons {
        terminal::print(format_args!("  {reason}"))?;
    }
    Ok(())
}

/// Lists all jobs.
pub async fn list(args: ListArgs) -> Result<()> {
    let jobs = args.farm.connect().await?.list().await?;
    if args.json {
        let jobs: Vec<StatusJson<'_>> = jobs.iter().map(StatusJson::from).collect();
        return terminal::print(serde_json::json!({ "jobs": jobs }));
    }
    if jobs.is_empty() {
        terminal::remark("no jobs");
    }
    for job in &jobs {
        let prompt = job.spec.as_ref().map_or("", |spec| spec.prompt.as_str());
        terminal::print(format_args!("{}  {}", line(job), shortened(prompt)))?;
    }
    Ok(())
}

/// Prints a job as it is now.
pub fn print(job: &v1::Job, json: bool) -> Result<()> {
    if json {
        return terminal::print(serde_json::to_string(&StatusJson::from(job))?);
    }
    terminal::print(line(job))
}

fn line(job: &v1::Job) -> String {
    let mut text = format!(
        "{}  {:9}  {} of {} windows",
        job.job,
        state_name(job.state()),
        job.segments_done,
        job.segments_total
    );
    if let Some(eta_s) = job.eta_s {
        text = format!("{text}, {} left", duration(eta_s));
    }
    if !job.error.is_empty() {
        text = format!("{text}: {}", job.error);
    }
    text
}

/// The beginning of a prompt, for a list.
fn shortened(prompt: &str) -> String {
    const CHARACTERS_MAX: usize = 48;
    let one_line = prompt.split_whitespace().collect::<Vec<_>>().join(" ");
    if one_line.chars().count() <= CHARACTERS_MAX {
        return one_line;
    }
    one_line.chars().take(CHARACTERS_MAX).chain(['…']).collect()
}
