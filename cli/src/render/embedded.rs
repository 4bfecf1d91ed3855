//! A farm of one command: a coordinator in this process, workers beside it, state in a folder.

use super::workers::{WorkerSetup, Workers};
use super::{Order, RenderArgs, carry_out, deliver, report::Report};
use crate::client::Client;
use crate::exit::Interrupted;
use anyhow::{Context, Result, anyhow};
use longtake_common::artifact::file_url;
use longtake_server::{Config, Coordinator, Handle};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Worker processes when the user names no number: more only pay off on a farm.
const WORKERS_DEFAULT_MAX: usize = 2;

/// Renders with workers of our own.
pub async fn render(args: &RenderArgs, order: &Order) -> Result<Report> {
    longtake_agent::isa(args.isa.as_deref())?;
    if let Some(path) = &order.wanted.model_path {
        longtake_agent::check_model(path)?;
    }
    let state = State::prepare(args, order)?;
    let handle = start_coordinator(&state.folder).await?;
    let outcome = drive(args, order, &state, &handle).await;
    handle.shutdown().await;
    let report = outcome?;
    state.clear()?;
    Ok(report)
}

async fn drive(args: &RenderArgs, order: &Order, state: &State, handle: &Handle) -> Result<Report> {
    let stop = crate::commands::stop_signal()?;
    state.clear_scratch()?;
    let mut workers = Workers::start(&setup(args, state, handle))?;
    let mut client = Client::connect(&handle.url()).await?;
    let work = async {
        // The coordinator is in this process: when it is away, it is gone.
        let job = carry_out(&mut client, order, Duration::ZERO).await?;
        deliver(&mut client, &job, order).await
    };
    let outcome = tokio::select! {
        report = work => report,
        error = workers.all_lost() => Err(error),
        () = stop => Err(Interrupted(format!(
            "interrupted; what is rendered lies in {}, and the same command goes on from there",
            state.folder.display()
        ))
        .into()),
    };
    workers.stop().await;
    outcome
}

fn setup(args: &RenderArgs, state: &State, handle: &Handle) -> WorkerSetup {
    let cores = longtake_agent::host::cores();
    let count = args
        .workers
        .map_or(cores.min(WORKERS_DEFAULT_MAX), usize::from);
    let threads = args.threads.map_or((cores / count).max(1), usize::from);
    WorkerSetup {
        count,
        threads,
        device: args.device.clone(),
        isa: args.isa.clone(),
        coordinator: handle.url(),
        logs: state.folder.clone(),
        scratch: state.scratch(),
    }
}

async fn start_coordinator(state: &Path) -> Result<Handle> {
    let config = Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        state: file_url(state)?,
        artifacts: file_url(&state.join("artifacts"))?,
        insecure: false,
        // Our workers died with the coordinator that had them: nobody will come back.
        adopt_ms: 0,
    };
    Ok(Coordinator::start(config).await?)
}

/// The folder for work in progress.
struct State {
    folder: PathBuf,
    /// Whether it goes when the film is there.
    temporary: bool,
}

impl State {
    fn prepare(args: &RenderArgs, order: &Order) -> Result<Self> {
        let (folder, temporary) = match &args.state {
            Some(folder) => (folder.clone(), false),
            None => (order.target.default_state(), true),
        };
        let made = std::fs::create_dir_all(&folder).and_then(|()| folder.canonicalize());
        let folder = made.map_err(|error| {
            anyhow!(
                "cannot use {} for work in progress ({error}); choose another with --state",
                folder.display()
            )
        })?;
        Ok(Self { folder, temporary })
    }

    /// Empties the scratch folder: workers that were killed leave unfinished files behind. Only for
    /// whoever has locked the state, or it would be another render's that is taken away.
    fn clear_scratch(&self) -> Result<()> {
        let cleared = match std::fs::remove_dir_all(self.scratch()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => std::fs::create_dir(self.scratch()),
        };
        cleared.with_context(|| format!("clear {}", self.scratch().display()))
    }

    /// Where workers put files that only they need.
    fn scratch(&self) -> PathBuf {
        self.folder.join("scratch")
    }

    fn clear(&self) -> Result<()> {
        if !self.temporary {
            return Ok(());
        }
        std::fs::remove_dir_all(&self.folder).with_context(|| {
            format!(
                "the film is there, but {} cannot be removed",
                self.folder.display()
            )
        })
    }
}
