//! What `deploy/` says is what the program does: the files are whole, their flags exist, and the
//! farm of the compose file renders, as plain processes on loopback.

use longtake_tests::product;
use longtake_tests::services::{Etcd, Process, S3, free_address};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn text(path: impl AsRef<Path>) -> String {
    let path = deploy().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file.
fn yaml(path: &str) -> Vec<Value> {
    use serde::Deserialize;
    let text = text(path);
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap_or_else(|e| panic!("{path}: {e}")))
        .collect()
}

/// Every YAML file below `folder`, relative to `deploy/`.
fn yaml_files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            let relative = path.strip_prefix(deploy()).expect("below deploy");
            found.push(relative.to_str().expect("UTF-8").to_owned());
        }
    }
}

#[track_caller]
fn required(document: &Value, name: &str, pointers: &[&str]) {
    for pointer in pointers {
        let there = document
            .pointer(pointer)
            .is_some_and(|value| !value.is_null());
        assert!(there, "{name} has no {pointer}");
    }
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().expect("a list");
    list.iter()
        .map(|word| word.as_str().expect("text").to_owned())
        .collect()
}

/// Flags that a subcommand knows.
fn known_flags(subcommand: &str) -> BTreeSet<String> {
    let out = product::longtake()
        .args([subcommand, "--help"])
        .output()
        .expect("runs");
    assert!(out.status.success(), "{subcommand} is no subcommand");
    let help = String::from_utf8_lossy(&out.stdout).into_owned();
    help.split_whitespace()
        .filter(|word| word.starts_with("--"))
        .map(|word| {
            word.trim_end_matches(|c: char| !c.is_alphanumeric())
                .to_owned()
        })
        .collect()
}

#[track_caller]
fn flags_exist(command: &[String]) {
    let (subcommand, flags) = command.split_first().expect("a subcommand");
    let known = known_flags(subcommand);
    for flag in flags {
        let name = flag.split('=').next().unwrap_or_default();
        assert!(known.contains(name), "{subcommand} does not know {flag}");
    }
}

