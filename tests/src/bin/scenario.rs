//! A farm of three workers on machines of their own, in which everything goes wrong while it renders
//! a film: a worker joins, one is drained, one killed, one cut off, the coordinator is killed and
//! etcd stopped, at times drawn from a seed. The film has to be the undisturbed one, byte for byte.
//!
//! `cargo xtask scenario --rounds 10 --seed 1`; the last result is in docs/scenario.md.

use clap::Parser;
use longtake_tests::farm::Farm;
use longtake_tests::network::{self, HUB, Machine};
use longtake_tests::product::{last_json, render};
use longtake_tests::scenario::{Event, Lengths, Stop, WORKERS, plan};
use longtake_tests::services::Process;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PROMPT: &str = "a big red ball rolls quickly right over a navy background";
/// A minute at the usual size: fourteen windows.
const LONG: &[&str] = &["--seconds=60", "--seed=3"];
const LONG_LENGTHS: Lengths = Lengths {
    cut: Duration::from_secs(10),
    etcd: Duration::from_secs(20),
    coordinator: Duration::from_secs(3),
};
/// Twelve seconds, small, in twelve windows.
const SHORT: &[&str] = &[
    "--seconds=12",
    "--segment-frames=33",
    "--overlap-frames=9",
    "--seed=3",
];
const SHORT_LENGTHS: Lengths = Lengths {
    cut: Duration::from_secs(4),
    etcd: Duration::from_secs(4),
    coordinator: Duration::from_secs(1),
};
/// Things go wrong in this first part of the time that the undisturbed film took.
const SPAN: f64 = 0.6;
/// A round in which the film was done too early proves nothing; the next try hurries by this.
const HURRY: f64 = 0.5;
const TRIES: u32 = 3;
/// Longest wait for a film, besides the time that it takes undisturbed, ten times over.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for what should come at once.
const SOON: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(20);
/// What runs a service starts it again after so long.
const RESTART: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(about = "Disturbs a farm in every way, and compares its films with undisturbed ones")]
struct Args {
    /// Rounds for each continuity
    #[arg(long, default_value_t = 10)]
    rounds: u64,
    /// Seed of the first round; the next one has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ways to make the film
    #[arg(long, value_delimiter = ',', default_value = "none,chain")]
    continuity: Vec<String>,
    /// A film of 12 seconds, and shorter troubles
    #[arg(long)]
    short: bool,
    /// Size of the film [default: the model's own, or 64x64 with --short]
    #[arg(long)]
    size: Option<String>,
}

/// One round.
#[derive(Serialize)]
struct Round {
    continuity: String,
    seed: u64,
    /// The film alone, without a farm.
    undisturbed_seconds: f64,
    seconds: f64,
    /// What happened, with the seconds after submission.
    events: Vec<String>,
    /// How often the coordinator was started, with those starts that failed for want of etcd.
    coordinator_starts: u32,
    /// How often workers were started: one that finds no coordinator gives up.
    worker_starts: u32,
    /// How often the user had to give the same command again.
    commands: u32,
    equal: bool,
}

