//! A farm on a real etcd and a real S3-speaking server, for tests that disturb it.

use crate::network::Machine;
use crate::product::{binary, longtake};
use crate::services::{Etcd, Process, S3, free_address_at};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a request to a coordinator's pages.
const ANSWER: Duration = Duration::from_secs(20);
const WAY_OUT: &str = "build it with `cargo build --release`";

/// A coordinator and its stores.
pub struct Farm {
    folder: tempfile::TempDir,
    host: IpAddr,
    address: SocketAddr,
    /// Where the coordinator shows how it is.
    http: SocketAddr,
    coordinator: Option<Process>,
    /// Where it keeps its state.
    pub etcd: Etcd,
    /// Where it keeps artifacts.
    pub s3: S3,
}

impl Farm {
    /// Starts one at an address of this machine.
    ///
    /// # Panics
    /// When a part of it is not installed or does not come up.
    pub fn start(host: IpAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (etcd, s3) = (
            Etcd::start_at(folder.path(), host),
            S3::start_at(folder.path(), host),
        );
        let mut farm = Self {
            address: free_address_at(host),
            http: free_address_at(host),
            folder,
            host,
            coordinator: None,
            etcd,
            s3,
        };
        farm.start_coordinator();
        let started = Instant::now();
        while TcpStream::connect(farm.address).is_err() {
            assert!(
                started.elapsed() < ANSWER && farm.is_running(),
                "the coordinator does not come up: {}",
                farm.log("coordinator")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        farm
    }

    /// Where everything lies that belongs to it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder when the farm is gone, for whoever wants to know what happened.
    pub fn keep(self) -> std::path::PathBuf {
        self.folder.keep()
    }

    /// The coordinator's address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a process of the farm has written to its standard error.
    pub fn log(&self, name: &str) -> String {
        let path = self.folder.path().join(format!("{name}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Starts the coordinator, without waiting for it.
    pub fn start_coordinator(&mut self) {
        let mut command = longtake();
        command
            .envs(self.s3.environment())
            .args(["coordinator", "--listen", &self.address.to_string()])
            .args(["--state", &self.etcd.url(), "--artifacts", &self.s3.url()])
            .args(["--http", &self.http.to_string()]);
        if !self.host.is_loopback() {
            command.arg("--insecure");
        }
        self.coordinator = Some(self.process("coordinator", &mut command));
    }

    /// Kills the coordinator, as a power cut would.
    pub fn kill_coordinator(&mut self) {
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.kill();
        }
    }

    /// Whether there is a coordinator.
    pub fn is_running(&mut self) -> bool {
        let coordinator = self.coordinator.as_mut();
        coordinator.is_some_and(Process::is_running)
    }

    /// Starts a worker: here, or on another machine.
    pub fn worker(&self, name: &str, machine: Option<&Machine>) -> Process {
        self.worker_with(name, machine, &[])
    }

    /// The same with more flags.
    pub fn worker_with(&self, name: &str, machine: Option<&Machine>, flags: &[&str]) -> Process {
        let mut command = match machine {
            Some(machine) => machine.command(&binary()),
            None => longtake(),
        };
        command
            .env_remove("LONGTAKE_COORDINATOR")
            // It says what it takes.
            .env("LONGTAKE_LOG", "info,longtake_agent=debug")
            .envs(self.s3.environment())
            .args(["worker", "--coordinator", &self.url(), "--threads", "1"])
            .args(["--name", name, "--scratch"])
            .arg(self.folder.path())
            .args(flags);
        self.process(name, &mut command)
    }

    /// A user's command.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = longtake();
        command.args(args);
        command.args(["--coordinator", &self.url(), "--json"]);
        command
    }

    /// Starts a user's command, which logs under `name`.
    pub fn start_command(&self, name: &str, args: &[&str]) -> Process {
        self.process(name, &mut self.command(args))
    }

    /// Starts a process that logs into the folder.
    fn process(&self, name: &str, command: &mut Command) -> Process {
        let path = self.folder.path().join(format!("{name}.log"));
        let mut options = std::fs::File::options();
        let log = options.create(true).append(true).open(path);
        command.stdout(Stdio::null()).stderr(log.expect("a log"));
        Process::start(command, WAY_OUT)
    }

    /// The answer to a request for one of the coordinator's pages; empty when there is none.
    pub fn page(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect_timeout(&self.http, ANSWER) {
            let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            let asked = stream
                .set_read_timeout(Some(ANSWER))
                .and_then(|()| stream.write_all(request.as_bytes()));
            if asked.is_ok() {
                // An answer without an end is an answer, too.
                let _ = stream.read_to_string(&mut answer);
            }
        }
        answer
    }
}
