//! `coordinator`: the farm's head.

use anyhow::{Context, Result};
use longtake_server::{Config, Coordinator, LEASE_MS};
use std::net::SocketAddr;

/// Flags of `coordinator`.
#[derive(clap::Args)]
pub struct CoordinatorArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7341")]
    listen: SocketAddr,
    /// Where jobs are kept, as file:FOLDER
    #[arg(long, value_name = "URL", default_value = "file:longtake-state")]
    state: String,
    /// Where results are kept, as file:FOLDER; workers must reach it under the same URL
    #[arg(long, value_name = "URL", default_value = "file:longtake-artifacts")]
    artifacts: String,
    /// Listen on an address that other machines reach, although nothing is encrypted
    #[arg(long)]
    insecure: bool,
}

/// Serves until told to stop.
pub async fn run(args: CoordinatorArgs) -> Result<()> {
    let mut handle = Coordinator::start(Config {
        listen: args.listen,
        state: args.state,
        artifacts: args.artifacts,
        insecure: args.insecure,
        // Workers outlive us; they come back within their backoff and are due within a lease.
        adopt_ms: 2 * LEASE_MS,
    })
    .await?;
    eprintln!("coordinator at {}", handle.url());
    let stop = super::stop_signal()?;
    tokio::select! {
        ended = handle.wait() => return ended.context("the coordinator stopped"),
        () = stop => {}
    }
    handle.shutdown().await;
    Ok(())
}
