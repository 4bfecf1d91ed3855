//! `retake`: one segment of a complete film again, the rest of it as it is.

use super::jobs::{JobRef, follow, print};
use crate::client::Client;
use crate::output::Target;
use crate::render::deliver;
use anyhow::Result;
use longtake_proto::v1;
use std::path::PathBuf;

/// Flags of `retake`.
#[derive(clap::Args)]
pub struct RetakeArgs {
    #[command(flatten)]
    of: JobRef,
    /// Which segment, numbered from 0 as in `plan` and in the report
    #[arg(long, value_name = "N")]
    segment: u32,
    /// Seed for it [default: one that the job has not used; with --prompt, the segment's own]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// What the segment shows from now on [default: as before]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Wait until the film is complete again
    #[arg(long)]
    wait: bool,
    /// Fetch the film when it is complete again: FILE.mp4, or DIR/%06d.png for a PNG sequence
    #[arg(short, long, value_name = "OUT", requires = "wait")]
    output: Option<PathBuf>,
}

/// Asks for the retake, and follows it when asked to.
pub async fn run(args: RetakeArgs) -> Result<()> {
    let target = args.output.as_deref().map(Target::parse).transpose()?;
    if let Some(target) = &target {
        target.check()?;
    }
    let mut client = args.of.farm.connect().await?;
    // Before anything is rendered for a file that cannot be written then.
    let claim = target.as_ref().map(Target::claim).transpose()?;
    let request = v1::RetakeRequest {
        job: args.of.job.clone(),
        segment: args.segment,
        seed: args.seed,
        prompt: args.prompt,
    };
    let mut job = client.retake(request).await?;
    if args.wait {
        job = follow(&mut client, &args.of.job).await?;
        deliver::succeeded(&job)?;
    }
    if let Some((target, claim)) = target.as_ref().zip(claim.as_ref()) {
        let fetch = async |client: &mut Client, job: &v1::Job| {
            deliver::fetch_claimed(client, job, target, claim).await
        };
        job = deliver::persist(&mut client, job, fetch).await?;
    }
    print(&job, args.of.json)
}
