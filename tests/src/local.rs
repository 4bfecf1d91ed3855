//! A farm of processes in one folder, with a cache of models of its own and a user who has none.

use crate::product::{last_json, longtake};
use crate::services::{Etcd, Process, S3, free_address};
use serde_json::Value;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the films show.
pub const PROMPT: &str = "a red ball";
/// A film as small as one can be.
pub const FILM: &[&str] = &[
    "--frames=9",
    "--size=64x64",
    "--steps=2",
    "--guidance-scale=1",
    "--text-tokens=32",
];

/// A model that no folder of the program has: the small one with other words in its index, and
/// with so many bytes beside its weights.
///
/// # Panics
/// When it cannot be written.
pub fn model(folder: &Path, name: &str, padding_bytes: usize) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/ltxv-tiny");
    let to = folder.join(name);
    for part in [
        "text_encoder",
        "tokenizer",
        "transformer",
        "vae",
        "scheduler",
    ] {
        fs::create_dir_all(to.join(part)).expect("a folder");
        for entry in fs::read_dir(from.join(part)).expect("the model") {
            let entry = entry.expect("a file");
            fs::copy(entry.path(), to.join(part).join(entry.file_name())).expect("copied");
        }
    }
    let index = fs::read_to_string(from.join("model_index.json")).expect("an index");
    let index = index.replacen('{', &format!("{{\n  \"_name\": \"{name}\","), 1);
    fs::write(to.join("model_index.json"), index).expect("written");
    if padding_bytes > 0 {
        let mut state = 7u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_le_bytes()
        };
        let bytes: Vec<u8> = (0..padding_bytes / 8).flat_map(|_| next()).collect();
        fs::write(to.join("vae/padding.safetensors"), bytes).expect("written");
    }
    to
}

/// Makes the first value of a file of weights one that is no number.
///
/// # Panics
/// When the file cannot be read or written.
pub fn spoil(path: &Path) {
    let mut bytes = fs::read(path).expect("weights");
    // The values begin behind the header; all bits set is NaN in every type of floats.
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let first = 8 + header as usize;
    bytes[first..first + 4].fill(0xff);
    fs::write(path, bytes).expect("written");
}

/// Where a farm's coordinator keeps artifacts.
pub enum Store {
    /// In a folder.
    Folder,
    /// In a server of its own.
    S3(S3),
}

/// Where a farm's coordinator keeps its state.
pub enum State {
    /// In a folder.
    Folder,
    /// In a server of its own.
    Etcd(Etcd),
}

/// A farm of one machine. Its parts panic when a process cannot be started or does not answer.
pub struct Farm {
    folder: tempfile::TempDir,
    /// Where artifacts are.
    pub store: Store,
    /// Where the state is.
    pub state: State,
    address: SocketAddr,
    /// The coordinator's process.
    pub coordinator: Process,
}

impl Farm {
    /// Starts a coordinator, with a server for artifacts or without.
    pub fn start(s3: bool) -> Self {
        Self::start_on(s3, false)
    }

    /// The same, with a server for the state or without.
    pub fn start_on(s3: bool, etcd: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["empty", "home"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let store = if s3 {
            Store::S3(S3::start(folder.path()))
        } else {
            Store::Folder
        };
        let state = if etcd {
            State::Etcd(Etcd::start(folder.path()))
        } else {
            State::Folder
        };
        let address = free_address();
        let coordinator = coordinator(folder.path(), &store, &state, address);
        Self {
            folder,
            store,
            state,
            address,
            coordinator,
        }
    }

    /// Starts the coordinator again at its address.
    pub fn restart(&mut self) {
        self.coordinator.kill();
        self.coordinator = coordinator(self.folder.path(), &self.store, &self.state, self.address);
    }

    /// A file or folder of the farm's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The coordinator's address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A worker with a cache of its own or one that is shared.
    pub fn worker(&self, name: &str, cache: &str, more: &[&str]) -> Process {
        self.worker_by(name, cache, more, environment(&self.store))
    }

    /// The same with an environment of its own.
    pub fn worker_by(
        &self,
        name: &str,
        cache: &str,
        more: &[&str],
        environment: Vec<(String, String)>,
    ) -> Process {
        let mut command = product(self.folder.path());
        command
            .envs(environment)
            .args(["worker", "--coordinator", &self.url(), "--threads", "1"])
            .args(["--name", name, "--model-cache"])
            .arg(self.path(cache))
            .args(more);
        start(self.folder.path(), name, &mut command)
    }

    /// What a process has logged.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Runs a user's command.
    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = product(self.folder.path());
        command
            .args(args)
            .args(["--coordinator", &self.url(), "--json"]);
        command.output().expect("longtake runs")
    }

