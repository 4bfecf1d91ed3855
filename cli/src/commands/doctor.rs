//! `doctor`: what this machine has, what is missing, and the way out.

use crate::terminal::print;
use anyhow::{Result, bail};
use longtake_agent::{Isa, host};
use longtake_common::Hash;
use longtake_common::model::{find_config, find_model, hash_model};
use longtake_common::pipeline::Pipeline;
use longtake_common::spec::ModelRef;
use serde::Serialize;
use std::path::PathBuf;

/// Below this much available memory the shipped model does not run at its default size.
const MEMORY_BYTES_MIN: u64 = 1 << 30;

/// Flags of `doctor`.
#[derive(clap::Args)]
pub struct DoctorArgs {
    /// Pipeline file to look for: a name under configs/ or a YAML file
    #[arg(long, value_name = "NAME|YAML", default_value = "ltxv-tiny")]
    config: String,
    /// Folder that films will be written to
    #[arg(long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One line of the diagnosis.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    /// What was found and, when that is not good, the way out.
    message: String,
}

impl Check {
    fn new(name: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self {
            name,
            level,
            message: message.into(),
        }
    }
}

impl Check {
    fn line(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        format!("{level}  {:10} {}", self.name, self.message)
    }
}

/// Prints every check; fails when one of them did.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let checks = [
        processor(),
        cores(),
        memory(),
        model(&args.config),
        output(args),
        ports(),
        gpu(),
    ];
    let failed = checks
        .iter()
        .filter(|check| check.level == Level::Fail)
        .count();
    if args.json {
        print(serde_json::json!({ "ok": failed == 0, "checks": checks }))?;
    } else {
        print(checks.each_ref().map(Check::line).join("\n"))?;
    }
    match failed {
        0 => Ok(()),
        1 => bail!("one check failed; see above for the way out"),
        _ => bail!("{failed} checks failed; see above for the ways out"),
    }
}

fn processor() -> Check {
    let best = Isa::detect();
    let have: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let message = format!("instruction sets {}; using {best}", have.join(", "));
    if best == Isa::Scalar {
        let slow = format!(
            "{message}: rendering will be slow; a processor with AVX2 is many times faster"
        );
        return Check::new("processor", Level::Warn, slow);
    }
    Check::new("processor", Level::Ok, message)
}

fn cores() -> Check {
    let cores = host::cores();
    let level = if cores == 1 { Level::Warn } else { Level::Ok };
    let hint = if cores == 1 {
        ": decoding will not overlap denoising; allow more cores"
    } else {
        ""
    };
    Check::new("cores", level, format!("{cores}{hint}"))
}

fn memory() -> Check {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let (available, total) = (host::memory_available_bytes(), host::memory_bytes());
    let message = format!(
        "{:.1} GiB available of {:.1} GiB",
        gib(available),
        gib(total)
    );
    if total == 0 {
        return Check::new(
            "memory",
            Level::Warn,
            "this system does not say how much there is",
        );
    }
    if available < MEMORY_BYTES_MIN {
        let few = format!(
            "{message}: end other programs, or render with --workers 1 at a smaller --size"
        );
        return Check::new("memory", Level::Warn, few);
    }
    Check::new("memory", Level::Ok, message)
}

fn model(config: &str) -> Check {
    let look = || -> Result<String> {
        let pipeline = Pipeline::read(&find_config(config)?)?;
        let path = find_model(pipeline.model())?;
        let location = path.display().to_string();
        longtake_agent::check_model(&ModelRef::new(location, Hash::of(b"")))?;
        Ok(format!(
            "{} (hash {})",
            path.display(),
            hash_model(&path)?.short()
        ))
    };
    match look() {
        Ok(message) => Check::new("model", Level::Ok, message),
        Err(error) => Check::new("model", Level::Fail, format!("{error:#}")),
    }
}

fn output(args: &DoctorArgs) -> Check {
    match crate::output::check_writable(&args.output) {
        Ok(()) => Check::new(
            "output",
            Level::Ok,
            format!("{} can be written to", args.output.display()),
        ),
        Err(error) => Check::new("output", Level::Fail, error.to_string()),
    }
}

fn ports() -> Check {
    match std::net::TcpListener::bind(("127.0.0.1", 0)) {
        Ok(_) => Check::new("loopback", Level::Ok, "127.0.0.1 can be listened on"),
        Err(error) => Check::new(
            "loopback",
            Level::Fail,
            format!("127.0.0.1 cannot be listened on ({error}); render needs it for its workers"),
        ),
    }
}

fn gpu() -> Check {
    let missing: Vec<_> = longtake_cuda::libs::survey()
        .into_iter()
        .filter(|(_, present)| !present)
        .map(|(library, _)| format!("{} is missing: {}", library.name, library.hint))
        .collect();
    if !missing.is_empty() {
        let message = format!("--device cuda:0 is not to be had; {}", missing.join("; "));
        return Check::new("gpu", Level::Warn, message);
    }
    match longtake_cuda::CudaBackend::open(longtake_cuda::CudaOptions::default()) {
        Ok(gpu) => {
            let bits = match gpu.options().rows_scaled {
                true => "8-bit models in 8 bits",
                false => "8-bit models expanded to bf16",
            };
            let message = format!(
                "{}, {bits}; rendered on with --device cuda:0",
                gpu.device_name()
            );
            Check::new("gpu", Level::Ok, message)
        }
        Err(error) => Check::new(
            "gpu",
            Level::Warn,
            format!("--device cuda:0 is not to be had; {error}"),
        ),
    }
}
