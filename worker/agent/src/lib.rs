//! A worker: takes work from a coordinator, does it on the machine's device, stores the results.
//!
//! Two threads do the work, so that joining and encoding pictures overlaps rendering the next ones:
//! the *device* lane has the model, the *host* lane has neither. A third party, the connection,
//! never waits for either: it beats the heart, takes orders, and keeps every result until the
//! coordinator has acknowledged it, across reconnections.
//!
//! Knows what each kind of work means; decides nothing about its order. Start with [`run`].
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod artifacts;
mod connection;
mod control;
mod device;
mod dial;
mod drain;
mod error;
mod gang;
pub mod host;
mod lane;
mod ledger;
mod loading;
mod models;
mod serve;
mod tea_cache;
mod tls;
mod work;

pub use device::{Device, level};
pub use dial::{Credentials, Dial, DialError, Dialler, Link, has_broken};
pub use error::{AgentError, TaskError};
pub use gang::{GangSettings, serve_rank};
pub use loading::{Loading, measure_loading};
pub use longtake_cpu::Isa;
// What can be said and done about model files without rendering.
pub use longtake_ltx::{
    Inspection, ModelFiles, Rules, check_files, convert, inspect, lora_info, text_encoder_beside,
};
pub use models::{CACHE_BYTES_DEFAULT, ModelSettings};
pub use tea_cache::{TeaCacheFigures, TeaCacheTrial, measure_tea_cache};
pub use work::check_sampling;

use drain::{Drain, SETTLE};
use ledger::Ledger;
use longtake_common::spec::ModelRef;
use longtake_cpu::CpuBackend;
use longtake_ltx::weights::Scrutiny;
use models::Shelf;
use serve::{Identity, Lanes, Server};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use work::{DeviceExecutor, HostExecutor, LostDevice};

/// How long the first contact with the coordinator may take. After it, a worker waits for ever: its
/// coordinator was there and will be again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time to finish the work in hand after being told to stop, unless the user says otherwise.
pub const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// How a worker is set up.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The coordinator.
    pub coordinator: Dial,
    /// Name shown in reports.
    pub name: String,
    /// What to render on.
    pub device: Device,
    /// Most bytes of a GPU's memory to take, if there is a limit.
    pub memory_limit: Option<u64>,
    /// Threads to render with, at least 1; of each rank.
    pub threads: usize,
    /// How windows are shared with other ranks; `None` where they cannot be.
    pub gang: Option<GangSettings>,
    /// Instruction-set level by name; `None` takes the best that the processor has.
    pub isa: Option<String>,
    /// Folder for files that only the worker needs; a film that is put together lies there once.
    pub scratch: PathBuf,
    /// How long it may finish what it has begun after being told to stop; then it stores what is
    /// not done.
    pub drain_grace: Duration,
    /// Its models.
    pub models: ModelSettings,
}

/// Works for the coordinator until `stop` resolves; then takes nothing new and finishes what it has
/// begun, for at most the time given, and stores the rest for others to go on with. Must be called on a tokio runtime of several threads.
pub async fn run(
    config: AgentConfig,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), AgentError> {
    let dialler = serve::dialler(&config.coordinator)?;
    check_gang(
        config.device,
        config.gang.as_ref().map_or(1, |gang| gang.ranks),
    )?;
    check_gang_address(config.gang.as_ref())?;
    let level = level(config.device, config.isa.as_deref(), config.memory_limit)?;
    // May read for minutes, the first time.
    let opened = tokio::task::spawn_blocking(move || Shelf::open(config.models));
    let shelf = opened
        .await
        .map_err(|error| AgentError::Model(error.to_string()))??;
    let shelf = Arc::new(shelf);
    let (ranks, gang_address) = match &config.gang {
        Some(gang) => (gang.ranks as u32, Some(gang.address)),
        None => (1, None),
    };
    let runtime = Handle::current();
    let host = HostExecutor::new(runtime.clone(), config.threads, config.scratch)?;
    let lost = Arc::<LostDevice>::default();
    let lanes = match config.device {
        Device::Cpu => {
            let isa = isa(config.isa.as_deref())?;
            let backend = CpuBackend::new(config.threads, isa)
                .map_err(|error| AgentError::Device(error.to_string()))?;
            Lanes::start(
                DeviceExecutor::new(backend, shelf.clone(), config.gang, runtime, lost.clone()),
                host,
            )?
        }
        Device::Cuda(ordinal) => {
            let backend = device::open_gpu(ordinal, config.memory_limit)?;
            Lanes::start(
                DeviceExecutor::new(backend, shelf.clone(), config.gang, runtime, lost.clone()),
                host,
            )?
        }
    };
    let identity = Identity {
        name: config.name,
        device: config.device.to_string(),
        isa: level,
        threads: config.threads as u32,
        instance: instance(),
        ranks,
        gang_address,
        machine: host::machine().unwrap_or_else(instance),
    };
    let server = Server {
        identity,
        shelf,
        dialler,
        patience: PATIENCE,
        lanes,
        ledger: Ledger::default(),
    };
    let watched = lost.clone();
    let stop = async move {
        tokio::select! {
            () = stop => {}
            () = watched.told() => {}
        }
    };
    let drain = Drain::new(stop, config.drain_grace, SETTLE);
    server.serve(drain).await?;
    lost.story()
        .map_or(Ok(()), |story| Err(AgentError::Device(story)))
}

