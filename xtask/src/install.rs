//! Brings the outside programs that tests compare against.

use crate::run;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};

/// Installs ffmpeg and ffprobe from the system's packages unless they are there.
pub fn ffmpeg() -> Result<()> {
    if answers("ffmpeg", "-version") && answers("ffprobe", "-version") {
        return Ok(());
    }
    apt(&["ffmpeg"]).context(
        "install ffmpeg: the tests read the films back with it; put ffmpeg and ffprobe on the PATH",
    )
}

fn apt(packages: &[&str]) -> Result<()> {
    let sudo = !is_root();
    run(privileged(sudo).args(["apt-get", "update", "-q"]))?;
    run(privileged(sudo)
        .args(["apt-get", "install", "-q", "-y", "--no-install-recommends"])
        .args(packages))
}

fn privileged(sudo: bool) -> Command {
    let mut command = Command::new(if sudo { "sudo" } else { "env" });
    if !sudo {
        command.arg("DEBIAN_FRONTEND=noninteractive");
    }
    command
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

fn answers(program: &str, flag: &str) -> bool {
    Command::new(program)
        .arg(flag)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
