//! `render`: from a prompt to a film, with a coordinator and workers of its own or on a farm.

pub mod deliver;
pub mod embedded;
pub mod preview;
pub mod report;
pub mod state;
mod workers;

pub use embedded::open_state;
pub use state::has_database;

use crate::client::{Client, FarmArgs};
use crate::estimate::Estimate;
use crate::exit::Interrupted;
use crate::farm_model;
use crate::job_args::{JobArgs, Wanted};
use crate::local_args::LocalArgs;
use crate::output::{Claim, Target};
use crate::pace::{self, Basis, Installation};
use crate::progress::{Progress, duration};
use crate::telemetry_args::TelemetryArgs;
use crate::terminal::{print, remark};
use anyhow::{Context, Result, bail};
use deliver::LatentsTarget;
use longtake_common::model::find_model;
use longtake_common::spec::JobSpec;
use longtake_core::Plan;
use longtake_proto::v1;
use longtake_server::convert::spec_to_proto;
use preview::{PreviewReport, PreviewTarget, PreviewWriter};
use report::Report;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Flags of `render`.
#[derive(clap::Args)]
pub struct RenderArgs {
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub farm: FarmArgs,
    #[command(flatten)]
    pub local: LocalArgs,
    /// Instruction-set level: avx512, avx2 or scalar; on a farm also that of GPUs as 'workers list'
    /// shows it [default: the best that this machine has; on a farm that of the first worker]
    #[arg(long)]
    isa: Option<String>,
    /// Also store the latents of each window, as the last denoising step leaves them
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// With two passes, write the first one of each window to this FILE.mp4 as soon as it is there
    #[arg(long, value_name = "FILE.mp4")]
    preview: Option<PathBuf>,
    /// The film: FILE.mp4, or DIR/%06d.png for a PNG sequence that begins with 000001.png
    #[arg(short, long, value_name = "OUT", default_value = "out.mp4")]
    pub output: PathBuf,
    /// Print the report as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Everything that was checked before the work starts.
struct Order {
    wanted: Wanted,
    target: Target,
    claim: Claim,
    latents: Option<LatentsTarget>,
    preview: Option<PreviewTarget>,
    /// Instruction-set level to render on, if one was chosen.
    isa: Option<String>,
    /// Ranks that share each window, where a farm's workers do.
    ranks: Option<u32>,
    started: Instant,
}

/// Renders, delivers, reports.
pub async fn run(args: RenderArgs, telemetry: &TelemetryArgs) -> Result<()> {
    let started = Instant::now();
    let target = Target::parse(&args.output)?;
    target.check()?;
    let codec = target.codec();
    let wanted = match args.farm.url() {
        Some(_) => {
            args.local.refuse()?;
            check_level(args.isa.as_deref())?;
            farm_model::wanted_on_farm(&args.job, codec, &args.farm)
                .await?
                .0
        }
        None => farm_model::wanted_here(&args.job, codec, args.local.state.as_deref()).await?,
    };
    let wanted = args.previewed(wanted)?;
    args.local.check_ranks(&wanted.spec)?;
    let preview = args.preview.as_deref();
    let preview = preview.map(|path| PreviewTarget::new(path, &wanted.spec, Some(&target)));
    let preview = preview.transpose()?;
    let plan = longtake_core::plan(&wanted.spec);
    let latents = args
        .save_latents
        .as_deref()
        .map(|path| LatentsTarget::new(path, plan.windows.len(), Some(&target)))
        .transpose()?;
    let claim = target.claim()?;
    let estimate = args.estimate(&wanted.spec, &plan).await;
    let mut order = Order {
        wanted,
        target,
        claim,
        latents,
        preview,
        isa: args.isa.clone(),
        ranks: (args.farm.url()).and_then(|_| args.local.ranks_wanted()),
        started,
    };
    let mut report = match args.farm.url() {
        Some(_) => on_farm(&args.farm, &order).await?,
        None => embedded::render(&args, &mut order, telemetry).await?,
    };
    report.compare(estimate.as_ref());
    let text = report.write(&order.target.report())?;
    if args.json {
        return print(text);
    }
    remark(format_args!(
        "{}: {} frames in {}{}",
        order.target.given().display(),
        report.frames,
        duration(report.seconds_total),
        report.estimate_text()
    ));
    Ok(())
}

impl RenderArgs {
    /// The job, with previews where they are asked for.
    pub fn previewed(&self, mut wanted: Wanted) -> Result<Wanted> {
        wanted.spec.previews = self.preview.is_some();
        wanted.spec.check()?;
        Ok(wanted)
    }