/// Fails when a window cannot be shared by so many ranks on `device`.
pub fn check_gang(device: Device, ranks: usize) -> Result<(), AgentError> {
    if ranks > 1 && device != Device::Cpu {
        return Err(AgentError::Device(format!(
            "--ranks {ranks} shares a window among processes on the processor (--device cpu); on GPUs it \
             is not built yet, where --workers renders several windows at a time"
        )));
    }
    Ok(())
}

/// Fails when other workers' ranks cannot reach this worker's where it says.
fn check_gang_address(gang: Option<&GangSettings>) -> Result<(), AgentError> {
    let Some(GangSettings { address, .. }) = gang else {
        return Ok(());
    };
    match std::net::TcpListener::bind((*address, 0)) {
        Ok(_) if !address.is_unspecified() => Ok(()),
        Ok(_) => Err(AgentError::Device(format!(
            "--gang-address {address} is no address that others can dial: name the one of the interface \
             that they reach this machine by"
        ))),
        Err(error) => Err(AgentError::Device(format!(
            "--gang-address {address} cannot be used: {error}; it has to be an address of this machine"
        ))),
    }
}

/// Fails when the attention heads of `model` cannot be shared by so many ranks, and says how many can.
pub fn check_ranks(model: &ModelRef, ranks: usize) -> Result<(), AgentError> {
    let bad = |error: &dyn std::error::Error| AgentError::Model(error::story(error));
    let files = models::files_of(model).map_err(|error| bad(&error))?;
    longtake_ltx::check_ranks(files, ranks).map_err(|error| bad(&error))
}

/// Tells this process from others of its name: random, for process ids repeat on other machines.
fn instance() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{random:016x}")
}

/// The instruction-set level of that name, or the best there is.
pub fn isa(name: Option<&str>) -> Result<Isa, AgentError> {
    let chosen = match name {
        Some(name) => name.parse::<Isa>().and_then(Isa::ensure_available),
        None => Ok(Isa::detect()),
    };
    chosen.map_err(|error| AgentError::Device(error.to_string()))
}

/// Checks a model's configuration, tokenizer and weight headers before a job is given out, so that
/// what is wrong with them is said at once and not by a worker minutes later. Reads no weight.
pub fn check_model(model: &ModelRef) -> Result<(), AgentError> {
    let bad = |error: &dyn std::error::Error| AgentError::Model(error::story(error));
    let files = models::files_of(model).map_err(|error| bad(&error))?;
    longtake_ltx::check_model(files).map_err(|error| bad(&error))
}

/// What the model at `path` asks of the passes that sample it. Reads its configuration alone.
pub fn rules(path: &Path) -> Result<Rules, AgentError> {
    Rules::read(path).map_err(|error| AgentError::Model(error::story(&error)))
}

/// The same for a latent upscaler.
pub fn check_upscaler(upscaler: &ModelRef) -> Result<(), AgentError> {
    check_upscaler_file(upscaler, Scrutiny::Headers)
}

/// Looks at every value of a model, too.
pub fn check_values(model: &ModelRef) -> Result<(), AgentError> {
    let bad = |error: &dyn std::error::Error| AgentError::Model(error::story(error));
    let files = models::files_of(model).map_err(|error| bad(&error))?;
    longtake_ltx::check_values(files).map_err(|error| bad(&error))
}

/// Looks at every value of a latent upscaler, too.
pub fn check_upscaler_values(upscaler: &ModelRef) -> Result<(), AgentError> {
    check_upscaler_file(upscaler, Scrutiny::Values)
}

fn check_upscaler_file(upscaler: &ModelRef, scrutiny: Scrutiny) -> Result<(), AgentError> {
    let bad = |error: &dyn std::error::Error| AgentError::Model(error::story(error));
    let path = longtake_common::model::find_model(&upscaler.location).map_err(|e| bad(&e))?;
    longtake_ltx::check_upscaler(&path, scrutiny).map_err(|error| bad(&error))
}

/// Checks files before others are to have them: a Diffusers folder as [`check_values`] does, anything
/// else for being a checkpoint, an upscaler, a text encoder or a LoRA that is whole. Looks at every
/// value of their weights.
pub fn check_whole_model(path: &Path) -> Result<(), AgentError> {
    let checked = longtake_ltx::check_files(path).and_then(|()| longtake_ltx::check_whole(path));
    checked.map_err(|error| AgentError::Model(error::story(&error)))
}

/// The same for what is given as a text encoder, without its tokenizer.
pub fn check_whole_text_encoder(path: &Path) -> Result<(), AgentError> {
    longtake_ltx::check_text_encoder(path).map_err(|error| AgentError::Model(error::story(&error)))
}
