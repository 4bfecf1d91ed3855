//! A real collector of traces for the tests: rotel, which speaks OTLP and prints what it is sent.
//! `cargo xtask test` installs it.

use crate::services::{Process, free_address, log, tool, wait_for};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the collector writes its spans to, in the folder of the test.
const PRINTED: &str = "spans.txt";

/// One span as the collector printed it. Ids are in hexadecimal digits.
#[derive(Clone, Debug)]
pub struct Span {
    /// Who sent it: the resource's `service.name`.
    pub service: String,
    /// What it is.
    pub name: String,
    /// Equal for all spans of one story.
    pub trace: String,
    /// This span.
    pub id: String,
    /// The span that it is a part of; empty at a trace's root.
    pub parent: String,
}

/// A collector on loopback.
pub struct Collector {
    _process: Process,
    address: SocketAddr,
    printed: PathBuf,
}

impl Collector {
    /// Starts one that keeps its files in `folder`.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start(folder: &Path) -> Self {
        let (address, http) = (free_address(), free_address());
        let mut command = Command::new(tool("tools/rotel/packages/rotel/rotel-agent"));
        command
            .args(["start", "--exporter", "blackhole"])
            .args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &address.to_string()])
            .args(["--otlp-http-endpoint", &http.to_string()])
            .arg("--pid-file")
            .arg(folder.join("collector.pid"))
            .stdout(log(folder, PRINTED))
            .stderr(log(folder, "collector.log"));
        let mut process = Process::start(&mut command, "run `cargo xtask test`, which installs it");
        wait_for("the collector", &mut process, || {
            TcpStream::connect(address).is_ok()
        });
        Self {
            _process: process,
            address,
            printed: folder.join(PRINTED),
        }
    }

    /// Where spans are sent.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans that it has received so far.
    ///
    /// # Panics
    /// When its output cannot be read.
    pub fn spans(&self) -> Vec<Span> {
        parse(&fs::read_to_string(&self.printed).expect("the collector's output"))
    }
}

/// Reads what a collector prints of spans. Each begins with its trace and has its name at last; one
/// whose name has not been written to its end is left out.
fn parse(text: &str) -> Vec<Span> {
    let (mut spans, mut service) = (Vec::new(), String::new());
    let [mut trace, mut parent, mut id] = [const { String::new() }; 3];
    let lines = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    for line in lines {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim().to_owned();
        match key.trim() {
            "-> service.name" => {
                service = value
                    .trim_start_matches("Str(")
                    .trim_end_matches(')')
                    .into();
            }
            "Trace ID" => trace = value,
            "Parent ID" => parent = value,
            "ID" => id = value,
            "Name" => spans.push(Span {
                service: service.clone(),
                name: value,
                trace: trace.clone(),
                id: id.clone(),
                parent: parent.clone(),
            }),
            _ => {}
        }
    }
    spans
}
