//! Proves the direction of every edge between crates.
//!
//! Two checks: the direct edges inside the workspace are exactly allowed ones, and some crates must
//! not reach some outside crates, however indirectly. The second asks `cargo tree` for one package
//! at a time, because the features of a whole-workspace build are a union that no crate alone has.

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Crate, and the workspace crates that its normal dependencies may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("longtake-proto", &[]),
    ("longtake-common", &[]),
    ("longtake-core", &["longtake-common"]),
    (
        "longtake-server",
        &["longtake-common", "longtake-core", "longtake-proto"],
    ),
    ("longtake-tensor", &[]),
    ("longtake-cpu", &["longtake-tensor"]),
    ("longtake-cuda", &["longtake-tensor"]),
    ("longtake-ltx", &["longtake-tensor"]),
    ("longtake-stitch", &["longtake-common"]),
    (
        "longtake-agent",
        &[
            "longtake-common",
            "longtake-cpu",
            "longtake-cuda",
            "longtake-ltx",
            "longtake-proto",
            "longtake-stitch",
            "longtake-tensor",
        ],
    ),
    (
        "longtake",
        &[
            "longtake-agent",
            "longtake-common",
            "longtake-core",
            "longtake-cpu",
            "longtake-cuda",
            "longtake-ltx",
            "longtake-proto",
            "longtake-server",
            "longtake-stitch",
            "longtake-tensor",
        ],
    ),
    (
        "longtake-tests",
        &[
            "longtake-common",
            "longtake-cpu",
            "longtake-ltx",
            "longtake-stitch",
            "longtake-tensor",
        ],
    ),
    ("xtask", &[]),
];

/// Crate, and what it must not reach through normal dependencies.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "longtake-core",
        &[
            "tokio",
            "tonic",
            "prost",
            "rand",
            "redb",
            "object_store",
            "openh264",
        ],
    ),
    (
        "longtake-tensor",
        &["rayon", "tokio", "safetensors", "cudarc"],
    ),
    (
        "longtake-ltx",
        &["rayon", "tokio", "tonic", "cudarc", "redb"],
    ),
    ("longtake-cpu", &["tokio", "safetensors", "cudarc"]),
    ("longtake-cuda", &["tokio", "safetensors"]),
    ("longtake-stitch", &["tokio", "tonic", "openh264", "redb"]),
    ("longtake-common", &["tonic", "prost", "redb"]),
];

/// Fails with every edge that should not be there.
pub fn check(root: &Path) -> Result<()> {
    let mut wrong = direct_edges(root)?;
    for (package, forbidden) in FORBIDDEN {
        let reached = reached_from(root, package)?;
        ensure!(
            reached.contains(*package),
            "cargo tree lists nothing for {package}: is it still called so?"
        );
        wrong.extend(
            forbidden
                .iter()
                .filter(|name| reached.contains(**name))
                .map(|name| format!("{package} must not reach {name}")),
        );
    }
    if !wrong.is_empty() {
        bail!("crate edges:\n  {}", wrong.join("\n  "));
    }
    eprintln!("xtask: crate edges go one way");
    Ok(())
}

fn direct_edges(root: &Path) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()?;
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let names: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let mut wrong: Vec<String> = allowed
        .keys()
        .filter(|name| !names.contains(**name))
        .map(|name| format!("{name} is listed in xtask/src/edges.rs but is no package"))
        .collect();
    for package in &metadata.packages {
        let Some(may) = allowed.get(package.name.as_str()) else {
            wrong.push(format!(
                "{} is not listed in xtask/src/edges.rs",
                package.name
            ));
            continue;
        };
        let named = package
            .dependencies
            .iter()
            .filter(|d| d.kind == DependencyKind::Normal && names.contains(d.name.as_str()));
        wrong.extend(
            named
                .filter(|d| !may.contains(&d.name.as_str()))
                .map(|d| format!("{} must not depend on {}", package.name, d.name)),
        );
    }
    Ok(wrong)
}

/// Names of all packages that `package`, built alone, links.
fn reached_from(root: &Path, package: &str) -> Result<BTreeSet<String>> {
    let out = Command::new(env!("CARGO"))
        .args([
            "tree", "--edges", "normal", "--prefix", "none", "--format", "{p}",
        ])
        .args(["--package", package])
        .current_dir(root)
        .output()
        .context("run cargo tree")?;
    ensure!(
        out.status.success(),
        "cargo tree --package {package}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect())
}