/// Names of the farm's figures in some text.
fn figures(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|name| name.starts_with("longtake_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_yaml_file_is_whole() {
    let mut files = Vec::new();
    yaml_files(&deploy(), &mut files);
    assert!(files.len() >= 9, "{files:?}");
    for file in &files {
        assert!(!yaml(file).is_empty(), "{file} is empty");
    }
    for file in ["coordinator", "workers", "scaling"] {
        for document in yaml(&format!("kubernetes/{file}.yaml")) {
            kubernetes_object(&document);
        }
    }
    let listed = &yaml("kubernetes/kustomization.yaml")[0]["resources"];
    for resource in strings(listed) {
        assert!(
            deploy().join("kubernetes").join(&resource).is_file(),
            "{resource}"
        );
    }
}

fn kubernetes_object(document: &Value) {
    let name = document["kind"].as_str().expect("a kind");
    required(document, name, &["/apiVersion", "/metadata/name"]);
    let pod = match name {
        "Deployment" => {
            required(document, name, &["/spec/replicas"]);
            let (selector, labels) = (
                "/spec/selector/matchLabels",
                "/spec/template/metadata/labels",
            );
            assert_eq!(document.pointer(selector), document.pointer(labels));
            "/spec/template/spec"
        }
        "LeaderWorkerSet" => {
            required(
                document,
                name,
                &["/spec/replicas", "/spec/leaderWorkerTemplate/size"],
            );
            "/spec/leaderWorkerTemplate/workerTemplate/spec"
        }
        "Service" => {
            return required(
                document,
                name,
                &["/spec/selector/app", "/spec/ports/0/port"],
            );
        }
        "ScaledObject" => {
            required(
                document,
                name,
                &["/spec/scaleTargetRef/kind", "/spec/triggers/0/type"],
            );
            let workers = &yaml("kubernetes/workers.yaml")[0];
            let target = &document["spec"]["scaleTargetRef"];
            assert_eq!(target["name"], workers["metadata"]["name"]);
            assert_eq!(target["kind"], workers["kind"]);
            assert_eq!(target["apiVersion"], workers["apiVersion"]);
            let trigger = &document["spec"]["triggers"][0]["metadata"];
            let threshold = trigger["threshold"].as_str().map(str::parse::<f64>);
            assert!(
                matches!(threshold, Some(Ok(seconds)) if seconds > 0.0),
                "{trigger}"
            );
            return required(trigger, name, &["/serverAddress", "/query"]);
        }
        other => panic!("nobody checks {other}"),
    };
    let pod = document.pointer(pod).expect("a pod");
    let container = &pod["containers"][0];
    required(
        container,
        name,
        &["/name", "/image", "/resources/limits/memory"],
    );
    flags_exist(&strings(&container["args"]));
    for mount in container["volumeMounts"].as_array().expect("mounts") {
        let volumes = pod["volumes"].as_array().expect("volumes");
        let there = volumes.iter().any(|volume| volume["name"] == mount["name"]);
        assert!(there, "{name} has no volume for {mount}");
    }
}

#[test]
fn units_of_systemd_use_flags_that_exist() {
    for unit in ["longtake-coordinator.service", "longtake-worker@.service"] {
        let joined = text(Path::new("systemd").join(unit)).replace("\\\n", " ");
        for section in ["[Unit]", "[Service]", "[Install]"] {
            assert!(
                joined.lines().any(|line| line == section),
                "{unit}: {section}"
            );
        }
        let start = joined
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        let words: Vec<_> = start
            .expect("ExecStart")
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        assert!(words[0].ends_with("/longtake"), "{words:?}");
        flags_exist(&words[1..]);
    }
}

#[test]
fn dashboard_and_alerts_say_what_they_show() {
    let dashboard: Value =
        serde_json::from_str(&text("grafana/dashboards/longtake.json")).expect("JSON");
    let sources = &yaml("grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"];
    for panel in dashboard["panels"].as_array().expect("panels") {
        required(panel, "panel", &["/title", "/gridPos/w", "/targets/0/expr"]);
        assert_eq!(panel["datasource"]["uid"], sources[0]["uid"]);
    }
    let config = &yaml("prometheus/prometheus.yml")[0];
    for file in strings(&config["rule_files"]) {
        assert!(deploy().join("prometheus").join(&file).is_file(), "{file}");
    }
    let rules = &yaml("prometheus/alerts.yml")[0]["groups"][0]["rules"];
    for rule in rules.as_array().expect("rules") {
        required(
            rule,
            "alert",
            &[
                "/alert",
                "/expr",
                "/labels/severity",
                "/annotations/summary",
            ],
        );
    }
}

/// The compose farm with its names, ports and folders replaced by ones of this machine.
struct Substitutes(Vec<(String, String)>);

impl Substitutes {
    fn command(&self, service: &Value) -> Command {
        let mut command = product::longtake();
        for word in strings(&service["command"]) {
            let mut word = word;
            for (from, to) in &self.0 {
                word = word.replace(from, to);
            }
            command.arg(word);
        }
        command
    }
}

/// Reads lines of a process until one begins with `begin`; goes on reading in the background.
fn line_of(process: &mut std::process::Child, begin: &'static str) -> String {
    let stderr = process.stderr.take().expect("stderr");
    let (sender, line) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
            if line.starts_with(begin) {
                let _ = sender.send(line);
            }
        }
    });
    line.recv_timeout(PATIENCE)
        .unwrap_or_else(|_| panic!("no line '{begin}'"))
}