    /// What a job will take of the workers that would render it; `None` where nobody can say.
    pub async fn estimate(&self, spec: &JobSpec, plan: &Plan) -> Option<Estimate> {
        let model = find_model(&spec.model.location).ok();
        let (basis, workers) = match self.farm.url() {
            None => {
                let (count, threads) = embedded::crew(self);
                let level = longtake_agent::level(
                    self.local.devices().first(),
                    self.isa.as_deref(),
                    self.local.max_vram,
                )
                .ok()?;
                let of = self.installation(spec, &level, threads);
                (pace::here(&of, model.as_deref()), count)
            }
            Some(_) => match self.ask_farm(&spec.model.location, model.as_deref()).await {
                Ok(found) => found,
                Err(error) => {
                    remark(format_args!("note: the farm gives no estimate: {error:#}"));
                    return None;
                }
            },
        };
        Some(Estimate::new(spec, plan, &basis?, workers))
    }

    /// What the farm has shown, and how many workers it has.
    async fn ask_farm(&self, name: &str, model: Option<&Path>) -> Result<(Option<Basis>, usize)> {
        let mut client = self.farm.connect().await?;
        let workers = client.workers().await?;
        let threads = workers.first().map_or(1, |worker| worker.threads as usize);
        let basis = match pace::on_farm(&mut client, name).await? {
            Some(basis) => Some(basis),
            None => model.map(|model| Basis::assumed_of(model, threads)),
        };
        Ok((basis, workers.len()))
    }

    fn installation(&self, spec: &JobSpec, isa: &str, threads: usize) -> Installation {
        Installation {
            model: spec.model.location.clone(),
            device: self.local.devices().to_string(),
            isa: isa.to_owned(),
            threads,
        }
    }
}

/// Fails when no worker of a farm can have the level that a job is to be rendered on.
pub fn check_level(isa: Option<&str>) -> Result<()> {
    match isa.and_then(longtake_core::unknown_level) {
        Some(sentence) => bail!(sentence),
        None => Ok(()),
    }
}

/// Renders on a farm.
async fn on_farm(farm: &FarmArgs, order: &Order) -> Result<Report> {
    let mut client = farm.connect().await?;
    let patience = crate::commands::jobs::WATCH_PATIENCE;
    let stop = crate::commands::stop_signal()?;
    let job = tokio::select! {
        done = carry_out(&mut client, order, patience) => done?,
        () = stop => {
            return Err(Interrupted(
                "interrupted; the farm goes on with the job, and the same command waits for it again"
                    .to_owned(),
            )
            .into());
        }
    };
    let (job, preview) = job;
    deliver(&mut client, job, preview, order).await
}

/// Submits the job and follows it to its end.
async fn carry_out(
    client: &mut Client,
    order: &Order,
    patience: Duration,
) -> Result<(v1::Job, Option<PreviewReport>)> {
    let mut progress = Progress::new();
    for notice in &order.wanted.notices {
        progress.note(notice);
    }
    order.wanted.uploads.send(client).await?;
    let reply = client
        .submit(
            spec_to_proto(&order.wanted.spec),
            order.isa.clone(),
            order.ranks,
        )
        .await?;
    if reply.continued {
        progress.note("going on where an earlier run was stopped");
    }
    let target = order.preview.as_ref();
    let writer = target.map(|target| PreviewWriter::start(target, client, order.started));
    let see = |job: &v1::Job| {
        progress.show(job);
        if let Some(writer) = &writer {
            writer.show(job);
        }
    };
    let job = client.watch(&reply.job, patience, see).await;
    progress.finish();
    let preview = match writer {
        Some(writer) => writer.finish().await,
        None => None,
    };
    let job = job?;
    deliver::succeeded(&job)?;
    Ok((job, preview))
}

/// Brings film and latents to their places and writes up how it went.
async fn deliver(
    client: &mut Client,
    job: v1::Job,
    preview: Option<PreviewReport>,
    order: &Order,
) -> Result<Report> {
    let fetch = async |client: &mut Client, job: &v1::Job| {
        if let Some(latents) = &order.latents {
            let saved = latents.fetch(client, job).await;
            saved.context("save the latents")?;
        }
        deliver::fetch_claimed(client, job, &order.target, &order.claim).await
    };
    let job = deliver::persist(client, job, fetch).await?;
    Ok(Report::new(
        &job,
        order.target.given(),
        &order.wanted,
        order.started.elapsed(),
        preview,
    ))
}
