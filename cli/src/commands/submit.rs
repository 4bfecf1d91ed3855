//! `submit`: gives a job to a farm.

use crate::client::{Client, FarmArgs};
use crate::commands::jobs::follow;
use crate::farm_model;
use crate::job_args::JobArgs;
use crate::output::Target;
use crate::render::deliver;
use crate::terminal::{print, remark};
use anyhow::Result;
use longtake_common::spec::Codec;
use longtake_proto::v1;
use longtake_server::convert::spec_to_proto;
use std::path::PathBuf;

/// Flags of `submit`.
#[derive(clap::Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    farm: FarmArgs,
    /// Instruction-set level to render on: avx512, avx2 or scalar. Workers of one level make equal
    /// films [default: that of the first worker that takes the job]
    #[arg(long)]
    isa: Option<String>,
    /// Wait until the job ends; fail when it does
    #[arg(long)]
    wait: bool,
    /// Fetch the film when it is done: FILE.mp4, or DIR/%06d.png for a PNG sequence
    #[arg(short, long, value_name = "OUT", requires = "wait")]
    output: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Submits, and follows the job when asked to.
pub async fn run(args: SubmitArgs) -> Result<()> {
    let target = args.output.as_deref().map(Target::parse).transpose()?;
    if let Some(target) = &target {
        target.check()?;
    }
    longtake_agent::check_isa(args.isa.as_deref())?;
    let codec = target.as_ref().map_or(Codec::H264, Target::codec);
    let (wanted, mut client) = farm_model::wanted_on_farm(&args.job, codec, &args.farm).await?;
    for notice in &wanted.notices {
        remark(format_args!("note: {notice}"));
    }
    // Before anything is rendered for a file that cannot be written then.
    let claim = target.as_ref().map(Target::claim).transpose()?;
    wanted.uploads.send(&mut client).await?;
    let reply = client.submit(spec_to_proto(&wanted.spec), args.isa).await?;
    if reply.continued {
        remark(format_args!(
            "an equal job is under way already: {}",
            reply.job
        ));
    }
    if args.wait {
        let job = follow(&mut client, &reply.job).await?;
        deliver::succeeded(&job)?;
        if let Some((target, claim)) = target.as_ref().zip(claim.as_ref()) {
            let fetch = async |client: &mut Client, job: &v1::Job| {
                deliver::fetch_claimed(client, job, target, claim).await
            };
            deliver::persist(&mut client, job, fetch).await?;
        }
    }
    if args.json {
        return print(serde_json::json!({ "job": reply.job }));
    }
    print(reply.job)
}