fn main() {
    network::isolate();
    let args = Args::parse();
    // The switch's first machine is this one.
    let machines: Vec<Machine> = (0..=WORKERS).map(|i| Machine::new(i as u8 + 11)).collect();
    let mut rounds = Vec::new();
    for continuity in &args.continuity {
        let alone = Alone::render(continuity, &args);
        for seed in args.seed..args.seed + args.rounds {
            let round = round(&machines, &alone, seed);
            eprintln!("{}", line(&round));
            rounds.push(round);
        }
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
    format!(
        "| {} | {} | {:.0} | {:.0} | {} | {} | {} | {} | {} |",
        round.continuity,
        round.seed,
        round.undisturbed_seconds,
        round.seconds,
        round.events.join(", "),
        round.coordinator_starts,
        round.worker_starts,
        round.commands,
        if round.equal { "equal" } else { "**DIFFERS**" }
    )
}

/// The film when nothing goes wrong.
struct Alone {
    flags: Vec<String>,
    continuity: String,
    lengths: Lengths,
    film: Vec<u8>,
    took: Duration,
}

impl Alone {
    fn render(continuity: &str, args: &Args) -> Self {
        let (film, lengths, size) = match args.short {
            true => (SHORT, SHORT_LENGTHS, Some("64x64")),
            false => (LONG, LONG_LENGTHS, None),
        };
        let mut own = vec![format!("--continuity={continuity}")];
        let size = args.size.as_deref().or(size);
        own.extend(size.map(|size| format!("--size={size}")));
        let own: Vec<_> = own.iter().map(String::as_str).collect();
        let flags = [film, &own].concat();
        let folder = tempfile::tempdir().expect("a folder");
        let output = folder.path().join("alone.mp4");
        let report = render(PROMPT, &output, &[&flags[..], &["--workers=3"]].concat());
        let report = report.unwrap_or_else(|story| panic!("{story}"));
        Self {
            flags: flags.into_iter().map(str::to_owned).collect(),
            continuity: continuity.to_owned(),
            lengths,
            film: std::fs::read(output).expect("the film"),
            took: Duration::from_secs_f64(report.seconds_total),
        }
    }
}

/// Plays a round until it counts.
fn round(machines: &[Machine], alone: &Alone, seed: u64) -> Round {
    let mut span = alone.took.mul_f64(SPAN);
    for _ in 0..TRIES {
        let mut stage = Stage::new(machines, alone);
        match stage.play(&plan(seed, span, alone.lengths)) {
            Ok(true) => return stage.finish(seed),
            Ok(false) => span = span.mul_f64(HURRY),
            Err(story) => stage.fail(seed, &story),
        }
    }
    panic!("round {seed}: the film is always done before everything has happened");
}

/// A farm, whoever works in it, and its user.
struct Stage<'a> {
    farm: Farm,
    machines: &'a [Machine],
    alone: &'a Alone,
    workers: Vec<Option<Process>>,
    drained: Option<usize>,
    /// Whether there should be a coordinator, and when there was none last.
    wanted: bool,
    down_since: Option<Instant>,
    coordinator_starts: u32,
    worker_starts: u32,
    user: Process,
    commands: u32,
    output: PathBuf,
    started: Instant,
    events: Vec<String>,
}

impl<'a> Stage<'a> {
    fn new(machines: &'a [Machine], alone: &'a Alone) -> Self {
        let farm = Farm::start(HUB);
        for machine in machines {
            machine.mend();
        }
        let start = |i: usize| farm.worker(&name(i), Some(&machines[i]));
        let workers = (0..WORKERS).map(|i| Some(start(i))).collect();
        let output = farm.folder().join("farm.mp4");
        let user = submit(&farm, alone, &output);
        Self {
            farm,
            machines,
            alone,
            workers,
            drained: None,
            wanted: true,
            down_since: None,
            coordinator_starts: 1,
            worker_starts: WORKERS as u32,
            user,
            commands: 1,
            output,
            started: Instant::now(),
            events: Vec::new(),
        }
    }

    /// Lets everything happen. False when the film was done before.
    fn play(&mut self, steps: &[(Duration, Event)]) -> Result<bool, String> {
        for (at, event) in steps {
            while self.started.elapsed() < *at {
                if self.is_done()? {
                    break;
                }
                std::thread::sleep(TICK);
            }
            // What ends a trouble may come when the film is done without it.
            if self.is_done()? && !matches!(event, Event::Mend(_)) {
                return Ok(false);
            }
            let seconds = self.started.elapsed().as_secs_f64();
            self.events.push(format!("{event} at {seconds:.1}"));
            self.perform(*event);
        }
        let deadline = PATIENCE + 10 * self.alone.took;
        while !self.is_done()? {
            if self.started.elapsed() > deadline {
                return Err(format!("no film after {} s", deadline.as_secs()));
            }
            std::thread::sleep(TICK);
        }
        self.aftermath().map(|()| true)
    }

    fn perform(&mut self, event: Event) {
        match event {
            Event::Join => {
                let joins = self.start_worker(WORKERS);
                self.workers.push(Some(joins));
            }
            Event::Drain(worker) => {
                self.drained = Some(worker);
                if let Some(process) = &self.workers[worker] {
                    process.signal("TERM");
                }
            }
            Event::Kill(worker) => self.workers[worker] = None,
            Event::Cut(worker, how) => self.machines[worker].cut(how),
            Event::Mend(worker) => self.machines[worker].mend(),
            Event::KillCoordinator => {
                self.wanted = false;
                self.farm.kill_coordinator();
            }
            Event::StartCoordinator => {
                self.wanted = true;
                self.start_coordinator();
            }
            Event::StopEtcd(Stop::Freeze) => self.farm.etcd.freeze(),
            Event::StartEtcd(Stop::Freeze) => self.farm.etcd.thaw(),
            Event::StopEtcd(Stop::Kill) => self.farm.etcd.kill(),
            Event::StartEtcd(Stop::Kill) => self.farm.etcd.restart(),
        }
    }

