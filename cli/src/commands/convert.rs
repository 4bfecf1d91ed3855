//! `convert`: a model in another form.

use crate::terminal::{print, remark};
use anyhow::Result;
use clap::ValueEnum;
use longtake_agent::ModelFiles;
use longtake_common::model::find_model;
use std::path::PathBuf;

/// Flags of `convert`.
#[derive(clap::Args)]
pub struct ConvertArgs {
    /// An official checkpoint, its index, or a Diffusers folder; a name under configs/models or a
    /// path
    #[arg(value_name = "FILE|DIR")]
    model: String,
    /// The Diffusers folder to write; must not be there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Text encoder of a checkpoint that has none: the file or the folder of T5-XXL
    #[arg(long, value_name = "PATH")]
    text_encoder: Option<String>,
    /// How the large matrices of the transformer are written [default: as they are]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArg>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Precision on the command line, named as in pipeline files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PrecisionArg {
    /// 8-bit floats with a scale for each row
    #[value(name = "float8_e4m3fn")]
    Float8,
}

/// Writes the folder.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let text_encoder = args.text_encoder.as_deref().map(find_model).transpose()?;
    let files = ModelFiles {
        text_encoder,
        quantises: args.precision == Some(PrecisionArg::Float8),
        ..ModelFiles::from(&find_model(&args.model)?)
    };
    longtake_agent::convert(&files, &args.output, |path| {
        remark(format_args!("writing {}", path.display()));
    })?;
    let output = args.output.display().to_string();
    match args.json {
        true => print(serde_json::json!({ "output": output })),
        false => print(output),
    }
}
