//! Worker processes of an embedded render: started, watched, started again when they die.

use crate::device_args::Devices;
use anyhow::{Context, Result, anyhow};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often one worker is started again before it is given up. Someone who kills workers to see
/// what happens should not run out of them; a worker that cannot live at all should not go on.
const RESTARTS_MAX: u32 = 8;
/// Wait before a worker is started again, times the number of restarts.
const RESTART_DELAY: Duration = Duration::from_millis(100);

/// What every worker is started with.
#[derive(Clone, Debug)]
pub struct WorkerSetup {
    /// Worker processes.
    pub count: usize,
    /// Threads of each.
    pub threads: usize,
    /// Ranks of each, which share the threads.
    pub ranks: usize,
    /// What they render on.
    pub device: Devices,
    /// Most bytes of a GPU's memory for each.
    pub max_vram: Option<u64>,
    /// Instruction-set level, if chosen.
    pub isa: Option<String>,
    /// Address of the coordinator.
    pub coordinator: String,
    /// Folder for what they write to stderr.
    pub logs: PathBuf,
    /// Folder for files that only they need.
    pub scratch: PathBuf,
    /// Where they send traces, if anywhere.
    pub otlp: Option<String>,
}

/// Running workers. Dropping it kills them.
pub struct Workers {
    slots: JoinSet<anyhow::Error>,
    stop: watch::Sender<bool>,
}

impl Workers {
    /// Starts them.
    pub fn start(setup: &WorkerSetup) -> Result<Self> {
        let program = std::env::current_exe().context("find the program's own path")?;
        let mut slots = JoinSet::new();
        let (stop, stopped) = watch::channel(false);
        for number in 1..=setup.count {
            let slot = Slot {
                program: program.clone(),
                setup: setup.clone(),
                number,
            };
            let first = slot.spawn()?;
            slots.spawn(slot.keep_alive(first, stopped.clone()));
        }
        Ok(Self { slots, stop })
    }

    /// Resolves when no worker is left and none will be started again.
    pub async fn all_lost(&mut self) -> anyhow::Error {
        let mut last = anyhow!("there are no workers");
        while let Some(ended) = self.slots.join_next().await {
            match ended {
                Ok(error) => last = error,
                Err(error) => last = anyhow!("a worker's supervisor ended: {error}"),
            }
        }
        last
    }

    /// Kills them and waits until they are gone. Nothing they hold matters any more.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.slots.join_next().await.is_some() {}
    }
}

/// One worker's place, filled by one process after another.
struct Slot {
    program: PathBuf,
    setup: WorkerSetup,
    number: usize,
}

impl Slot {
    fn log_path(&self) -> PathBuf {
        self.setup.logs.join(format!("worker-{}.log", self.number))
    }

    /// Keeps a process in the slot; resolves when that has failed too often or is to stop.
    async fn keep_alive(
        self,
        mut child: Child,
        mut stopped: watch::Receiver<bool>,
    ) -> anyhow::Error {
        for restarts in 1.. {
            // `wait` would close a stdin that it finds, and with it the worker's life line.
            let _life_line = child.stdin.take();
            let how = tokio::select! {
                status = child.wait() => match status {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                },
                _ = stopped.changed() => return end(child).await,
            };
            if restarts > RESTARTS_MAX {
                return self.obituary(&how);
            }
            tracing::info!("worker {} ended ({how}); starting it again", self.number);
            tokio::select! {
                () = tokio::time::sleep(RESTART_DELAY * restarts) => {}
                _ = stopped.changed() => return anyhow!("stopped"),
            }
            match self.spawn() {
                Ok(next) => child = next,
                Err(error) => return error,
            }
        }
        unreachable!("the loop has no other end")
    }

    fn obituary(&self, how: &str) -> anyhow::Error {
        let path = self.log_path();
        let last_words = last_line(&path)
            .map(|line| format!(", saying: {line}"))
            .unwrap_or_default();
        anyhow!(
            "worker {} died {} times (last: {how}{last_words}); see {}",
            self.number,
            RESTARTS_MAX + 1,
            path.display()
        )
    }

    fn spawn(&self) -> Result<Child> {
        let setup = &self.setup;
        let path = self.log_path();
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("write {}", path.display()))?;
        let mut command = Command::new(&self.program);
        command
            .arg("worker")
            .args(["--coordinator", &setup.coordinator]);
        command.args(["--name", &format!("worker-{}", self.number)]);
        command.args([
            "--device",
            &setup.device.of_worker(self.number - 1).to_string(),
            "--threads",
            &setup.threads.to_string(),
        ]);
        command.args(["--ranks", &setup.ranks.to_string()]);
        command.arg("--scratch").arg(&setup.scratch);
        if let Some(bytes) = setup.max_vram {
            command.args(["--max-vram", &bytes.to_string()]);
        }
        if let Some(isa) = &setup.isa {
            command.args(["--isa", isa]);
        }
        if let Some(url) = &setup.otlp {
            command.args(["--otlp", url]);
        }
        // The pipe's other end closes when this process dies, however it does; a group of its own
        // keeps the terminal's Ctrl-C from the worker, so that we decide when it ends.
        command
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .process_group(0);
        command.stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        command
            .spawn()
            .with_context(|| format!("start {} worker", self.program.display()))
    }
}

/// Kills a process and waits until it is gone.
async fn end(mut child: Child) -> anyhow::Error {
    match child.kill().await {
        Ok(()) => anyhow!("stopped"),
        Err(error) => anyhow!("cannot stop a worker: {error}"),
    }
}

fn last_line(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned)
}
