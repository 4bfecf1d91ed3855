//! `longtake`: renders long takes, on this machine or on a farm of them.
//!
//! Every subcommand is a thin module under [`commands`] or [`render`]; what they share is one file
//! each: the flags of a job ([`job_args`]), the farm's client ([`client`]), progress on a terminal
//! ([`progress`]), files that appear only when complete ([`output`]) and what is printed
//! ([`terminal`]).
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod access_args;
mod client;
mod commands;
mod conditioning;
mod device_args;
mod download;
mod enhance;
mod estimate;
mod exit;
mod farm_model;
mod job_args;
mod local_args;
mod model_args;
mod output;
mod pace;
mod progress;
mod render;
mod size;
mod telemetry_args;
mod terminal;

use clap::{Parser, Subcommand};
use longtake_common::telemetry;
use std::process::ExitCode;
use telemetry_args::TelemetryArgs;
use tracing::Instrument;

/// Renders long videos as one shot: overlapping windows of LTX-Video, continued and joined so that
/// nobody can point at a seam.
#[derive(Parser)]
#[command(
    name = "longtake",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Render a prompt to a video, on this machine or (with --coordinator) on a farm
    Render(render::RenderArgs),
    /// Show the windows that a render would consist of, and what it would take; needs no weights
    Plan(commands::plan::PlanArgs),
    /// Check what this machine has: processor, memory, model, write access
    Doctor(commands::doctor::DoctorArgs),
    /// Run a coordinator: takes jobs, gives work to workers
    Coordinator(commands::coordinator::CoordinatorArgs),
    /// Run a worker for a coordinator
    Worker(commands::worker::WorkerArgs),
    /// A rank that a worker shares its windows with; workers start it
    #[command(hide = true)]
    Rank(commands::rank::RankArgs),
    /// Submit a job to a coordinator
    #[command(mut_args = local_args::hidden)]
    Submit(commands::submit::SubmitArgs),
    /// Show how far a job is
    Status(commands::jobs::JobArgs),
    /// Follow a job until it ends
    Watch(commands::jobs::JobArgs),
    /// List the jobs that a coordinator knows
    List(commands::jobs::ListArgs),
    /// Cancel a job
    Cancel(commands::jobs::JobArgs),
    /// Have a job wait: nothing more of it is given out, what runs is finished
    Pause(commands::jobs::JobArgs),
    /// Have a paused job go on
    Resume(commands::jobs::JobArgs),
    /// Have a failed or cancelled job go on from what is stored
    Retry(commands::jobs::JobArgs),
    /// Say why a job is where it is
    Explain(commands::jobs::JobArgs),
    /// Show what the tasks of a job have said
    Logs(commands::logs::LogsArgs),
    /// Fetch a film, or one segment of it while the job runs
    Download(commands::download::DownloadArgs),
    /// Render one segment of a complete film again; the rest stays as it is
    Retake(commands::retake::RetakeArgs),
    /// Show the workers of a farm; drain one, or let it work again
    Workers(commands::workers::WorkersArgs),
    /// Say what a checkpoint, a LoRA, an upscaler or a model folder is, and what is missing in it
    Inspect(commands::inspect::InspectArgs),
    /// Write a model as a Diffusers folder, with its large matrices in 8 bits if wanted
    Convert(commands::convert::ConvertArgs),
    /// Store models on a farm, so that every worker can have them
    Models(commands::models::ModelsArgs),
    /// Compare two videos frame by frame
    Compare(commands::compare::CompareArgs),
    /// Join clips where they overlap
    Stitch(commands::stitch::StitchArgs),
    /// Measure this build on this machine
    Bench(commands::bench::BenchArgs),
}

impl Command {
    /// What is logged unless the user says otherwise: services tell their story, commands show
    /// progress instead.
    fn log_default(&self) -> &'static str {
        match self {
            Self::Coordinator(_) | Self::Worker(_) => "info",
            _ => "warn",
        }
    }

    /// Who we are in traces.
    fn service(&self) -> &'static str {
        match self {
            Self::Coordinator(_) => "longtake-coordinator",
            Self::Worker(_) | Self::Rank(_) => "longtake-worker",
            _ => "longtake",
        }
    }

    /// What a user's command does is one span; a service would never end its own.
    fn span(&self) -> tracing::Span {
        match self {
            Self::Coordinator(_) | Self::Worker(_) | Self::Rank(_) => tracing::Span::none(),
            _ => tracing::info_span!("command"),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::remark(format_args!(
                "error: cannot start the asynchronous runtime: {error}"
            ));
            return ExitCode::FAILURE;
        }
    };
    let (command, telemetry_args) = (arguments.command, arguments.telemetry);
    let settings = telemetry::Settings {
        default_filter: command.log_default(),
        format: telemetry_args.log_format(),
        otlp: telemetry_args.otlp(),
        service: command.service(),
    };
    let started = {
        let _runtime = runtime.enter();
        telemetry::init(&settings)
    };
    let telemetry = match started {
        Ok(telemetry) => telemetry,
        Err(message) => {
            terminal::remark(format_args!("error: {message}"));
            return ExitCode::FAILURE;
        }
    };
    let span = command.span();
    let outcome = runtime.block_on(run(command, &telemetry_args).instrument(span));
    telemetry.finish();
    // Blocking work that nobody waits for any more must not hold up the exit.
    runtime.shutdown_background();
    exit::code(outcome)
}

async fn run(command: Command, telemetry: &TelemetryArgs) -> anyhow::Result<()> {
    match command {
        Command::Render(args) => render::run(args, telemetry).await,
        Command::Plan(args) => commands::plan::run(&args).await,
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Coordinator(args) => commands::coordinator::run(args).await,
        Command::Worker(args) => commands::worker::run(args).await,
        Command::Rank(args) => commands::rank::run(args).await,
        Command::Submit(args) => commands::submit::run(args).await,
        Command::Status(args) => commands::jobs::status(args).await,
        Command::Watch(args) => commands::jobs::watch(args).await,
        Command::List(args) => commands::jobs::list(args).await,
        Command::Cancel(args) => commands::jobs::cancel(args).await,
        Command::Bench(args) => commands::bench::run(args).await,
        Command::Pause(args) => commands::jobs::pause(args).await,
        Command::Resume(args) => commands::jobs::resume(args).await,
        Command::Retry(args) => commands::jobs::retry(args).await,
        Command::Explain(args) => commands::jobs::explain(args).await,
        Command::Logs(args) => commands::logs::run(args).await,
        Command::Download(args) => commands::download::run(args).await,
        Command::Retake(args) => commands::retake::run(args).await,
        Command::Workers(args) => commands::workers::run(args).await,
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Models(args) => commands::models::run(args).await,
        Command::Compare(args) => commands::compare::run(&args),
        Command::Stitch(args) => commands::stitch::run(args).await,
    }
}
