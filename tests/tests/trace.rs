//! One trace from a user's command to the last task, as a real collector received it.

use longtake_tests::collector::{Collector, Span};
use longtake_tests::local::{PROMPT, product, start, wait_for};
use longtake_tests::product::last_json;
use longtake_tests::services::free_address;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

/// Five windows of 64x64.
const FILM: &[&str] = &[
    "--size=64x64",
    "--frames=120",
    "--segment-frames=33",
    "--overlap-frames=9",
];

/// What each process has to have told.
const EXPECTED: [(&str, &[&str]); 3] = [
    ("longtake", &["command"]),
    ("longtake-coordinator", &["submit", "plan", "assign"]),
    (
        "longtake-worker",
        &[
            "text",
            "denoise/0",
            "denoise/4",
            "decode/4",
            "seam/3",
            "mux",
            "get",
            "put",
            "put_file",
        ],
    ),
];

/// The program with its models, whose spans go to `collector`.
fn traced(folder: &Path, collector: &Collector) -> Command {
    let mut command = product(folder);
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    command
        .env("LONGTAKE_HOME", home)
        .env("LONGTAKE_OTLP", collector.url());
    command
}

#[test]
fn one_trace_runs_through_client_coordinator_and_workers() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path();
    for name in ["empty", "home"] {
        std::fs::create_dir(folder.join(name)).expect("a folder");
    }
    let collector = Collector::start(folder);
    let address = free_address();
    let url = format!("http://{address}");
    let mut command = traced(folder, &collector);
    command.args(["coordinator", "--listen", &address.to_string()]);
    let _coordinator = start(folder, "coordinator", &mut command);
    wait_for("the coordinator", || TcpStream::connect(address).ok());
    let mut command = traced(folder, &collector);
    command.args(["worker", "--threads=1", "--coordinator", &url]);
    let _worker = start(folder, "worker", &mut command);
    let mut submit = traced(folder, &collector);
    submit.args(["submit", PROMPT, "--wait", "--json", "--coordinator", &url]);
    let out = submit.args(FILM).output().expect("longtake runs");
    let job: serde_json::Value = last_json(&out).unwrap_or_else(|story| panic!("{story}"));
    assert!(job["job"].is_string(), "{job}");

    let spans = wait_for("the whole trace", || {
        let spans = collector.spans();
        is_whole(&spans).then_some(spans)
    });
    let root = spans
        .iter()
        .find(|span| span.name == "command")
        .expect("the root");
    assert!(root.parent.is_empty(), "{root:?}");
    let mut services: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.trace == root.trace) {
        let names = services.entry(&span.service).or_default();
        names.insert(&span.name);
    }
    for (service, names) in EXPECTED {
        for name in names {
            let found = services
                .get(service)
                .is_some_and(|spans| spans.contains(name));
            assert!(found, "{service} {name} in {services:?}");
        }
    }
    let mut tasks = spans
        .iter()
        .filter(|span| span.service == "longtake-worker");
    assert!(
        tasks.all(|span| span.trace == root.trace),
        "one trace: {spans:?}"
    );
}

/// Spans come in batches. In the end the last ones are there, and nothing hangs in the air: every
/// span's parent is there, too.
fn is_whole(spans: &[Span]) -> bool {
    let ended = |name| spans.iter().any(|span| span.name == name);
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
    let known = |span: &Span| span.parent.is_empty() || ids.contains(&span.parent);
    ended("mux") && ended("command") && spans.iter().all(known)
}
