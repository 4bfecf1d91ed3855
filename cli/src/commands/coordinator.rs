//! `coordinator`: the farm's head.

use crate::terminal::remark;
use anyhow::{Context, Result};
use longtake_server::{Config, Coordinator, LEASE_MS};
use std::net::{SocketAddr, ToSocketAddrs};

/// Flags of `coordinator`.
#[derive(clap::Args)]
pub struct CoordinatorArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7341", value_parser = listen_address)]
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

/// Reads `--listen`; a host's name stands for its first address.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let way_out = "write HOST:PORT, like 127.0.0.1:7341";
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; {way_out}"))?;
    found
        .next()
        .ok_or_else(|| format!("the name has no address; {way_out}"))
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
    remark(format_args!("coordinator at {}", handle.url()));
    let stop = super::stop_signal()?;
    tokio::select! {
        ended = handle.wait() => return ended.context("the coordinator stopped"),
        () = stop => {}
    }
    handle.shutdown().await;
    Ok(())
}
