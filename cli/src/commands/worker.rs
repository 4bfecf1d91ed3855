//! `worker`: one worker process, for a farm or for a `render` beside it.

use super::rank::RANKS_MAX;
use crate::access_args::AccessArgs;
use anyhow::{Context, Result, anyhow, bail};
use longtake_agent::{AgentConfig, Device, ModelSettings};
use longtake_server::NAME_BYTES_MAX;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// Flags of `worker`.
#[derive(clap::Args)]
pub struct WorkerArgs {
    /// Address of the coordinator, like http://host:7341
    #[arg(
        long,
        value_name = "URL",
        env = "LONGTAKE_COORDINATOR",
        hide_env_values = true
    )]
    coordinator: String,
    #[command(flatten)]
    access: AccessArgs,
    /// What to render on: cpu, or an NVIDIA GPU like cuda:0
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: Device,
    /// Most of the GPU's memory to take, like 16GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::bytes)]
    max_vram: Option<u64>,
    /// Threads to render with [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Ranks that it can be of a gang that shares a window: this process and others that it starts; the
    /// threads are divided among them. A job that wants no certain number gets as many of them as divide
    /// its model's attention heads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX))]
    ranks: u16,
    /// This machine's address where the ranks of workers on other machines reach ours
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    gang_address: IpAddr,
    /// Let ranks talk over --gang-address in the clear: on a network of their own
    #[arg(long)]
    insecure: bool,
    /// Instruction-set level: avx512, avx2 or scalar [default: the best that this machine has]
    #[arg(long)]
    isa: Option<String>,
    /// Name shown in reports [default: host name and process id]
    #[arg(long)]
    name: Option<String>,
    /// Folder for files that only this worker needs [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    scratch: Option<std::path::PathBuf>,
    /// A model that this worker has, besides those under configs/models: a name or a path. May be
    /// given several times
    #[arg(long = "model", value_name = "PATH")]
    models: Vec<String>,
    /// Folder for models that are fetched from the farm; workers of one machine can share it
    /// [default: longtake/models in the user's cache folder]
    #[arg(
        long,
        value_name = "DIR",
        env = "LONGTAKE_MODEL_CACHE",
        hide_env_values = true
    )]
    model_cache: Option<std::path::PathBuf>,
    /// How much it may hold, like 200GiB; the models that were not used for longest go first
    #[arg(long, value_name = "SIZE", default_value = "200GiB", value_parser = crate::size::bytes)]
    model_cache_max: u64,
    /// How long to finish what was begun when told to stop (SIGTERM, Ctrl-C); nothing new is taken,
    /// and a window that is not done then is stored for another worker to go on with
    #[arg(long, value_name = "S", default_value_t = longtake_agent::DRAIN_GRACE.as_secs())]
    drain_seconds: u64,
    /// Leave as soon as standard input ends, that is when the process that started us is gone
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Works until told to stop.
pub async fn run(args: WorkerArgs) -> Result<()> {
    if args.exit_with_parent {
        watch_parent()?;
    }
    let scratch = args.scratch.unwrap_or_else(std::env::temp_dir);
    check_scratch(&scratch)?;
    let threads = args
        .threads
        .map_or_else(longtake_agent::host::cores, usize::from);
    let ranks = usize::from(args.ranks);
    let threads = (threads / ranks).max(1);
    check_gang_address(args.gang_address, args.insecure)?;
    longtake_agent::check_gang(args.device, ranks)?;
    let gang = (args.device == Device::Cpu)
        .then(|| super::rank::gang(ranks, threads, args.isa.as_deref(), args.gang_address));
    let config = AgentConfig {
        coordinator: args.access.dial(&args.coordinator),
        name: args.name.unwrap_or_else(default_name),
        device: args.device,
        memory_limit: args.max_vram,
        threads,
        gang: gang.transpose()?,
        isa: args.isa,
        scratch,
        models: ModelSettings {
            local: args.models,
            cache: args.model_cache,
            cache_max_bytes: args.model_cache_max,
            // Whoever started us has the same files and may name them.
            takes_paths: args.exit_with_parent,
        },
        drain_grace: std::time::Duration::from_secs(args.drain_seconds),
    };
    let stop = super::stop_signal()?;
    Ok(longtake_agent::run(config, stop).await?)
}

/// Whoever can listen in on the ranks sees the pictures that they make, and they have no way to hide
/// them.
fn check_gang_address(address: IpAddr, insecure: bool) -> Result<()> {
    if address.is_loopback() || insecure {
        return Ok(());
    }
    bail!(
        "ranks talk to each other in the clear: with --gang-address {address} add --insecure, on a network that only they are on, or leave it out for gangs of this machine"
    )
}

/// Ends this process when the one that holds the other end of our standard input does. A thread of
/// its own: it must work whatever the rest of the process is doing.
fn watch_parent() -> Result<()> {
    let wait = || {
        let mut stdin = std::io::stdin().lock();
        let mut byte = [0u8; 64];
        while !matches!(stdin.read(&mut byte), Ok(0) | Err(_)) {}
        std::process::exit(0);
    };
    std::thread::Builder::new()
        .name("parent-watch".to_owned())
        .spawn(wait)
        .context("start the thread that watches the parent process")?;
    Ok(())
}

/// Makes the scratch folder and tries it: it is needed last, when everything is rendered.
fn check_scratch(folder: &Path) -> Result<()> {
    let tried = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    tried.map(drop).map_err(|error| {
        anyhow!(
            "cannot use {} for scratch files ({error}); choose another with --scratch",
            folder.display()
        )
    })
}

/// Host name and process id. The coordinator takes names of up to 64 bytes without '#' and control
/// characters; a host may be called anything.
fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name_of(&host, std::process::id())
}

fn name_of(host: &str, pid: u32) -> String {
    let pid = format!("-{pid}");
    let plain = |c: &char| !c.is_control() && *c != '#';
    let mut name = String::new();
    for c in host.trim().chars().filter(plain) {
        if name.len() + c.len_utf8() + pid.len() > NAME_BYTES_MAX {
            break;
        }
        name.push(c);
    }
    let host = if name.is_empty() { "worker" } else { &name };
    format!("{host}{pid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_to_what_is_taken() {
        assert_eq!(name_of("render-7\n", 42), "render-7-42");
        assert_eq!(name_of("", 42), "worker-42");
        assert_eq!(name_of("a#b\t", 1), "ab-1");
        let long = name_of(&"ö".repeat(100), 123_456);
        assert!(long.len() <= NAME_BYTES_MAX && long.len() > 60, "{long}");
        assert!(long.ends_with("ö-123456"), "{long}");
    }
}