/// A process that is killed when the test ends.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A page over TLS, with the program that made the certificates.
fn page(address: &str, folder: &Path, token: &str) -> String {
    let mut client = Command::new("openssl")
        .args([
            "s_client",
            "-quiet",
            "-verify_return_error",
            "-connect",
            address,
            "-CAfile",
        ])
        .arg(folder.join("ca.pem"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is there, it made the certificates");
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: farm\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let mut stdin = client.stdin.take().expect("stdin");
    stdin.write_all(request.as_bytes()).expect("sent");
    let out = client.wait_with_output().expect("answered");
    drop(stdin);
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn the_farm_of_the_compose_file_renders() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path();
    let secrets = folder.join("secrets");
    let made = Command::new("sh")
        .arg(deploy().join("certs.sh"))
        .arg(&secrets)
        .output();
    let made = made.expect("sh runs");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );

    let (etcd, s3) = (Etcd::start(folder), S3::start(folder));
    let compose = &yaml("compose.yaml")[0];
    let services = &compose["services"];
    for (name, service) in services.as_object().expect("services") {
        assert!(service["image"].is_string(), "{name} has no image");
    }
    let secrets_text = secrets.to_str().expect("UTF-8").to_owned();
    let (grpc, http) = (free_address(), free_address());
    let substitutes = Substitutes(vec![
        ("/secrets".to_owned(), secrets_text),
        ("0.0.0.0:7341".to_owned(), grpc.to_string()),
        ("0.0.0.0:7342".to_owned(), http.to_string()),
        (
            "coordinator:7341".to_owned(),
            format!("localhost:{}", grpc.port()),
        ),
        ("etcd://etcd:2379".to_owned(), etcd.url()),
        ("s3://longtake/farm".to_owned(), s3.url()),
    ]);
    flags_exist(&strings(&services["coordinator"]["command"]));
    flags_exist(&strings(&services["worker"]["command"]));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let start = |name: &str| {
        let mut command = substitutes.command(&services[name]);
        command
            .envs(s3.environment())
            .env("LONGTAKE_HOME", &root)
            .current_dir(folder);
        command
    };
    let mut coordinator = start("coordinator");
    let mut coordinator = Guard(coordinator.stderr(Stdio::piped()).spawn().expect("starts"));
    line_of(&mut coordinator.0, "metrics at https://");
    let _workers = [1, 2].map(|_| {
        let mut worker = start("worker");
        let log = fs::File::create(folder.join("worker.log")).expect("a log");
        Process::start(worker.stderr(log), "build the program first")
    });

    let url = format!("https://localhost:{}", grpc.port());
    let mut submit = product::longtake();
    submit.args([
        "submit",
        "a red circle moves to the right on a blue background",
    ]);
    submit.args([
        "--size=64x64",
        "--frames=60",
        "--segment-frames=33",
        "--overlap-frames=9",
    ]);
    submit.args(["--wait", "--json", "-o", "film.mp4", "--coordinator", &url]);
    for (flag, file) in [
        ("--tls-ca", "ca.pem"),
        ("--tls-cert", "client.pem"),
        ("--tls-key", "client.key"),
        ("--token-file", "user.token"),
    ] {
        submit.arg(flag).arg(secrets.join(file));
    }
    let started = Instant::now();
    let out = submit
        .env("LONGTAKE_HOME", &root)
        .current_dir(folder)
        .output()
        .expect("runs");
    let job: Value = product::last_json(&out).unwrap_or_else(|story| panic!("{story}"));
    assert!(job["job"].is_string() && started.elapsed() < PATIENCE);
    assert!(
        fs::metadata(folder.join("film.mp4"))
            .expect("the film")
            .len()
            > 1000
    );

    // Prometheus gets in with its token, and finds whatever dashboard, alerts and scaling ask for.
    let token = fs::read_to_string(secrets.join("viewer.token")).expect("a token");
    let shown = page(&format!("localhost:{}", http.port()), &secrets, &token);
    assert!(shown.starts_with("HTTP/1.1 200"), "{shown}");
    assert!(shown.contains("longtake_workers 2\n"), "{shown}");
    let there = figures(&shown);
    for file in [
        "grafana/dashboards/longtake.json",
        "prometheus/alerts.yml",
        "kubernetes/scaling.yaml",
    ] {
        let asked = figures(&text(file));
        assert!(!asked.is_empty(), "{file}");
        assert!(
            asked.is_subset(&there),
            "{file}: {:?}",
            asked.difference(&there)
        );
    }
    // Whoever reads the page finds every figure explained.
    let explained = fs::read_to_string(root.join("docs/operations.md")).expect("the page");
    assert_eq!(figures(&explained), there);
    drop(coordinator);
}
