//! `inspect`: what a file or folder of weights is.

use crate::terminal::print;
use anyhow::{Result, bail};
use longtake_agent::Inspection;
use longtake_common::model::find_model;
use std::fmt::Write;

/// Flags of `inspect`.
#[derive(clap::Args)]
pub struct InspectArgs {
    /// A checkpoint, its index, a LoRA, an upscaler, a text encoder, or a Diffusers folder; a name
    /// under configs/models or a path
    #[arg(value_name = "FILE|DIR")]
    path: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Says what it is; fails when something is missing, after saying what.
pub fn run(args: &InspectArgs) -> Result<()> {
    let found = longtake_agent::inspect(&find_model(&args.path)?)?;
    match args.json {
        true => print(serde_json::to_string(&found)?)?,
        false => print(text(&found))?,
    }
    match found.missing.len() {
        0 => Ok(()),
        1 => bail!("{} is not complete: {}", args.path, found.missing[0]),
        count => bail!("{} is not complete: {count} things are missing", args.path),
    }
}

fn text(found: &Inspection) -> String {
    let gib = |bytes: u64| match bytes >> 30 {
        0 => format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    };
    let mut text = format!("kind         {}", found.kind);
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{name:<12} {value}");
        }
    };
    line("layout", found.layout.map(str::to_owned));
    let family = if found.lora.is_some() {
        "fits"
    } else {
        "family"
    };
    line(family, found.family.clone());
    line("variant", found.variant.map(str::to_owned));
    let types = found
        .types
        .iter()
        .map(|(dtype, bytes)| format!("{dtype} {}", gib(*bytes)));
    line("precision", Some(types.collect::<Vec<_>>().join(", ")));
    let licence = found.licence.clone();
    line(
        "licence",
        Some(licence.unwrap_or_else(|| "not stated in the file".to_owned())),
    );
    if let Some(lora) = &found.lora {
        let reference = match (lora.is_ic, lora.reference_downscale_factor) {
            (false, _) => String::new(),
            (true, None) => ", IC-LoRA by its name".to_owned(),
            (true, Some(factor)) => format!(", IC-LoRA, reference 1/{factor} of the size"),
        };
        let (layers, rank, style) = (lora.layers, lora.rank, lora.style);
        let text = format!("{layers} layers, rank {rank}, names as {style} has them{reference}");
        line("lora", Some(text));
    }
    let memory = &found.memory;
    line(
        "cuda",
        Some(format!(
            "{}, {} in 8 bits",
            gib(memory.cuda_bytes),
            gib(memory.cuda_float8_bytes)
        )),
    );
    line(
        "cpu",
        Some(format!("{}, mapped", gib(memory.cpu_mapped_bytes))),
    );
    for missing in &found.missing {
        line("missing", Some(missing.clone()));
    }
    text
}
