//! Checkpoints of the true layout without their values: sparse files, from the committed manifests.

use super::golden;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A tensor of a true checkpoint.
#[derive(Clone)]
pub struct Row {
    pub official: String,
    /// `None`: diffusers drops it.
    pub diffusers: Option<String>,
    pub shape: Vec<usize>,
}

/// Metadata `config`, if there is one, and the tensors of manifest `name`.
pub fn manifest(name: &str) -> (Option<String>, Vec<Row>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/manifests");
    let text = std::fs::read_to_string(folder.join(name)).expect("manifest");
    let config = text.lines().find_map(|line| line.strip_prefix('#'));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let rows = lines.flat_map(|line| {
        let count = line
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'));
        let count = count.map(|(count, _)| count.to_owned());
        let copies: usize = count
            .as_deref()
            .map_or(1, |count| count.parse().expect("count"));
        (0..copies).map(move |i| {
            let line = match &count {
                Some(count) => line.replace(&format!("{{{count}}}"), &i.to_string()),
                None => line.to_owned(),
            };
            row(&line)
        })
    });
    (config.map(str::to_owned), rows.collect())
}

fn row(line: &str) -> Row {
    let fields: Vec<&str> = line.split(' ').collect();
    let [official, diffusers, shape, "BF16"] = fields.as_slice() else {
        panic!("{line}");
    };
    let shape = match *shape {
        "scalar" => Vec::new(),
        shape => shape
            .split('x')
            .map(|size| size.parse().expect("size"))
            .collect(),
    };
    Row {
        official: (*official).to_owned(),
        diffusers: (*diffusers != "-").then(|| (*diffusers).to_owned()),
        shape,
    }
}

/// Writes a file of that layout, bf16, whose values are a hole: zeros that take no room.
pub fn write_sparse(path: &Path, config: Option<&str>, rows: &[Row]) -> PathBuf {
    let mut header = Map::new();
    if let Some(config) = config {
        header.insert("__metadata__".into(), json!({ "config": config }));
    }
    let mut end = 0u64;
    for row in rows {
        let start = end;
        end += 2 * row.shape.iter().product::<usize>() as u64;
        let entry = json!({ "dtype": "BF16", "shape": row.shape, "data_offsets": [start, end] });
        header.insert(row.official.clone(), entry);
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(8 - text.len() % 8));
    let mut file = File::create(path).expect("file");
    file.write_all(&(text.len() as u64).to_le_bytes())
        .expect("write");
    file.write_all(text.as_bytes()).expect("write");
    file.set_len(8 + text.len() as u64 + end)
        .expect("a sparse file");
    path.to_owned()
}

/// A folder with checkpoint `name` and a T5-XXL beside it.
pub fn official_folder(folder: &Path, name: &str) {
    let (config, rows) = manifest(&format!("{name}.txt"));
    write_sparse(
        &folder.join(format!("{name}.safetensors")),
        config.as_deref(),
        &rows,
    );
    let (_, t5) = manifest("t5-v1_1-xxl-encoder.txt");
    write_sparse(&folder.join("t5xxl_bf16.safetensors"), None, &t5);
    let tokenizer = golden("model").join("tokenizer/spiece.model");
    std::fs::copy(tokenizer, folder.join("spiece.model")).expect("tokenizer");
}
