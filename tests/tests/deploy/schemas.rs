//! Every file of `deploy/` against the schema of whoever reads it. Schemas come from packages:
//! Kubernetes' from kubernetes-validate, the compose specification's from check-jsonschema, KEDA's
//! and Grafana's from the types that they publish, made into schemas when they are installed. What
//! no package has (LeaderWorkerSet, kustomize, Grafana's provisioning) is in `tests/schemas`.
//! Prometheus' files are read by promtool; see `prometheus`.

use crate::files::{deploy, repository, strings, text, yaml};
use longtake_tests::services::tool;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Version of Kubernetes whose schemas are taken.
const KUBERNETES: &str = "1.34";

/// Who knows whether a document has the right form.
enum Reader {
    Compose,
    Kubernetes,
    /// A schema that was made when the tools were installed, or one of ours.
    Schema(PathBuf),
}

/// Where files lie that `cargo xtask install` has made.
fn made(name: &str) -> PathBuf {
    tool(&format!("tools/schemas/{name}"))
}

fn ours(name: &str) -> Reader {
    Reader::Schema(repository().join("tests/schemas").join(name))
}

impl Reader {
    /// Has it read a document.
    fn read(&self, document: &Value) -> Output {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("document.json");
        fs::write(&file, document.to_string()).expect("written");
        let check = made("bin/check-jsonschema");
        let mut command = match self {
            Self::Compose => {
                let mut command = Command::new(check);
                command.args(["--builtin-schema", "vendor.compose-spec"]);
                command
            }
            Self::Kubernetes => {
                let mut command = Command::new(made("bin/kubernetes-validate"));
                command.args(["--strict", "--kubernetes-version", KUBERNETES]);
                command
            }
            Self::Schema(schema) => {
                let mut command = Command::new(check);
                command.arg("--schemafile").arg(schema);
                command
            }
        };
        let out = command.arg(&file).output();
        out.unwrap_or_else(|error| panic!("{command:?}: {error}: run `cargo xtask install`"))
    }

    /// Whether it finds nothing wrong, and what it says.
    fn agrees(&self, document: &Value) -> (bool, String) {
        let out = self.read(document);
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        // It passes over what it has no schema for.
        (out.status.success() && !said.contains("find schema"), said)
    }
}

/// Documents of a file, each with whoever reads it.
fn documents(file: &str) -> Vec<(Reader, Value)> {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    match folder {
        "" if file == "compose.yaml" => vec![(Reader::Compose, yaml(file).remove(0))],
        "kubernetes" => yaml(file).into_iter().flat_map(kubernetes).collect(),
        "grafana/dashboards" => {
            let dashboard = serde_json::from_str(&text(file)).expect("JSON");
            vec![(Reader::Schema(made("grafana.json")), dashboard)]
        }
        "grafana/provisioning/datasources" => {
            vec![(ours("grafana-datasources.json"), yaml(file).remove(0))]
        }
        "grafana/provisioning/dashboards" => {
            vec![(ours("grafana-providers.json"), yaml(file).remove(0))]
        }
        // By promtool.
        "prometheus" => Vec::new(),
        _ => panic!("nobody reads {file}"),
    }
}

fn kubernetes(document: Value) -> Vec<(Reader, Value)> {
    match document["kind"].as_str().expect("a kind") {
        "Deployment" | "Service" => vec![(Reader::Kubernetes, document)],
        "ScaledObject" => vec![(Reader::Schema(made("keda.json")), document)],
        "Kustomization" => vec![(ours("kustomization.json"), document)],
        "LeaderWorkerSet" => {
            let template = &document["spec"]["leaderWorkerTemplate"]["workerTemplate"];
            let pods = json!({
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": "workers"},
                "template": template,
            });
            vec![
                (Reader::Kubernetes, pods),
                (ours("leaderworkerset.json"), document),
            ]
        }
        other => panic!("nobody reads a {other}"),
    }
}

/// Every file below `folder` that has a form, relative to `deploy/`.
fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_dir() {
            files(&path, found);
        } else if matches!(ending, Some("yaml" | "yml" | "json")) {
            let relative = path.strip_prefix(deploy("")).expect("below deploy");
            found.push(relative.to_str().expect("UTF-8").to_owned());
        }
    }
}

/// Adds a letter to the key at the end of `path`.
fn misspell(value: &mut Value, path: &[&str]) {
    let (last, parents) = path.split_last().expect("a key");
    let mut object = value;
    for key in parents {
        object = match key.parse::<usize>() {
            Ok(index) => &mut object[index],
            Err(_) => &mut object[*key],
        };
    }
    let object = object.as_object_mut().expect("an object");
    let content = object.remove(*last);
    let content = content.unwrap_or_else(|| panic!("no {path:?}"));
    object.insert(format!("{last}s"), content);
}

#[test]
fn every_file_has_the_form_that_its_reader_expects() {
    let mut found = Vec::new();
    files(&deploy(""), &mut found);
    assert!(found.len() >= 10, "{found:?}");
    for file in &found {
        for (reader, document) in documents(file) {
            let (agrees, said) = reader.agrees(&document);
            assert!(agrees, "{file}: {said}");
        }
    }
    let listed = &yaml("kubernetes/kustomization.yaml")[0]["resources"];
    for resource in strings(listed) {
        let resource = deploy("kubernetes").join(resource);
        assert!(resource.is_file(), "{}", resource.display());
    }
    // The types are those of the image.
    let compose = &yaml("compose.yaml")[0]["services"];
    let package = made("node_modules/@grafana/schema/package.json");
    let package = fs::read_to_string(package).expect("Grafana's types");
    let package: Value = serde_json::from_str(&package).expect("JSON");
    let version = package["version"].as_str().expect("a version");
    assert_eq!(
        compose["grafana"]["image"],
        format!("grafana/grafana:{version}")
    );
}

#[test]
fn every_reader_notices_a_misspelt_word() {
    let container = ["spec", "template", "spec", "containers", "0", "args"];
    let pod = ["template", "spec", "containers", "0", "args"];
    let cases: &[(&str, usize, &[&str])] = &[
        ("compose.yaml", 0, &["services", "worker", "depends_on"]),
        ("kubernetes/coordinator.yaml", 0, &container),
        ("kubernetes/workers.yaml", 0, &pod),
        (
            "kubernetes/workers.yaml",
            1,
            &["spec", "leaderWorkerTemplate", "size"],
        ),
        ("kubernetes/scaling.yaml", 0, &["spec", "cooldownPeriod"]),
        ("kubernetes/kustomization.yaml", 0, &["namespace"]),
        (
            "grafana/dashboards/longtake.json",
            0,
            &["panels", "0", "gridPos"],
        ),
        (
            "grafana/provisioning/datasources/prometheus.yaml",
            0,
            &["datasources", "0", "url"],
        ),
        (
            "grafana/provisioning/dashboards/longtake.yaml",
            0,
            &["providers", "0", "options"],
        ),
    ];
    for (file, index, path) in cases {
        let (reader, mut document) = documents(file).remove(*index);
        misspell(&mut document, path);
        let (agrees, _) = reader.agrees(&document);
        assert!(!agrees, "{file}: {path:?} may be misspelt");
    }
}
