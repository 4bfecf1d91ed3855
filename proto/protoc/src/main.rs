//! As much of `protoc` as build scripts ask for: `.proto` files to a set of descriptors, by `protox`.
//!
//!     -o FILE [-I FOLDER]... [--include_imports] [--include_source_info] FILE.proto...

use anyhow::{Context, Result, bail};
use protox::Compiler;
use std::path::PathBuf;

#[derive(Default)]
struct Request {
    output: Option<PathBuf>,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    imports: bool,
    source_info: bool,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Request> {
    let mut request = Request::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "-o" => request.output = Some(value()?.into()),
            "-I" => request.folders.push(value()?.into()),
            "--include_imports" => request.imports = true,
            "--include_source_info" => request.source_info = true,
            file if !file.starts_with('-') => request.files.push(file.into()),
            other => bail!("no flag {other} here: set PROTOC to a real protoc"),
        }
    }
    Ok(request)
}

fn main() -> Result<()> {
    let request = parse(std::env::args().skip(1))?;
    let output = request.output.context("-o FILE is missing")?;
    let set = Compiler::new(request.folders)?
        .include_imports(request.imports)
        .include_source_info(request.source_info)
        .open_files(request.files)?
        .encode_file_descriptor_set();
    std::fs::write(&output, set).with_context(|| format!("write {}", output.display()))
}
