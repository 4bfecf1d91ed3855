//! What the farms of `deploy/` have in common: certificates as `certs.sh` makes them, a network in
//! which every member is found under its name, processes in containers, and a user.

use crate::files::{deploy, repository};
use crate::image::Image;
use longtake_tests::container::{Container, Network};
use longtake_tests::product;
use longtake_tests::services::Process;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where a visitor finds the authority's certificate.
pub const AUTHORITY: &str = "/secrets/ca.pem";
/// Every name that a farm's members call each other by.
const NAMES: &[&str] = &[
    "etcd",
    "s3",
    "coordinator",
    "longtake-coordinator",
    "prometheus",
];

pub struct Farm {
    // Dropped in this order: processes, their network, their files.
    running: Vec<(String, Process)>,
    pub network: Network,
    /// From where pages are looked at.
    visitor: Container,
    folder: TempDir,
}

impl Farm {
    /// A farm without members, whose secrets are made.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut made = Command::new("sh");
        made.arg(deploy("certs.sh"))
            .arg(folder.path().join("secrets"));
        finished(&mut made);
        let network = Network::new(NAMES);
        let visitor = Container::new(&network, &folder.path().join("roots/visitor"));
        let visitor = visitor.mounted(&folder.path().join("secrets"), "/secrets", true);
        Self {
            running: Vec::new(),
            network,
            visitor,
            folder,
        }
    }

    /// A path of this farm's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new container with nothing but this machine's programs.
    pub fn container(&self, name: &str) -> Container {
        let root = self.path("roots").join(name);
        Container::new(&self.network, &root)
    }

    /// Runs a command in a container to its end.
    #[track_caller]
    pub fn run(&self, container: &Container, words: &[String]) -> Output {
        finished(&mut container.command(&self.network, words))
    }

    /// Starts a command in a container. It runs until the farm ends.
    pub fn start(&mut self, name: &str, container: &Container, words: &[String]) {
        let mut command = container.command(&self.network, words);
        let log = File::create(self.log(name)).expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        let process = Process::start(&mut command, "run `cargo xtask test`, which installs it");
        self.running.push((name.to_owned(), process));
    }

    fn log(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.log"))
    }

    /// Asks until something comes back. A process that ends meanwhile is an error.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(answer) = ask(self) {
                return answer;
            }
            let mut ended = self.running.iter_mut();
            let ended = ended.find_map(|(name, p)| (!p.is_running()).then(|| name.clone()));
            if let Some(name) = ended {
                panic!("{name} has ended\n{}", self.story(&name));
            }
            if started.elapsed() > PATIENCE {
                let names = self.running.iter().map(|(name, _)| self.story(name));
                panic!("no {what}\n{}", names.collect::<String>());
            }
            sleep(Duration::from_millis(100));
        }
    }

    fn story(&self, name: &str) -> String {
        let log = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("--- {name}\n{last}\n")
    }

    /// A page as somebody in the network sees it; nothing, unless it is there.
    pub fn page(&self, url: &str, flags: &[&str]) -> Option<String> {
        let usual = ["curl", "--silent", "--fail", "--max-time", "10"];
        let words = [&usual, flags, &[url]].concat();
        let words: Vec<_> = words.into_iter().map(str::to_owned).collect();
        let out = self.visitor.command(&self.network, &words).output();
        let out = out.expect("nsenter runs");
        let text = String::from_utf8(out.stdout).expect("text");
        out.status.success().then_some(text)
    }

    /// Has a small film made by a user who reaches the coordinator at `url`.
    #[track_caller]
    pub fn render(&self, url: &str, frames: u32) {
        let user = Image::read().container(self, "user");
        let user = user.mounted(&self.path("secrets"), "/secrets", true);
        let line = format!(
            "longtake submit --size=64x64 --frames={frames} --segment-frames=33 --overlap-frames=9 \
             --wait --json -o film.mp4 --coordinator={url} --tls-ca=/secrets/ca.pem \
             --tls-cert=/secrets/client.pem --tls-key=/secrets/client.key \
             --token-file=/secrets/user.token"
        );
        let prompt = "a red circle moves to the right on a blue background";
        let mut words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        words.push(prompt.to_owned());
        let out = self.run(&user, &words);
        let job: Value = product::last_json(&out).unwrap_or_else(|story| panic!("{story}"));
        assert!(job["job"].is_string(), "{job}");
        let film = fs::metadata(user.outside("/var/lib/longtake/film.mp4"));
        assert!(film.expect("the film").len() > 1000);
    }

    /// The coordinator's figures, fetched with a token of a file in the secrets.
    pub fn figures(&self, url: &str, token: &str) -> Option<String> {
        let token = fs::read_to_string(self.path("secrets").join(token)).expect("a token");
        let bearer = format!("Authorization: Bearer {token}");
        self.page(url, &["--cacert", AUTHORITY, "--header", &bearer])
    }
}

/// Runs a command to its end, which must be a good one.
#[track_caller]
pub fn finished(command: &mut Command) -> Output {
    let out = command.output();
    let out = out.unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    out
}

/// What docs/operations.md says.
pub fn operations() -> String {
    let page: &Path = &repository().join("docs/operations.md");
    fs::read_to_string(page).expect("the page")
}
