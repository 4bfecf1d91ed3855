//! One module for each subcommand but `render`.

use anyhow::{Context, Result};

pub mod bench;
pub mod compare;
pub mod convert;
pub mod coordinator;
pub mod doctor;
pub mod download;
pub mod inspect;
pub mod jobs;
pub mod logs;
pub mod models;
pub mod plan;
pub mod rank;
pub mod retake;
pub mod stitch;
pub mod submit;
pub mod worker;
pub mod workers;

/// Resolves at the first SIGINT or SIGTERM.
pub fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Raises the number of files and sockets that this process may have open as far as it may itself;
/// the usual limit is too low for a thousand workers.
pub fn allow_many_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}
