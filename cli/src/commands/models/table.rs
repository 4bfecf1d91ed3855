//! Models as people and programs read them.

use crate::size;
use longtake_proto::v1;
use serde_json::{Value, json};

/// Digits of a hash that are shown.
const HASH_DIGITS: usize = 12;

/// As the JSON of `models list` has it.
pub fn json(model: &v1::Model) -> Value {
    let fault = (!model.fault.is_empty()).then_some(&model.fault);
    json!({
        "name": model.name,
        "hash": model.hash,
        "bytes": model.bytes,
        "files": model.files,
        "fault": fault,
        "workers": model.workers,
        "parts": parts(model),
    })
}

/// The models that a set consists of; none of a model.
pub fn parts(model: &v1::Model) -> Vec<Value> {
    let part = |part: &v1::ModelPart| json!({ "role": part.role, "name": part.name, "hash": part.hash, "bytes": part.bytes });
    model.parts.iter().map(part).collect()
}

/// A line for each model.
pub fn text(models: &[v1::Model]) -> String {
    if models.is_empty() {
        return "no models are stored; 'longtake models add PATH' stores one".to_owned();
    }
    let mut text = String::new();
    let of_parts = models.iter().flat_map(|model| &model.parts);
    let part_widths = of_parts.map(|part| part.name.len() + 2);
    let widths = models.iter().map(|model| model.name.len());
    let width = widths.chain(part_widths).max().unwrap_or(0).max(4);
    text += &format!(
        "{:width$}  {:HASH_DIGITS$}  {:>10}  STATE\n",
        "NAME", "HASH", "SIZE"
    );
    for model in models {
        let hash = shortened(&model.hash);
        let state = match (&*model.fault, &model.workers[..]) {
            ("", []) => "stored".to_owned(),
            ("", workers) => format!("stored; at hand on {}", workers.join(", ")),
            (fault, _) => format!("not usable: {fault}"),
        };
        let size = size::shown(model.bytes);
        text += &format!("{:width$}  {hash}  {size:>10}  {state}\n", model.name);
        for part in &model.parts {
            let name = format!("  {}", part.name);
            let (hash, size) = (shortened(&part.hash), size::shown(part.bytes));
            let role = part.role.replace('_', " ");
            text += &format!("{name:width$}  {hash}  {size:>10}  {role}\n");
        }
    }
    text
}

fn shortened(hash: &str) -> String {
    hash.chars().take(HASH_DIGITS).collect()
}
