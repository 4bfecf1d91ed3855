//! How long a model takes until it is ready to compute, and the memory that this takes.

use crate::error::AgentError;
use longtake_cpu::{CpuBackend, Isa};
use longtake_ltx::{Model, ModelFiles};
use std::time::Instant;

/// What loading took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loading {
    /// Wall time.
    pub seconds: f64,
    /// Resident memory that it added beyond mapped files, in bytes.
    pub anonymous_bytes: u64,
}

/// Loads a model on the CPU, every value of it looked at, and lets go of it.
///
/// # Errors
/// When it cannot be loaded, or the system does not tell its memory.
pub fn measure_loading(files: &ModelFiles) -> Result<Loading, AgentError> {
    let bad = |error: &dyn std::error::Error| AgentError::Model(crate::error::story(error));
    let backend = CpuBackend::new(0, Isa::detect()).map_err(|error| bad(&error))?;
    let before = anonymous_bytes().map_err(|error| bad(&error))?;
    let started = Instant::now();
    let model = Model::load(files, backend).map_err(|error| bad(&error))?;
    let seconds = started.elapsed().as_secs_f64();
    let after = anonymous_bytes().map_err(|error| bad(&error))?;
    drop(model);
    Ok(Loading {
        seconds,
        anonymous_bytes: after.saturating_sub(before),
    })
}

/// Resident memory of this process that no file backs, in bytes.
fn anonymous_bytes() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| std::io::Error::other("/proc/self/status has no RssAnon"))
}
