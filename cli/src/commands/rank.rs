//! `rank`: the process of another rank that a worker shares its windows with. Workers start it.

use anyhow::{Context, Result};
use longtake_agent::GangSettings;
use std::net::IpAddr;

/// Most ranks of a window.
pub const RANKS_MAX: i64 = 32;

/// Flags of `rank`.
#[derive(clap::Args)]
pub struct RankArgs {
    /// Threads to render with
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Instruction-set level [default: the best that this machine has]
    #[arg(long)]
    isa: Option<String>,
}

/// Does what standard input says until it ends.
pub async fn run(args: RankArgs) -> Result<()> {
    let serve = move || longtake_agent::serve_rank(usize::from(args.threads), args.isa.as_deref());
    let served = tokio::task::spawn_blocking(serve).await;
    Ok(served.context("a rank's own work ended")??)
}

/// How a worker starts its other ranks, of `threads` threads each, which others reach at `address`.
pub fn gang(
    ranks: usize,
    threads: usize,
    isa: Option<&str>,
    address: IpAddr,
) -> Result<GangSettings> {
    let mut arguments = vec![
        "rank".to_owned(),
        "--threads".to_owned(),
        threads.to_string(),
    ];
    if let Some(isa) = isa {
        arguments.extend(["--isa".to_owned(), isa.to_owned()]);
    }
    Ok(GangSettings {
        ranks,
        address,
        program: std::env::current_exe().context("find the program's own path")?,
        arguments,
    })
}
