//! What is shown beside the API, and the sizes that are not let in.

mod support;

use longtake_server::{Access, Config, Coordinator};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

fn with_http(folder: &std::path::Path) -> Config {
    Config {
        access: Access {
            http: Some("127.0.0.1:0".parse().expect("address")),
            ..Access::default()
        },
        ..config(folder)
    }
}

/// Status line and body of a page.
async fn get(url: &str, path: &str, headers: &str) -> (String, String) {
    let address: SocketAddr = url
        .strip_prefix("http://")
        .and_then(|address| address.parse().ok())
        .expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("answered");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.lines().next().expect("a status").to_owned();
    (status, body.to_owned())
}

/// The figures of `/metrics` by name and label.
async fn figures(url: &str) -> BTreeMap<String, f64> {
    let (status, body) = get(url, "/metrics", "").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    body.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// Asks until `enough`.
async fn figures_when(
    url: &str,
    enough: impl Fn(&BTreeMap<String, f64>) -> bool,
) -> BTreeMap<String, f64> {
    let wait = async {
        loop {
            let now = figures(url).await;
            if enough(&now) {
                return now;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("in time")
}

#[tokio::test]
async fn figures_follow_a_job_and_a_lost_worker() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = Coordinator::start(with_http(folder.path()))
        .await
        .expect("start");
    let url = handle.http_url().expect("HTTP");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(&url, path, "").await.0, "HTTP/1.1 200 OK", "{path}");
    }
    assert_eq!(get(&url, "/else", "").await.0, "HTTP/1.1 404 Not Found");
    let idle = figures(&url).await;
    assert_eq!(idle["longtake_backlog_device_seconds"], 0.0);
    assert_eq!(idle["longtake_queue_depth{lane=\"device\"}"], 0.0);

    let mut user = user(&handle).await;
    let job = submit(&mut user, &spec()).await.job;
    let queued = figures(&url).await;
    assert_eq!(queued["longtake_jobs{state=\"queued\"}"], 1.0);
    assert_eq!(queued["longtake_windows{state=\"waiting\"}"], 3.0);
    assert_eq!(queued["longtake_queue_depth{lane=\"device\"}"], 1.0);
    assert!(
        queued["longtake_backlog_device_seconds"] > 0.0,
        "work for workers that are not there"
    );

    // One worker takes a task to its grave.
    let mut first = Worker::new(&handle, "first").await;
    first.assignment().await;
    let busy = figures(&url).await;
    assert_eq!(busy["longtake_workers"], 1.0);
    assert_eq!(busy["longtake_tasks_running{lane=\"device\"}"], 1.0);
    // A silent worker is lost when its lease is over.
    let lost = |now: &BTreeMap<String, f64>| now["longtake_workers_lost_total"] == 1.0;
    let after = figures_when(&url, lost).await;
    assert_eq!(after["longtake_workers"], 0.0);

    let mut second = Worker::new(&handle, "second").await;
    let working = tokio::spawn(async move { second.work().await });
    watch_until(&mut user, &job, |job| job.progress == 1.0).await;
    working.await.expect("the worker ends");
    let done = figures_when(&url, |now| now["longtake_jobs{state=\"done\"}"] == 1.0).await;
    assert_eq!(done["longtake_backlog_device_seconds"], 0.0);
    // Text, three windows twice, two seams, mux: a quarter of a second each.
    assert_eq!(done["longtake_phase_seconds_total{phase=\"encode\"}"], 2.5);
    assert_eq!(done["longtake_results_total"], 10.0);
    assert_eq!(done["longtake_assignments_total"], 11.0);
    assert!(done["longtake_artifact_bytes"] >= 0.0);
}

#[tokio::test]
async fn figures_are_for_those_who_may_look() {
    let folder = tempfile::tempdir().expect("folder");
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, "viewer 0123456789abcdef\nworker fedcba9876543210").expect("written");
    let mut config = with_http(folder.path());
    config.access.token_file = Some(tokens);
    let handle = Coordinator::start(config).await.expect("start");
    let url = handle.http_url().expect("HTTP");
    let rows = [
        ("", "401"),
        ("Authorization: Bearer nobody\r\n", "401"),
        ("Authorization: Bearer fedcba9876543210\r\n", "403"),
        ("Authorization: Bearer 0123456789abcdef\r\n", "200"),
    ];
    for (header, code) in rows {
        let (status, _) = get(&url, "/metrics", header).await;
        assert!(status.contains(code), "{header}: {status}");
    }
    // Whoever keeps the process alive has no token.
    assert!(get(&url, "/readyz", "").await.0.contains("200"));
}

#[tokio::test]
async fn requests_of_any_size_are_not_read() {
    let folder = tempfile::tempdir().expect("folder");
    let handle = start(folder.path()).await.expect("start");
    let mut user = user(&handle).await;
    let mut large = spec();
    large.prompt = "a".repeat(longtake_server::MESSAGE_BYTES_MAX);
    let spec = Some(longtake_server::convert::spec_to_proto(&large));
    let request = longtake_proto::v1::SubmitRequest {
        spec,
        isa: None,
        ranks: None,
    };
    let status = user.submit(request).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let mut request = tonic::Request::new(longtake_proto::v1::ListRequest {});
    let header = "a".repeat(64 << 10).parse().expect("a value");
    request.metadata_mut().insert("authorization", header);
    user.list(request).await.expect_err("headers too large");
    assert!(user.list(longtake_proto::v1::ListRequest {}).await.is_ok());
}
