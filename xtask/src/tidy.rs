//! House rules that neither rustfmt nor clippy knows.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file, in lines. A longer one does two things and wants to be two files.
const LINES_MAX: usize = 600;
const SOURCE_ENDINGS: &[&str] = &["rs", "cu", "py", "sh", "proto"];

/// Fails with every broken rule.
pub fn check(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for file in tracked(root)? {
        let path = root.join(&file);
        let ending = file.extension().and_then(|e| e.to_str()).unwrap_or("");
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue; // binary, or deleted in the working tree
        };
        if SOURCE_ENDINGS.contains(&ending) && text.lines().count() > LINES_MAX {
            wrong.push(format!("{}: over {LINES_MAX} lines", file.display()));
        }
        if file.ends_with("Cargo.toml") && text.contains("[package]") {
            let inherits = text.contains("[lints]\nworkspace = true");
            // A workspace of its own has nothing to inherit.
            let own = text.contains("\n[workspace]") && text.contains("\n[lints.");
            if !inherits && !own {
                wrong.push(format!(
                    "{}: [lints] workspace = true is missing",
                    file.display()
                ));
            }
        }
        if let Some(line) = absolute_home(&text) {
            wrong.push(format!(
                "{}:{line}: a path of somebody's machine",
                file.display()
            ));
        }
    }
    if !wrong.is_empty() {
        bail!("tidiness:\n  {}", wrong.join("\n  "));
    }
    eprintln!("xtask: tidy");
    Ok(())
}

/// First line that names a home folder or this repository's checkout elsewhere than here.
fn absolute_home(text: &str) -> Option<usize> {
    let patterns = [
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/wo", "rk/"),
    ];
    // A folder of that name inside the repository has another name in front.
    let inside =
        |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || "._-".contains(c));
    let names_one = |line: &str| {
        let mut found = patterns.iter().flat_map(|p| line.match_indices(p));
        found.any(|(at, _)| !inside(&line[..at]))
    };
    text.lines().position(names_one).map(|index| index + 1)
}

fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root)
        .output()
        .context("run git ls-files")?;
    Ok(String::from_utf8_lossy(&out.stdout)
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect())
}
