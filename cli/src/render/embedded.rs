//! A farm of one command: a coordinator in this process, workers beside it, state in a folder.

use super::state::State;
use super::workers::{WorkerSetup, Workers};
use super::{Order, RenderArgs, carry_out, deliver, report::Report};
use crate::client::Client;
use crate::exit::Interrupted;
use crate::pace::{self, Installation};
use crate::telemetry_args::TelemetryArgs;
use anyhow::{Result, anyhow};
use longtake_agent::Dial;
use longtake_common::artifact::file_url;
use longtake_server::{Access, Config, Coordinator, Handle, StartError};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// Worker processes when the user names no number: more only pay off on a farm.
const WORKERS_DEFAULT_MAX: usize = 2;
/// How long a coordinator that no longer answers may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Renders with workers of our own.
pub(super) async fn render(
    args: &RenderArgs,
    order: &mut Order,
    telemetry: &TelemetryArgs,
) -> Result<Report> {
    // Named even when nobody chose it: what an earlier run began on another level stays there.
    let local = &args.local;
    let level =
        longtake_agent::level(local.devices().first(), args.isa.as_deref(), local.max_vram)?;
    order.isa = Some(level.clone());
    let state = State::prepare(args, order)?;
    let mut handle = start_coordinator(state.folder(), &state.artifacts()).await?;
    let setup = setup(args, &state, &handle, telemetry);
    let of = args.installation(&order.wanted.spec, &level, setup.threads);
    let outcome = drive(&setup, order, &state, of, &mut handle).await;
    handle.shutdown().await;
    let report = outcome?;
    state.clear()?;
    Ok(report)
}

async fn drive(
    setup: &WorkerSetup,
    order: &Order,
    state: &State,
    of: Installation,
    handle: &mut Handle,
) -> Result<Report> {
    let stop = crate::commands::stop_signal()?;
    state.clear_scratch()?;
    let mut workers = Workers::start(setup)?;
    let mut client = Client::connect(&Dial::plain(handle.url())).await?;
    let work = async {
        // The coordinator is in this process: when it is away, it is gone.
        let (job, preview) = carry_out(&mut client, order, Duration::ZERO).await?;
        pace::note(of, &job);
        deliver(&mut client, job, preview, order).await
    };
    let outcome = tokio::select! {
        report = work => report,
        ended = handle.wait() => Err(stopped(ended)),
        error = workers.all_lost() => Err(error),
        () = stop => Err(Interrupted(format!(
            "interrupted; what is rendered lies in {}, and the same command goes on from there",
            state.folder().display()
        ))
        .into()),
    };
    let outcome = match outcome {
        Err(error) => Err(root_cause(error, &mut client, handle).await),
        done => done,
    };
    workers.stop().await;
    outcome
}

/// What made our own coordinator stop, if that is behind `error`: a broken connection to it says
/// less than it can say itself.
async fn root_cause(
    error: anyhow::Error,
    client: &mut Client,
    handle: &mut Handle,
) -> anyhow::Error {
    if error.is::<Interrupted>() || client.list().await.is_ok() {
        return error;
    }
    match tokio::time::timeout(LAST_WORDS, handle.wait()).await {
        Ok(Err(cause)) => stopped(Err(cause)),
        _ => error,
    }
}

fn stopped(ended: Result<(), StartError>) -> anyhow::Error {
    match ended {
        Err(cause) => anyhow::Error::from(cause).context("the render's coordinator had to stop"),
        Ok(()) => anyhow!("the render's coordinator stopped; run the same command to go on"),
    }
}

/// Workers of our own, and threads of each.
pub(super) fn crew(args: &RenderArgs) -> (usize, usize) {
    let cores = longtake_agent::host::cores();
    let usual = args.local.devices().gpus();
    let most = if args.local.ranks() > 1 {
        1
    } else {
        WORKERS_DEFAULT_MAX
    };
    let usual = usual.unwrap_or(cores.min(most));
    let count = args.local.workers.map_or(usual, usize::from);
    let threads = args
        .local
        .threads
        .map_or((cores / count).max(1), usize::from);
    (count, threads)
}

fn setup(
    args: &RenderArgs,
    state: &State,
    handle: &Handle,
    telemetry: &TelemetryArgs,
) -> WorkerSetup {
    let (count, threads) = crew(args);
    WorkerSetup {
        count,
        threads,
        ranks: args.local.ranks(),
        device: args.local.devices(),
        max_vram: args.local.max_vram,
        isa: args.isa.clone(),
        coordinator: handle.url(),
        logs: state.folder().to_owned(),
        scratch: state.scratch(),
        otlp: telemetry.otlp().map(str::to_owned),
    }
}

/// The coordinator of a folder that `render --state` works in, for whoever wants something of it.
pub async fn open_state(folder: &Path) -> Result<Handle> {
    let state = State::open(folder.to_owned(), false)?;
    start_coordinator(state.folder(), &state.artifacts()).await
}

/// Starts a coordinator of our own on what lies in a folder for work in progress.
pub async fn start_coordinator(folder: &Path, artifacts: &Path) -> Result<Handle> {
    let config = Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        state: file_url(folder)?,
        artifacts: file_url(artifacts)?,
        insecure: false,
        // Our workers died with the coordinator that had them: nobody will come back.
        adopt_ms: 0,
        access: Access::default(),
    };
    Ok(Coordinator::start(config).await?)
}
