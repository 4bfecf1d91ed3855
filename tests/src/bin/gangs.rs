//! Windows that four ranks share, of two workers on machines of their own, while ranks are killed, stand
//! still or are cut off in the middle of a step. The films have to be the undisturbed ones, byte for
//! byte, and nothing may be left behind.
//!
//! `cargo xtask gangs --rounds 20 --seed 1`; the last result is in docs/scenario.md.

use clap::Parser;
use longtake_tests::network::{self, Cut, HUB, Machine};
use longtake_tests::product::{binary, last_json, longtake, render};
use longtake_tests::services::{Process, free_address_at};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROMPT: &str = "a big red ball rolls quickly right over a navy background";
/// Six windows, each of which takes about a second.
const FILM: &[&str] = &[
    "--size=128x64",
    "--frames=144",
    "--segment-frames=33",
    "--overlap-frames=9",
];
/// From one of the first windows on something happens.
const WINDOWS: u64 = 3;
/// A film that is done before anything has happened proves nothing; another one is tried.
const TRIES: u64 = 5;
/// Between the seeds of such films.
const STRIDE: u64 = 1_000_000;
const NAMES: [&str; 2] = ["left", "right"];
/// Says that a gang stands, in the log of the worker with its first rank.
const STANDS: &str = "a gang of 4 ranks stands ";
/// Says that a worker's part of a gang has come to nothing.
const FAILED: &str = " failed: ";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a machine is cut off.
const CUT: Duration = Duration::from_secs(4);
const TICK: Duration = Duration::from_millis(5);
/// What runs a service starts it again after so long.
const RESTART: Duration = Duration::from_millis(500);

#[derive(Parser)]
#[command(about = "Disturbs gangs of ranks, and compares their films with undisturbed ones")]
struct Args {
    /// Films, in each of which one thing goes wrong
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Seed of the first round; the next one has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// The process of a worker's second rank is killed.
    KillRank,
    /// It stands still, and stays so.
    StopRank,
    /// A machine's cable is pulled.
    Unplug,
    /// Everything to and from a machine gets lost.
    Silence,
    /// A worker itself, with its first rank, is killed and started again.
    KillWorker,
    /// It stands still for a while.
    StopWorker,
}

const HARMS: [Harm; 6] = [
    Harm::KillRank,
    Harm::StopRank,
    Harm::Silence,
    Harm::KillWorker,
    Harm::Unplug,
    Harm::StopWorker,
];

/// One round.
#[derive(Serialize)]
struct Round {
    seed: u64,
    /// What happened, to whom and where.
    what: String,
    seconds: f64,
    /// From then until a worker said that its gang had failed, if one did.
    found_seconds: Option<f64>,
    /// From then until another gang stood.
    rebuilt_seconds: f64,
    /// How long the gangs took to form before, of living processes: the longest.
    formed_seconds: f64,
    equal: bool,
}

fn main() {
    network::isolate();
    let args = Args::parse();
    let machines = [Machine::new(11), Machine::new(12)];
    let mut stage = Stage::new(&machines);
    let mut rounds = Vec::new();
    for seed in args.seed..args.seed + args.rounds {
        let round = stage
            .play(seed)
            .unwrap_or_else(|story| stage.fail(seed, &story));
        eprintln!("{}", line(&round));
        rounds.push(round);
    }
    if let Err(story) = stage.end() {
        stage.fail(args.seed + args.rounds, &story);
    }
    let failed = rounds.iter().filter(|round| !round.equal).count();
    println!(
        "{}",
        serde_json::json!({ "rounds": rounds, "failed": failed })
    );
    std::process::exit(i32::from(failed > 0));
}

/// A row of the table in docs/scenario.md.
fn line(round: &Round) -> String {
    let found = round.found_seconds;
    format!(
        "| {} | {} | {:.3} | {} | {:.2} | {:.1} | {} |",
        round.seed,
        round.what,
        round.formed_seconds,
        found.map_or_else(String::new, |found| format!("{found:.2}")),
        round.rebuilt_seconds,
        round.seconds,
        if round.equal { "equal" } else { "**DIFFERS**" }
    )
}

