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
    })
}

/// A line for each model.
pub fn text(models: &[v1::Model]) -> String {
    if models.is_empty() {
        return "no models are stored; 'longtake models add PATH' stores one".to_owned();
    }
    let mut text = String::new();
    let width = models
        .iter()
        .map(|model| model.name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    text += &format!(
        "{:width$}  {:HASH_DIGITS$}  {:>10}  STATE\n",
        "NAME", "HASH", "SIZE"
    );
    for model in models {
        let hash: String = model.hash.chars().take(HASH_DIGITS).collect();
        let state = match (&*model.fault, &model.workers[..]) {
            ("", []) => "stored".to_owned(),
            ("", workers) => format!("stored; at hand on {}", workers.join(", ")),
            (fault, _) => format!("not usable: {fault}"),
        };
        let size = size::shown(model.bytes);
        text += &format!("{:width$}  {hash}  {size:>10}  {state}\n", model.name);
    }
    text
}
