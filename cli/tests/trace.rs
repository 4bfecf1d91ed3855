//! One trace from a user's command to the last task, and logs that programs can read.

mod support;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use support::{Guard, SMALL_FILM, Service, json, longtake, wait_for};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Clone, Debug)]
struct Span {
    service: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
}

/// A collector that speaks OTLP over gRPC and keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.spans.lock().expect("no panic");
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
            let name = attributes
                .into_iter()
                .find(|pair| pair.key == "service.name");
            let service = match name.and_then(|pair| pair.value?.value) {
                Some(Value::StringValue(text)) => text,
                other => panic!("a service has a name: {other:?}"),
            };
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                spans.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Runs a collector in the background; returns its address.
fn collect(runtime: &tokio::runtime::Runtime, collector: Collector) -> String {
    let listener = runtime
        .block_on(TcpListener::bind("127.0.0.1:0"))
        .expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector))
        .serve_with_incoming(TcpListenerStream::new(listener));
    runtime.spawn(server);
    url
}

#[test]
fn one_trace_runs_through_client_coordinator_and_workers() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let collector = Collector::default();
    let url = collect(&runtime, collector.clone());
    let farm = Service::coordinator(folder, &["--otlp".to_owned(), url.clone()]);
    let mut worker = longtake(folder);
    worker.args([
        "worker",
        "--threads=1",
        "--coordinator",
        &farm.url,
        "--otlp",
        &url,
    ]);
    let log = std::fs::File::create(folder.join("worker.log")).expect("a log");
    let _worker = Guard(worker.stderr(log).spawn().expect("a worker"));
    let mut submit = longtake(folder);
    submit.arg("submit").args(&SMALL_FILM[1..]);
    submit.args([
        "--wait",
        "--json",
        "--coordinator",
        &farm.url,
        "--otlp",
        &url,
    ]);
    json(&submit.output().expect("runs"));

    // They come in batches. In the end nothing hangs in the air: every span's parent is there.
    let spans = wait_for(
        "the spans of the mux and the command, with all parents",
        || {
            let spans = collector.spans.lock().expect("no panic").clone();
            let ended = |name| spans.iter().any(|span: &Span| span.name == name);
            let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
            let known = |span: &Span| span.parent.is_empty() || ids.contains(&span.parent);
            let whole = spans.iter().all(known);
            (ended("mux") && ended("command") && whole).then_some(spans)
        },
    );
    let root = spans
        .iter()
        .find(|span| span.name == "command")
        .expect("the root");
    assert!(root.parent.is_empty(), "{root:?}");
    let ours: Vec<_> = spans
        .iter()
        .filter(|span| span.trace == root.trace)
        .collect();
    let mut services: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for span in &ours {
        services
            .entry(&span.service)
            .or_default()
            .insert(&span.name);
    }
    let expected: [(&str, &[&str]); 3] = [
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
    for (service, names) in expected {
        for name in names {
            let found = services
                .get(service)
                .is_some_and(|spans| spans.contains(name));
            assert!(found, "{service} {name} in {services:?}");
        }
    }
    let tasks = spans
        .iter()
        .filter(|span| span.service == "longtake-worker");
    assert_eq!(tasks.filter(|span| span.trace != root.trace).count(), 0);
}

#[test]
fn a_collector_that_is_away_does_not_hold_up_a_command() {
    let temporary = tempfile::tempdir().expect("a folder");
    let farm = Service::coordinator(temporary.path(), &[]);
    let started = std::time::Instant::now();
    let mut list = longtake(temporary.path());
    list.args([
        "list",
        "--json",
        "--coordinator",
        &farm.url,
        "--otlp",
        "http://127.0.0.1:9",
    ]);
    json(&list.output().expect("runs"));
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    let mut list = longtake(temporary.path());
    let out = list
        .args(["list", "--otlp", "collector"])
        .output()
        .expect("runs");
    assert!(
        support::stderr(&out).contains("http://host:4317"),
        "{}",
        support::stderr(&out)
    );
}

#[test]
fn logs_are_json_objects_on_demand() {
    let temporary = tempfile::tempdir().expect("a folder");
    let flags = ["--log-format".to_owned(), "json".to_owned()];
    let farm = Service::coordinator(temporary.path(), &flags);
    let line = wait_for("a log line", || {
        let lines = farm.log.lock().expect("no panic");
        lines.iter().find(|line| line.starts_with('{')).cloned()
    });
    let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(object["level"], "INFO");
    assert_eq!(object["fields"]["message"], "coordinator started");
    assert!(
        object["fields"]["addr"]
            .as_str()
            .is_some_and(|a| a.starts_with("127.0.0.1:"))
    );
}
