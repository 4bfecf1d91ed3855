//! `submit`: gives a job to a farm.

use crate::client::{Client, FarmArgs};
use crate::commands::jobs::follow_showing;
use crate::farm_model;
use crate::job_args::JobArgs;
use crate::local_args::LocalArgs;
use crate::output::Target;
use crate::render::check_level;
use crate::render::deliver::{self, LatentsTarget};
use crate::render::preview::{PreviewTarget, PreviewWriter};
use crate::render::report::Report;
use crate::terminal::{print, remark};
use anyhow::{Context, Result};
use longtake_common::spec::Codec;
use longtake_proto::v1;
use longtake_server::convert::spec_to_proto;
use std::path::PathBuf;
use std::time::Instant;

/// Flags of `submit`.
#[derive(clap::Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    farm: FarmArgs,
    #[command(flatten)]
    local: LocalArgs,
    /// Instruction-set level to render on: avx512, avx2 or scalar, or that of GPUs as 'workers list'
    /// shows it. Workers of one level make equal films [default: that of the first worker that takes
    /// the job]
    #[arg(long)]
    isa: Option<String>,
    /// Wait until the job ends; fail when it does
    #[arg(long)]
    wait: bool,
    /// Fetch the film when it is done: FILE.mp4, or DIR/%06d.png for a PNG sequence
    #[arg(short, long, value_name = "OUT", requires = "wait")]
    output: Option<PathBuf>,
    /// Fetch the latents of each window, too, as the last denoising step leaves them
    #[arg(long, value_name = "FILE", requires = "wait")]
    save_latents: Option<PathBuf>,
    /// With two passes, write the first one of each window to this FILE.mp4 as soon as it is there
    #[arg(long, value_name = "FILE.mp4", requires = "wait")]
    preview: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Submits, and follows the job when asked to.
pub async fn run(args: SubmitArgs) -> Result<()> {
    let started = Instant::now();
    let target = args.output.as_deref().map(Target::parse).transpose()?;
    if let Some(target) = &target {
        target.check()?;
    }
    args.local.refuse()?;
    check_level(args.isa.as_deref())?;
    let codec = target.as_ref().map_or(Codec::H264, Target::codec);
    let (mut wanted, mut client) = farm_model::wanted_on_farm(&args.job, codec, &args.farm).await?;
    wanted.spec.previews = args.preview.is_some();
    wanted.spec.check()?;
    args.local.check_ranks(&wanted.spec)?;
    let preview = args.preview.as_deref();
    let preview = preview.map(|path| PreviewTarget::new(path, &wanted.spec, target.as_ref()));
    let preview = preview.transpose()?;
    let windows = longtake_core::plan(&wanted.spec).windows.len();
    let latents = args.save_latents.as_deref();
    let latents = latents.map(|path| LatentsTarget::new(path, windows, target.as_ref()));
    let latents = latents.transpose()?;
    for notice in &wanted.notices {
        remark(format_args!("note: {notice}"));
    }
    // Before anything is rendered for a file that cannot be written then.
    let claim = target.as_ref().map(Target::claim).transpose()?;
    wanted.uploads.send(&mut client).await?;
    let ranks = args.local.ranks_wanted();
    let spec = spec_to_proto(&wanted.spec);
    let reply = client.submit(spec, args.isa, ranks).await?;
    if reply.continued {
        remark(format_args!(
            "an equal job is under way already: {}",
            reply.job
        ));
    }
    if args.wait {
        let writer = preview.map(|target| PreviewWriter::start(&target, &client, started));
        let job = follow_showing(&mut client, &reply.job, |job| {
            if let Some(writer) = &writer {
                writer.show(job);
            }
        });
        let job = job.await;
        let preview = match writer {
            Some(writer) => writer.finish().await,
            None => None,
        };
        let job = job?;
        deliver::succeeded(&job)?;
        let fetch = async |client: &mut Client, job: &v1::Job| {
            if let Some(latents) = &latents {
                let saved = latents.fetch(client, job).await;
                saved.context("save the latents")?;
            }
            match target.as_ref().zip(claim.as_ref()) {
                Some((target, claim)) => deliver::fetch_claimed(client, job, target, claim).await,
                None => Ok(()),
            }
        };
        let job = deliver::persist(&mut client, job, fetch).await?;
        if let Some(target) = &target {
            let took = started.elapsed();
            Report::new(&job, target.given(), &wanted, took, preview).write(&target.report())?;
        }
    }
    if args.json {
        return print(serde_json::json!({ "job": reply.job }));
    }
    print(reply.job)
}
