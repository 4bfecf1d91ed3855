//! Runs the product as a user does: the release binary, its command line, its JSON.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The release binary of this workspace. `cargo xtask test` builds it before any test runs.
///
/// # Panics
/// When it has not been built.
pub fn binary() -> PathBuf {
    // Test executables lie in <target>/release/deps, examples and binaries beside the product.
    let me = std::env::current_exe().expect("the path of this executable");
    let found = me
        .ancestors()
        .map(|folder| folder.join("longtake"))
        .find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no longtake binary beside {}: run `cargo build --release` first",
            me.display()
        )
    })
}

/// The product, ready for arguments, with the surroundings of a user who has set nothing.
pub fn longtake() -> Command {
    let mut command = Command::new(binary());
    command.env_remove("LONGTAKE_COORDINATOR");
    command
}

/// What `render --json` prints, as far as tests and benchmarks read it.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// The film.
    pub output: PathBuf,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Frames a second.
    pub fps: f64,
    /// Frames of the film.
    pub frames: u32,
    /// The windows.
    pub segments: Vec<Segment>,
    /// The joins between them.
    pub seams: Vec<Seam>,
    /// Wall time of the command.
    pub seconds_total: f64,
    /// Sum over processes of each one's peak.
    pub peak_rss_bytes: u64,
}

/// One window of a [`Report`].
#[derive(Clone, Debug, Deserialize)]
pub struct Segment {
    /// From 0.
    pub index: u32,
    /// First frame in the film.
    pub first_frame: u32,
    /// Visible frames.
    pub frames: u32,
    /// Seed of its noise.
    pub seed: u64,
    /// Who rendered it.
    pub worker: String,
    /// Tries.
    pub attempts: u32,
    /// Whether it was there before this run.
    pub reused: bool,
}

/// One seam of a [`Report`].
#[derive(Clone, Debug, Deserialize)]
pub struct Seam {
    /// First frame of the overlap.
    pub frame: u32,
    /// How it was joined.
    pub method: String,
    /// See docs/quality.md.
    pub seam_ratio: f64,
    /// See docs/quality.md.
    pub warp_ratio: f64,
    /// See docs/quality.md.
    pub sharpness: f64,
}

/// Renders `prompt` to `output` with `--json` and more flags, and reads the report.
///
/// # Errors
/// What the command printed, when it failed or printed no report.
pub fn render(prompt: &str, output: &Path, flags: &[&str]) -> Result<Report, String> {
    let out = longtake()
        .arg("render")
        .arg(prompt)
        .arg("-o")
        .arg(output)
        .args(flags)
        .arg("--json")
        .output()
        .map_err(|error| format!("start longtake: {error}"))?;
    last_json(&out)
}

/// Reads the JSON object that ends standard output.
///
/// # Errors
/// The exit status and standard error, when there is none.
pub fn last_json<T: for<'de> Deserialize<'de>>(out: &Output) -> Result<T, String> {
    let text = String::from_utf8_lossy(&out.stdout);
    let story = || {
        format!(
            "{}: {}\n{}",
            out.status,
            text,
            String::from_utf8_lossy(&out.stderr)
        )
    };
    if !out.status.success() {
        return Err(story());
    }
    serde_json::from_str(text.trim()).map_err(|error| format!("{error} in {}", story()))
}