    /// Runs one that should succeed.
    pub fn ask(&self, args: &[&str]) -> Value {
        last_json(&self.run(args)).unwrap_or_else(|story| panic!("{story}"))
    }

    /// The one sentence that a command which fails says.
    pub fn refusal(&self, args: &[&str]) -> String {
        sentence(&self.run(args))
    }

    /// Stores a model under the name of its folder.
    pub fn add(&self, model: &Path) -> Value {
        self.ask(&["models", "add", model.to_str().expect("UTF-8")])
    }

    /// The command that submits the small film.
    pub fn submit(&self, model: &str, more: &[&str]) -> Vec<String> {
        let submit = ["submit", PROMPT, "--model", model];
        let all = submit.iter().chain(FILM).chain(more);
        all.map(|part| (*part).to_owned()).collect()
    }

    /// Renders with a stored model and returns the film.
    pub fn render(&self, model: &str, more: &[&str]) -> Vec<u8> {
        let output = self.path("film.mp4");
        let wait = ["--wait", "-o", output.to_str().expect("UTF-8")];
        let submit = self.submit(model, &[&wait, more].concat());
        self.ask(&submit.iter().map(String::as_str).collect::<Vec<_>>());
        fs::read(output).expect("the film")
    }

    /// The film that is made without a farm.
    pub fn alone(&self, model: &Path) -> Vec<u8> {
        let output = self.path("alone.mp4");
        let mut command = product(self.folder.path());
        command
            .args(["render", PROMPT, "--workers=1", "--model"])
            .arg(model);
        let out = command.args(FILM).arg("-o").arg(&output).output();
        let out = out.expect("longtake runs");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        fs::read(output).expect("the film")
    }

    /// The file of a stored chunk.
    pub fn chunk(&self, hash: &str) -> PathBuf {
        let below = format!("artifacts/models/{}/{}/{hash}", &hash[..2], &hash[2..4]);
        self.path(&below)
    }

    /// Models that lie complete in a cache.
    pub fn cached(&self, cache: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(cache)).expect("a cache");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.into_string().expect("UTF-8"));
        let mut names: Vec<_> = names.filter(|name| name.len() == 64).collect();
        names.sort();
        names
    }
}

fn coordinator(folder: &Path, store: &Store, state: &State, address: SocketAddr) -> Process {
    let state = match state {
        State::Folder => format!("file:{}", folder.join("state").display()),
        State::Etcd(etcd) => etcd.url(),
    };
    let artifacts = match store {
        Store::Folder => format!("file:{}", folder.join("artifacts").display()),
        Store::S3(s3) => s3.url(),
    };
    let mut command = product(folder);
    command
        .envs(environment(store))
        .args(["coordinator", "--listen", &address.to_string()])
        .args(["--state", &state])
        .args(["--artifacts", &artifacts]);
    let mut process = start(folder, "coordinator", &mut command);
    wait_for("the coordinator", || {
        assert!(process.is_running(), "the coordinator ended");
        TcpStream::connect(address).ok()
    });
    process
}

/// What processes have to find in their environment to use the store.
pub fn environment(store: &Store) -> Vec<(String, String)> {
    match store {
        Store::Folder => Vec::new(),
        Store::S3(s3) => s3.environment(),
    }
}

/// The product in a folder without models, for a user without caches.
pub fn product(folder: &Path) -> Command {
    let mut command = longtake();
    command
        .current_dir(folder.join("empty"))
        .env("LONGTAKE_CACHE", folder.join("home"));
    command
}

/// Starts a process that logs into `folder`.
pub fn start(folder: &Path, name: &str, command: &mut Command) -> Process {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join(format!("{name}.log")))
        .expect("a log");
    command.stdout(Stdio::null()).stderr(log);
    Process::start(command, "build it with `cargo build --release`")
}

/// The one sentence that a command which fails says.
pub fn sentence(out: &Output) -> String {
    assert!(
        !out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let story = String::from_utf8_lossy(&out.stderr).into_owned();
    let errors: Vec<_> = story
        .lines()
        .filter(|line| line.starts_with("error:"))
        .collect();
    assert_eq!(errors.len(), 1, "{story}");
    errors[0].to_owned()
}

/// Looks until something is found.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
