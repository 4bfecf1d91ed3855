//! A farm on a real etcd and a real S3-speaking server, in which everything dies once.

use longtake_tests::product::{longtake, render};
use longtake_tests::services::{Etcd, Process, S3, free_address};
use serde_json::Value;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(90);
const PROMPT: &str = "a red circle moves to the right on a blue background";
/// A film of fifteen windows.
const FILM: &[&str] = &[
    "--size=64x64",
    "--frames=360",
    "--segment-frames=33",
    "--overlap-frames=9",
    "--seed=3",
];

/// A coordinator, its workers and its stores.
struct Farm {
    folder: tempfile::TempDir,
    etcd: Etcd,
    s3: S3,
    address: SocketAddr,
    coordinator: Process,
}

impl Farm {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (etcd, s3) = (Etcd::start(folder.path()), S3::start(folder.path()));
        let address = free_address();
        let coordinator = coordinator(folder.path(), &etcd, &s3, address);
        Self {
            folder,
            etcd,
            s3,
            address,
            coordinator,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A worker that has the store's credentials in its own environment.
    fn worker(&self, name: &str) -> Process {
        let mut command = longtake();
        command
            .envs(self.s3.environment())
            .args(["worker", "--coordinator", &self.url(), "--threads", "1"])
            .args(["--name", name, "--scratch"])
            .arg(self.folder.path());
        start(self.folder.path(), name, &mut command)
    }

    fn restart_coordinator(&mut self) {
        self.coordinator.kill();
        self.coordinator = coordinator(self.folder.path(), &self.etcd, &self.s3, self.address);
    }

    /// What a user's command prints.
    fn ask(&self, args: &[&str]) -> Value {
        json(&self.run(args))
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = longtake();
        command
            .args(args)
            .args(["--coordinator", &self.url(), "--json"]);
        command.output().expect("longtake runs")
    }

    /// Waits until so many windows are done.
    fn wait_for_segments(&self, job: &str, least: u64) {
        wait_for(&format!("{least} segments"), || {
            let status = self.ask(&["status", job]);
            assert_ne!(status["state"], "failed", "{status}");
            (status["segments_done"].as_u64() >= Some(least)).then_some(())
        });
    }

    /// The answer to a request for `/readyz`.
    fn is_ready(&self, http: SocketAddr) -> String {
        use std::io::{Read, Write};
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(http) {
            let request = "GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n";
            stream.write_all(request.as_bytes()).expect("a request");
            stream.read_to_string(&mut answer).expect("an answer");
        }
        answer
    }
}

fn coordinator(folder: &Path, etcd: &Etcd, s3: &S3, address: SocketAddr) -> Process {
    let mut command = longtake();
    command
        .envs(s3.environment())
        .args(["coordinator", "--listen", &address.to_string()])
        .args(["--state", &etcd.url(), "--artifacts", &s3.url()])
        .args(["--http", &http_address(address).to_string()]);
    let process = start(folder, "coordinator", &mut command);
    wait_for("the coordinator", || TcpStream::connect(address).ok());
    process
}

/// Where the coordinator shows how it is: another loopback host, so that its port is free, too.
fn http_address(address: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 2], address.port()))
}

/// Starts a process that logs into `folder`.
fn start(folder: &Path, name: &str, command: &mut Command) -> Process {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join(format!("{name}.log")))
        .expect("a log");
    command.stdout(Stdio::null()).stderr(log);
    Process::start(command, "build it with `cargo build --release`")
}

fn json(out: &Output) -> Value {
    longtake_tests::product::last_json(out).unwrap_or_else(|story| panic!("{story}"))
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The film as it is when nothing goes wrong and nobody else has a hand in it.
fn undisturbed(folder: &Path, continuity: &str) -> Vec<u8> {
    let output = folder.join("alone.mp4");
    let flags = [FILM, &["--continuity", continuity, "--workers=1"]].concat();
    render(PROMPT, &output, &flags).unwrap_or_else(|story| panic!("{story}"));
    std::fs::read(output).expect("the film")
}

#[test]
fn a_film_survives_every_part_of_its_farm() {
    for continuity in ["chain", "none"] {
        let mut farm = Farm::start();
        let alone = undisturbed(farm.folder.path(), continuity);
        let mut first = farm.worker("first");
        let _second = farm.worker("second");
        let submit = [&["submit", PROMPT, "--continuity", continuity], FILM].concat();
        let job = farm.ask(&submit)["job"].as_str().expect("a job").to_owned();
        farm.wait_for_segments(&job, 1);
        let status = farm.ask(&["status", &job]);
        assert_eq!(
            status["state"], "running",
            "too late to disturb it: {status}"
        );

        // etcd stands still for longer than a worker may be silent.
        farm.etcd.freeze();
        std::thread::sleep(Duration::from_millis(3500));
        let answer = farm.is_ready(http_address(farm.address));
        assert!(answer.contains(" 503 "), "{answer}");
        assert!(answer.contains("state store unreachable"), "{answer}");
        farm.etcd.thaw();
        wait_for("the coordinator to be ready again", || {
            farm.is_ready(http_address(farm.address))
                .contains(" 200 ")
                .then_some(())
        });

        let status = farm.ask(&["status", &job]);
        assert_eq!(
            status["state"], "running",
            "too late to disturb it: {status}"
        );
        first.kill();
        farm.restart_coordinator();
        farm.etcd.kill();
        std::thread::sleep(Duration::from_millis(500));
        farm.etcd.restart();

        let output: PathBuf = farm.folder.path().join("farm.mp4");
        let path = output.to_str().expect("UTF-8");
        // The same job again: it goes on, and is waited for.
        let again = farm.ask(&[&submit[..], &["--wait", "-o", path]].concat());
        assert_eq!(again["job"], job.as_str(), "{again}");
        let film = std::fs::read(&output).expect("the film");
        assert!(
            film == alone,
            "{continuity}: the farm's film differs from the one made alone"
        );
        let status = farm.ask(&["status", &job]);
        assert_eq!(status["state"], "done", "{status}");
    }
}

#[test]
fn a_coordinator_without_its_stores_says_which_and_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let dead = free_address().to_string();
    let state = format!("file:{}", folder.path().join("state").display());
    let artifacts = format!("file:{}", folder.path().join("artifacts").display());
    let run = |state: &str, artifacts: &str, environment: &[(&str, &str)]| {
        let mut command = longtake();
        command.args(["coordinator", "--listen", "127.0.0.1:0", "--state", state]);
        command
            .args(["--artifacts", artifacts])
            .envs(environment.iter().copied());
        let out = command.output().expect("longtake runs");
        assert_eq!(out.status.code(), Some(1));
        let story = String::from_utf8_lossy(&out.stderr).into_owned();
        let errors: Vec<_> = story
            .lines()
            .filter(|line| line.starts_with("error:"))
            .collect();
        assert_eq!(errors.len(), 1, "{story}");
        errors[0].to_owned()
    };
    let error = run(&format!("etcd://{dead}"), &artifacts, &[]);
    assert!(
        error.contains("cannot reach") && error.contains(&dead),
        "{error}"
    );
    let endpoint = format!("http://{dead}");
    let mut environment = vec![("AWS_ENDPOINT_URL", endpoint.as_str())];
    let error = run(&state, "s3://bucket/farm", &environment);
    assert!(error.contains("AWS_ACCESS_KEY_ID"), "{error}");
    environment.extend([("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")]);
    let error = run(&state, "s3://bucket/farm", &environment);
    assert!(
        error.contains("s3://bucket/farm") && error.contains("AWS_ENDPOINT_URL"),
        "{error}"
    );
}