    fn start_worker(&mut self, worker: usize) -> Process {
        self.worker_starts += 1;
        self.farm.worker(&name(worker), self.machines.get(worker))
    }

    fn start_coordinator(&mut self) {
        self.farm.start_coordinator();
        self.coordinator_starts += 1;
        self.down_since = None;
    }

    /// What systemd and Kubernetes do: starts again whoever has ended by itself.
    fn tend(&mut self) {
        for worker in 0..self.workers.len() {
            let process = self.workers[worker].as_mut();
            let gone = process.and_then(Process::ended).is_some();
            if gone && self.drained != Some(worker) {
                std::thread::sleep(RESTART);
                self.workers[worker] = Some(self.start_worker(worker));
            }
        }
        if self.wanted && !self.farm.is_running() {
            let since = *self.down_since.get_or_insert_with(Instant::now);
            if since.elapsed() > RESTART {
                self.start_coordinator();
            }
        }
    }

    /// True when the user has the film. A command that failed is given again.
    fn is_done(&mut self) -> Result<bool, String> {
        self.tend();
        match self.user.ended() {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(_) => {
                let story = self.farm.log("user");
                if story.contains(" failed: ") {
                    return Err(story);
                }
                let seconds = self.started.elapsed().as_secs_f64();
                let reason = story.lines().next_back().unwrap_or_default();
                eprintln!("at {seconds:.1} the user gives the command again: {reason}");
                std::thread::sleep(RESTART);
                self.commands += 1;
                self.user = submit(&self.farm, self.alone, &self.output);
                Ok(false)
            }
        }
    }

    /// Whoever was drained has left in order, and everybody else is there.
    fn aftermath(&mut self) -> Result<(), String> {
        let drained = self.drained.ok_or("nobody was drained")?;
        let started = Instant::now();
        let leaver = self.workers[drained].as_mut().ok_or("it was drained")?;
        let status = loop {
            match leaver.ended() {
                Some(status) => break status,
                None if started.elapsed() > SOON => return Err("the drained one stays".to_owned()),
                None => std::thread::sleep(TICK),
            }
        };
        if !status.success() {
            return Err(format!("the drained worker ended with {status}"));
        }
        self.workers[drained] = None;
        let present = self.workers.iter().enumerate();
        let mut expected: Vec<String> = present
            .filter(|(_, worker)| worker.is_some())
            .map(|(i, _)| name(i))
            .collect();
        expected.sort();
        loop {
            let found = self.connected();
            if found.as_ref() == Ok(&expected) {
                return Ok(());
            }
            self.tend();
            if started.elapsed() > SOON {
                return Err(format!("workers {expected:?} live, the farm has {found:?}"));
            }
            std::thread::sleep(TICK);
        }
    }

    /// Names of the workers that the farm knows.
    fn connected(&self) -> Result<Vec<String>, String> {
        let out = self.farm.command(&["workers", "list"]).output();
        let list: Value = last_json(&out.map_err(|error| error.to_string())?)?;
        let workers = list["workers"].as_array().ok_or("no list of workers")?;
        let names = workers.iter().filter_map(|worker| worker["name"].as_str());
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    fn finish(self, seed: u64) -> Round {
        let film = std::fs::read(&self.output).expect("the user's film");
        let round = Round {
            continuity: self.alone.continuity.clone(),
            seed,
            undisturbed_seconds: self.alone.took.as_secs_f64(),
            seconds: self.started.elapsed().as_secs_f64(),
            events: self.events,
            coordinator_starts: self.coordinator_starts,
            worker_starts: self.worker_starts,
            commands: self.commands,
            equal: film == self.alone.film,
        };
        if !round.equal {
            let folder = self.farm.keep();
            eprintln!("round {seed}: see {}", folder.display());
        }
        round
    }

    fn fail(self, seed: u64, story: &str) -> ! {
        let folder = self.farm.keep();
        panic!(
            "round {seed}, {}: {story}\n{}\nsee {}",
            self.alone.continuity,
            self.events.join(", "),
            folder.display()
        );
    }
}

fn name(worker: usize) -> String {
    format!("w{}", worker + 1)
}

/// The user's command: it waits for the film and fetches it.
fn submit(farm: &Farm, alone: &Alone, output: &Path) -> Process {
    let output = output.to_str().expect("UTF-8");
    let flags = alone.flags.iter().map(String::as_str);
    let args: Vec<_> = ["submit", PROMPT]
        .into_iter()
        .chain(flags)
        .chain(["--wait", "-o", output])
        .collect();
    farm.start_command("user", &args)
}