/// A coordinator and two workers.
struct Stage<'a> {
    folder: tempfile::TempDir,
    address: SocketAddr,
    machines: &'a [Machine; 2],
    _coordinator: Process,
    workers: [Process; 2],
}

impl<'a> Stage<'a> {
    fn new(machines: &'a [Machine; 2]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let address = free_address_at(HUB);
        let place = |name: &str| format!("file:{}", folder.path().join(name).display());
        let mut command = longtake();
        command
            .args([
                "coordinator",
                "--insecure",
                "--listen",
                &address.to_string(),
            ])
            .args([
                "--state",
                &place("state"),
                "--artifacts",
                &place("artifacts"),
            ]);
        let coordinator = process(folder.path(), "coordinator", &mut command);
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(started.elapsed() < PATIENCE, "no coordinator");
            std::thread::sleep(TICK);
        }
        let workers = [0, 1].map(|i| worker(folder.path(), address, i, &machines[i]));
        Self {
            folder,
            address,
            machines,
            _coordinator: coordinator,
            workers,
        }
    }

    /// A user's command.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = longtake();
        let url = format!("http://{}", self.address);
        command.args(args).args(["--coordinator", &url, "--json"]);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Plays a round until it counts.
    fn play(&mut self, seed: u64) -> Result<Round, String> {
        for number in 0..TRIES {
            if let Some(round) = self.round(seed, seed + number * STRIDE)? {
                return Ok(round);
            }
        }
        Err("the film is always done before anything has happened".to_owned())
    }

    /// Plays one film in which one thing goes wrong; `None` when it was done before that.
    fn round(&mut self, seed: u64, noise: u64) -> Result<Option<Round>, String> {
        let own = format!("--seed={noise}");
        let flags = [FILM, &[own.as_str()]].concat();
        let alone = self.path("alone.mp4");
        render(PROMPT, &alone, &flags)?;
        self.wait_until_free()?;
        let logged = self.logged();
        let output = self.path("gang.mp4");
        let output = output.to_str().expect("UTF-8").to_owned();
        let submit = ["submit", PROMPT, "--ranks=4", "--wait", "-o", &output];
        let args = [&submit[..], &flags].concat();
        let started = Instant::now();
        let mut user = process(self.folder.path(), "user", &mut self.command(&args));
        let chance = chance(seed);
        let window = chance % WINDOWS;
        if !self.wait_for_window(&mut user, window)? {
            return Ok(None);
        }
        // Somewhere in the window's steps.
        std::thread::sleep(Duration::from_millis(chance / 8 % 300));
        let harm = HARMS[(seed % HARMS.len() as u64) as usize];
        let victim = (chance / 4 % 2) as usize;
        let rank = self.rank_of(victim)?;
        let (before, harmed) = (self.logged(), Instant::now());
        self.perform(harm, victim, rank)?;
        let mut undone = None;
        let (mut found, mut rebuilt) = (None, None);
        while rebuilt.is_none() {
            let seconds = harmed.elapsed().as_secs_f64();
            let news = self.since(&before);
            found = found.or_else(|| news.contains(FAILED).then_some(seconds));
            rebuilt = news.contains(STANDS).then_some(seconds);
            self.tend(harm, victim, harmed, &mut undone);
            self.check_patience(started, "another gang")?;
            match user
                .ended()
                .filter(|_| rebuilt.is_none() && undone.is_some())
            {
                Some(status) if status.success() => return Ok(None),
                Some(_) => return Err(self.log("user")),
                None => {}
            }
            std::thread::sleep(TICK);
        }
        let status = loop {
            if let Some(status) = user.ended() {
                break status;
            }
            self.tend(harm, victim, harmed, &mut undone);
            self.check_patience(started, "the film")?;
            std::thread::sleep(TICK);
        };
        let seconds = started.elapsed().as_secs_f64();
        if !status.success() {
            return Err(self.log("user"));
        }
        while undone.is_none() {
            self.tend(harm, victim, harmed, &mut undone);
            std::thread::sleep(TICK);
        }
        self.wait_until_free()?;
        let formed = self.log_between(&logged, &before);
        Ok(Some(Round {
            seed,
            what: format!("{harm:?} {} from window {window} on", NAMES[victim]),
            seconds,
            found_seconds: found,
            rebuilt_seconds: rebuilt.unwrap_or_default(),
            formed_seconds: formed_seconds(&formed),
            equal: fs::read(&output).ok() == fs::read(&alone).ok(),
        }))
    }

    /// The process of a worker's second rank. It may be starting just now.
    fn rank_of(&self, worker: usize) -> Result<u32, String> {
        let started = Instant::now();
        loop {
            if let [rank] = ranks_of(self.workers[worker].id())[..] {
                return Ok(rank);
            }
            self.check_patience(started, "a worker's second rank")?;
            std::thread::sleep(TICK);
        }
    }

    fn perform(&mut self, harm: Harm, victim: usize, rank: u32) -> Result<(), String> {
        match harm {
            Harm::KillRank => signal(rank, "KILL"),
            Harm::StopRank => signal(rank, "STOP"),
            Harm::Unplug => {
                self.machines[victim].cut(Cut::Cable);
                Ok(())
            }
            Harm::Silence => {
                self.machines[victim].cut(Cut::Port);
                Ok(())
            }
            Harm::KillWorker => {
                self.workers[victim].kill();
                Ok(())
            }
            Harm::StopWorker => {
                self.workers[victim].signal("STOP");
                Ok(())
            }
        }
    }

    /// Undoes what went wrong when its time has come.
    fn tend(&mut self, harm: Harm, victim: usize, since: Instant, undone: &mut Option<()>) {
        if undone.is_some() {
            return;
        }
        let after = match harm {
            Harm::KillRank | Harm::StopRank => Duration::ZERO,
            Harm::KillWorker => RESTART,
            Harm::Unplug | Harm::Silence | Harm::StopWorker => CUT,
        };
        if since.elapsed() < after {
            return;
        }
        let machine = &self.machines[victim];
        match harm {
            Harm::KillRank | Harm::StopRank => {}
            Harm::Unplug | Harm::Silence => machine.mend(),
            Harm::StopWorker => self.workers[victim].signal("CONT"),
            Harm::KillWorker => {
                self.workers[victim] = worker(self.folder.path(), self.address, victim, machine);
            }
        }
        *undone = Some(());
    }

    fn check_patience(&self, since: Instant, what: &str) -> Result<(), String> {
        match since.elapsed() < PATIENCE {
            true => Ok(()),
            false => Err(format!("waited in vain for {what}; {:?}", self.holdings())),
        }
    }

    /// Waits until both workers are in a gang that denoises this window or a later one. False when the
    /// film is done without.
    fn wait_for_window(&self, user: &mut Process, window: u64) -> Result<bool, String> {
        let started = Instant::now();
        let is_late = |task: &str| {
            let number = task.strip_prefix("denoise/");
            let number = number.and_then(|number| number.parse::<u64>().ok());
            number.is_some_and(|number| number >= window)
        };
        loop {
            let held = self.holdings()?;
            if held.len() == 2 && held.iter().all(|(_, task)| is_late(task)) {
                return Ok(true);
            }
            match user.ended() {
                Some(status) if status.success() => return Ok(false),
                Some(_) => return Err(self.log("user")),
                None => self.check_patience(started, "a window in the works")?,
            }
        }
    }

    /// Who has ranks of what.
    fn holdings(&self) -> Result<Vec<(String, String)>, String> {
        let list = self.list()?;
        let mut held = Vec::new();
        for worker in list["workers"].as_array().ok_or("no workers")? {
            let name = worker["name"].as_str().unwrap_or_default();
            for task in worker["tasks"].as_array().into_iter().flatten() {
                if task["share"].is_object() {
                    let task = task["task"].as_str().unwrap_or_default();
                    held.push((name.to_owned(), task.to_owned()));
                }
            }
        }
        Ok(held)
    }

    fn list(&self) -> Result<Value, String> {
        let out = self.command(&["workers", "list"]).output();
        last_json(&out.map_err(|error| error.to_string())?)
    }

    /// Waits until both workers are there, all their ranks are free, and no process is left of those
    /// that were lost.
    fn wait_until_free(&self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let list = self.list()?;
            let workers = list["workers"].as_array().ok_or("no workers")?;
            let free = workers.iter().filter(|worker| worker["state"] == "idle");
            let strays = self.strays();
            if free.count() == 2 && workers.len() == 2 && strays.is_empty() {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("left behind: processes {strays:?}, {list}"));
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ranks' processes that are nobody's, and more of a worker's than it should have.
    fn strays(&self) -> Vec<u32> {
        let mut own = BTreeSet::new();
        for worker in &self.workers {
            own.extend(ranks_of(worker.id()).into_iter().take(1));
        }
        let all = all_processes().into_iter().filter(|pid| is_rank(*pid));
        all.filter(|pid| !own.contains(pid)).collect()
    }

    /// All leave in order, and nothing stays.
    fn end(&mut self) -> Result<(), String> {
        for worker in &self.workers {
            worker.signal("TERM");
        }
        let started = Instant::now();
        while self.workers.iter_mut().any(Process::is_running)
            || all_processes().into_iter().any(is_rank)
        {
            self.check_patience(started, "workers to leave")?;
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// How much the workers have logged.
    fn logged(&self) -> [usize; 2] {
        NAMES.map(|name| self.log(name).len())
    }

    fn since(&self, then: &[usize; 2]) -> String {
        let news = |i: usize| self.log(NAMES[i]).split_off(then[i]);
        news(0) + &news(1)
    }

    fn log_between(&self, from: &[usize; 2], to: &[usize; 2]) -> String {
        let part = |i: usize| self.log(NAMES[i])[from[i]..to[i]].to_owned();
        part(0) + &part(1)
    }

    fn fail(&self, seed: u64, story: &str) -> ! {
        let logs = ["coordinator", NAMES[0], NAMES[1]];
        let logs = logs.map(|name| {
            let log = self.log(name);
            let last: Vec<&str> = log.lines().rev().take(60).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("--- {name}\n{}", last.join("\n"))
        });
        panic!("round {seed}: {story}\n{}", logs.join("\n"));
    }
}

/// Starts a worker of two ranks on its machine.
fn worker(folder: &Path, coordinator: SocketAddr, number: usize, machine: &Machine) -> Process {
    let name = NAMES[number];
    let mut command = machine.command(&binary());
    command
        .env_remove("LONGTAKE_COORDINATOR")
        .env("LONGTAKE_LOG", "info")
        .args(["worker", "--coordinator", &format!("http://{coordinator}")])
        .args(["--name", name, "--threads=2", "--ranks=2", "--insecure"])
        .args(["--gang-address", &machine.address().to_string()])
        .arg("--scratch")
        .arg(folder);
    process(folder, name, &mut command)
}

/// Starts a process that logs into the folder.
fn process(folder: &Path, name: &str, command: &mut Command) -> Process {
    let mut options = fs::File::options();
    let log = options.create(true).append(true);
    let log = log.open(folder.join(format!("{name}.log")));
    command.stdout(Stdio::null()).stderr(log.expect("a log"));
    Process::start(command, "build it with `cargo build --release`")
}

fn signal(pid: u32, name: &str) -> Result<(), String> {
    let kill = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    match kill {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("kill -{name} {pid}: {other:?}")),
    }
}

fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Whether a process is one of a worker's other ranks.
fn is_rank(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    words.get(1) == Some(&&b"rank"[..]) && words.get(2) == Some(&&b"--threads"[..])
}

/// The processes of a worker's other ranks.
fn ranks_of(worker: u32) -> Vec<u32> {
    let is_child = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parent.is_some_and(|parent| parent.trim() == worker.to_string())
    };
    let ranks = all_processes().into_iter().filter(|pid| is_rank(*pid));
    ranks.filter(is_child).collect()
}

/// The longest time that a gang took to form, of those that a log tells of.
fn formed_seconds(log: &str) -> f64 {
    let told = log.lines().filter_map(|line| line.split_once(STANDS));
    let told = told.filter_map(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    told.fold(0.0, f64::max)
}

/// A number that a seed stands for: SplitMix64.
fn chance(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
