//! Runs the program as a user does, in a folder of its own.
#![allow(dead_code)] // each test file uses its part of this

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A film that takes about a second: five windows of 64x64.
pub const SMALL_FILM: &[&str] = &[
    "render",
    "a red circle moves to the right on a blue background",
    "--size=64x64",
    "--frames=120",
    "--segment-frames=33",
    "--overlap-frames=9",
    "--seed=3",
];

/// The same film, long enough to be met in the middle.
pub fn longer_film() -> Vec<&'static str> {
    let longer = |flag: &'static str| {
        if flag == "--frames=120" {
            "--frames=360"
        } else {
            flag
        }
    };
    SMALL_FILM.iter().copied().map(longer).collect()
}

/// Longest wait for anything in these tests.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The root of the workspace, where `configs/` is.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// The program, in `folder`, with the surroundings of a user who has set nothing.
pub fn longtake(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longtake"));
    command.current_dir(folder).env("LONGTAKE_HOME", root());
    command
        .env_remove("LONGTAKE_COORDINATOR")
        .env_remove("LONGTAKE_LOG")
        .env_remove("LONGTAKE_OTLP");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the program to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Output {
    longtake(folder)
        .args(args)
        .output()
        .expect("the program starts")
}

/// Standard error as text.
pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// The JSON object that a successful run printed.
pub fn json(out: &Output) -> Value {
    assert!(out.status.success(), "{}: {}", out.status, stderr(out));
    let text = String::from_utf8_lossy(&out.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

/// Renders [`SMALL_FILM`] with more flags; returns the film's bytes and the report.
pub fn render_small(folder: &Path, name: &str, flags: &[&str]) -> (Vec<u8>, Value) {
    render(folder, SMALL_FILM, name, flags)
}

/// Renders `film` with more flags; returns the film's bytes and the report.
pub fn render(folder: &Path, film: &[&str], name: &str, flags: &[&str]) -> (Vec<u8>, Value) {
    let end = ["-o", name, "--json"];
    let report = json(&run(folder, film.iter().chain(flags).chain(&end)));
    (std::fs::read(folder.join(name)).expect("the film"), report)
}

/// Starts to render `film` without waiting for it.
pub fn start(folder: &Path, film: &[&str], name: &str) -> Child {
    let end = ["-o", name, "--json"];
    longtake(folder)
        .args(film.iter().chain(&end))
        .spawn()
        .expect("the program starts")
}

/// Tries `look` until it finds something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes that `parent` started.
pub fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else {
        return found;
    };
    for thread in threads.flatten() {
        let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // pid (name) state ...; the name may hold anything but ends at the last parenthesis
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// Sends a signal, as `kill -NAME PID` does.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(status.expect("kill runs").success(), "kill -{name} {pid}");
}

/// A coordinator process.
pub struct Service {
    /// Kills it in the end.
    pub process: Guard,
    /// Its address.
    pub url: String,
    /// Address of its metrics, with `--http`.
    pub metrics: Option<String>,
    /// What it has written to stderr so far.
    pub log: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Service {
    /// Starts a coordinator on loopback, with its state and artifacts in `folder`. Flags may name
    /// another address.
    pub fn coordinator(folder: &Path, flags: &[String]) -> Self {
        let mut command = longtake(folder);
        command.args([
            "coordinator",
            "--state=file:state",
            "--artifacts=file:artifacts",
        ]);
        if !flags.iter().any(|flag| flag.starts_with("--listen")) {
            command.arg("--listen=127.0.0.1:0");
        }
        let mut process = Guard(command.args(flags).spawn().expect("a coordinator"));
        let stderr = process.0.stderr.take().expect("stderr");
        let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let lines = log.clone();
        // Somebody has to read on, or the coordinator would block on a full pipe.
        std::thread::spawn(move || {
            use std::io::{BufRead, BufReader};
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("no panic").push(line);
            }
        });
        let find = |begin: &str| {
            let lines = log.lock().expect("no panic");
            lines
                .iter()
                .find_map(|line| line.strip_prefix(begin).map(str::to_owned))
        };
        let url = wait_for("the coordinator's address", || {
            let ended = process.0.try_wait().expect("a status");
            assert!(ended.is_none(), "{:?}", log.lock().expect("no panic"));
            find("coordinator at ")
        });
        let has_http = flags.iter().any(|flag| flag.starts_with("--http"));
        let metrics = has_http.then(|| wait_for("the metrics' address", || find("metrics at ")));
        Self {
            process,
            url,
            metrics,
            log,
        }
    }
}

/// A process that is killed when the test ends.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
