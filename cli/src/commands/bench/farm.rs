//! The processes that are measured: a coordinator and, where asked for, an etcd.

use anyhow::{Context, Result, anyhow, bail};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Clock ticks a second in `/proc/PID/stat`; the kernel shows 100 to every program.
const TICKS_PER_SECOND: f64 = 100.0;

/// A coordinator of this build, in a process of its own. Dropping it kills it.
pub struct Coordinator {
    process: Child,
    pid: u32,
    url: String,
}

impl Coordinator {
    /// Starts one on a free port.
    pub async fn start(state: &str, artifacts: &str) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut process = Command::new(program)
            .args(["coordinator", "--listen", "127.0.0.1:0"])
            .args(["--state", state, "--artifacts", artifacts])
            .env("LONGTAKE_LOG", "warn")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start a coordinator")?;
        let pid = process.id().context("the coordinator ended at once")?;
        let log = process
            .stderr
            .take()
            .context("read the coordinator's log")?;
        let mut lines = BufReader::new(log).lines();
        let mut story = Vec::new();
        let url = loop {
            match lines.next_line().await? {
                Some(line) => match line.strip_prefix("coordinator at ") {
                    Some(url) => break url.to_owned(),
                    None => story.push(line),
                },
                None => bail!("the coordinator did not start: {}", story.join("; ")),
            }
        };
        // Somebody has to read on, or the coordinator would block on a full pipe.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::warn!("coordinator: {line}");
            }
        });
        Ok(Self { process, pid, url })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends it.
    pub async fn stop(mut self) {
        // Whatever comes of it, it is gone when this is dropped.
        let _ = self.process.kill().await;
    }

    /// Processor time that it has used, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.pid);
        let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // pid (name) state ppid ...; the name may hold anything but ends at the last parenthesis.
        // User and system time are the 14th and 15th field of the line.
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let ticks = fields
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().ok());
        let ticks: Option<u64> = ticks.sum();
        let ticks = ticks.ok_or_else(|| anyhow!("{path} does not look as expected"))?;
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }

    /// Most memory that it has had, in bytes.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid);
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
            .and_then(|text| text.trim().parse::<u64>().ok());
        let kilobytes = kilobytes.ok_or_else(|| anyhow!("{path} does not look as expected"))?;
        Ok(kilobytes << 10)
    }
}

/// An etcd of one member. Dropping it kills it.
pub struct Etcd {
    _process: Child,
    client: String,
}

impl Etcd {
    /// Starts one with its data in `folder`. Whoever uses it has to wait until it answers.
    pub fn start(folder: &Path) -> Result<Self> {
        let (client, peer) = (free_address()?, free_address()?);
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let process = Command::new("etcd")
            .args(["--name", "bench", "--log-level", "error", "--data-dir"])
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("bench={peer_url}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start etcd: is it installed? Debian's package is etcd-server")?;
        Ok(Self {
            _process: process,
            client,
        })
    }

    /// Its URL as a state store.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.client)
    }
}

/// A loopback address that nobody listens on at the moment.
fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.to_string())
}
