//! `coordinator`: the farm's head.

use crate::terminal::remark;
use anyhow::{Context, Result};
use longtake_server::{Access, Config, Coordinator, LEASE_MS, TlsFiles};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// Flags of `coordinator`.
#[derive(clap::Args)]
pub struct CoordinatorArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7341", value_parser = listen_address)]
    listen: SocketAddr,
    /// Where jobs are kept: file:FOLDER, or etcd://HOST:PORT,...[/PREFIX]
    #[arg(long, value_name = "URL", default_value = "file:longtake-state")]
    state: String,
    /// Where results are kept: file:FOLDER, or s3://BUCKET[/PREFIX] with AWS_ENDPOINT_URL,
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION in the environment; workers must reach
    /// it under the same URL
    #[arg(long, value_name = "URL", default_value = "file:longtake-artifacts")]
    artifacts: String,
    /// Listen on an address that other machines reach, although nothing is encrypted
    #[arg(long)]
    insecure: bool,
    /// Certificate of this coordinator and what leads to its authority, PEM; turns TLS on
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authorities whose certificates workers and users have to show (mutual TLS), PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Tokens that are accepted, one 'ROLE TOKEN' a line; roles are worker, user and viewer
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Also serve /metrics, /healthz and /readyz on this address and port
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
}

impl CoordinatorArgs {
    fn access(&self) -> Access {
        let tls = self.tls_cert.clone().zip(self.tls_key.clone());
        Access {
            tls: tls.map(|(cert, key)| TlsFiles {
                cert,
                key,
                client_ca: self.tls_client_ca.clone(),
            }),
            token_file: self.token_file.clone(),
            http: self.http,
        }
    }
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
    let access = args.access();
    super::allow_many_connections();
    let mut handle = Coordinator::start(Config {
        listen: args.listen,
        state: args.state,
        artifacts: args.artifacts,
        insecure: args.insecure,
        // Workers outlive us; they come back within their backoff and are due within a lease.
        adopt_ms: 2 * LEASE_MS,
        access,
    })
    .await?;
    remark(format_args!("coordinator at {}", handle.url()));
    if let Some(url) = handle.http_url() {
        remark(format_args!("metrics at {url}/metrics"));
    }
    let stop = super::stop_signal()?;
    tokio::select! {
        ended = handle.wait() => return ended.context("the coordinator stopped"),
        () = stop => {}
    }
    handle.shutdown().await;
    Ok(())
}
