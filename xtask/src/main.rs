//! The chores of the workspace: `cargo xtask test` installs what the tests need and runs them all;
//! `cargo xtask ci` adds format, lints and the structural checks. Run `cargo xtask help` for the list.

mod edges;
mod install;
mod tidy;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Parser)]
#[command(about = "Chores of the longtake workspace")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tests need: ffmpeg, etcd, servers that speak S3, Prometheus, a collector of
    /// traces, NVRTC, and what reads the files of deploy/.
    Install,
    /// `install`, and run every test on the release build.
    Test {
        /// Passed on to the test runner, for example a part of a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// Format, lints, crate edges, tidiness and then `test`: what has to pass before a change lands.
    Ci,
    /// Render films on a farm in which everything goes wrong, and compare them with undisturbed ones:
    /// docs/scenario.md.
    Scenario {
        /// Passed on: `--rounds N`, `--seed N`, `--continuity none,chain`, `--short`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
    /// Render films with gangs of ranks that are killed, stand still and are cut off, and compare them
    /// with undisturbed ones: docs/scenario.md.
    Gangs {
        /// Passed on: `--rounds N`, `--seed N`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
    /// Prove that crates depend on each other only in the directions of docs/architecture.md.
    Edges,
    /// Check file lengths, lint inheritance and that no absolute home path slipped in.
    Tidy,
}

fn main() -> Result<()> {
    let root = workspace_root();
    match Args::parse().task {
        Task::Install => install(&root).map(|_| ()),
        Task::Test { filter } => test(&root, &filter),
        Task::Ci => ci(&root),
        Task::Scenario { flags } => play(&root, "scenario", &flags),
        Task::Gangs { flags } => play(&root, "gangs", &flags),
        Task::Edges => edges::check(&root),
        Task::Tidy => tidy::check(&root),
    }
}

/// The folder of the workspace's manifest: this crate's parent.
fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_owned()
}

/// Where cargo builds.
fn target_folder(root: &Path) -> Result<PathBuf> {
    let mut metadata = cargo_metadata::MetadataCommand::new();
    let metadata = metadata.manifest_path(root.join("Cargo.toml")).no_deps();
    Ok(metadata.exec()?.target_directory.into_std_path_buf())
}

/// Installs what a farm stands on, and builds the program in the profile that users run.
fn farm(root: &Path) -> Result<()> {
    install::etcd()?;
    install::s3(&target_folder(root)?)?;
    install::network()?;
    cargo(root, &["build", "--release", "--package", "longtake"])
}

/// Runs one of the programs that disturb a farm.
fn play(root: &Path, program: &str, flags: &[String]) -> Result<()> {
    farm(root)?;
    let run = format!("run --release --package longtake-tests --bin {program} --");
    let flags = flags.iter().map(String::as_str);
    cargo(root, &run.split(' ').chain(flags).collect::<Vec<_>>())
}

/// Installs all that any test needs; where NVRTC is.
fn install(root: &Path) -> Result<PathBuf> {
    let target = target_folder(root)?;
    install::ffmpeg()?;
    install::etcd()?;
    install::s3(&target)?;
    install::network()?;
    install::collector(&target)?;
    install::deployment(&target)?;
    install::nvrtc(&target)
}

fn test(root: &Path, filter: &[String]) -> Result<()> {
    let nvrtc = install(root)?;
    // Tests of whole processes run the binary, so it is built first.
    farm(root)?;
    let mut args = vec!["test", "--release", "--workspace", "--no-fail-fast"];
    if !filter.is_empty() {
        args.push("--");
        args.extend(filter.iter().map(String::as_str));
    }
    run(Command::new(env!("CARGO"))
        .args(args)
        .env("LONGTAKE_CUDA_LIBS", nvrtc)
        .current_dir(root))
}

fn ci(root: &Path) -> Result<()> {
    cargo(root, &["fmt", "--all", "--check"])?;
    edges::check(root)?;
    tidy::check(root)?;
    let lint = "clippy --release --workspace --all-targets -- -D warnings";
    cargo(root, &lint.split(' ').collect::<Vec<_>>())?;
    test(root, &[])
}

/// Runs cargo in the workspace and fails with the command line when cargo fails.
fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    run(Command::new(env!("CARGO")).args(args).current_dir(root))
}

/// Runs `command`, showing it first.
fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
