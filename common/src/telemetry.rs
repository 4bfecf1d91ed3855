//! Logs on standard error, and traces that run through all processes of a farm.
//!
//! A trace begins with a user's command. Every request to the coordinator carries it on as a
//! W3C `traceparent`, and so does every assignment to a worker, so that one trace shows a job from
//! its submission to the mux. Without a collector, spans are only context for log lines.

mod task_log;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

pub use task_log::{TaskLog, TaskLogLayer};

/// Environment variable with a filter, such as `info` or `longtake_server=debug`.
pub const LOG_VARIABLE: &str = "LONGTAKE_LOG";
/// Name of the header, of HTTP and of gRPC, that carries a trace on.
pub const TRACE_HEADER: &str = "traceparent";

/// How long a finished span waits for others before they are sent together.
const EXPORT_DELAY: Duration = Duration::from_millis(200);
/// Longest wait for a collector, also when the program ends.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object in each line.
    Json,
}

/// What is logged and traced.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// What is logged when `LONGTAKE_LOG` is not set: `warn` for commands whose progress is shown
    /// otherwise, `info` for services.
    pub default_filter: &'a str,
    /// How log lines look.
    pub format: LogFormat,
    /// Where spans are sent over OTLP/gRPC, like `http://host:4317`.
    pub otlp: Option<&'a str>,
    /// Name of this process in traces, like `longtake-worker`.
    pub service: &'a str,
}

/// Ends with the program: [`Telemetry::finish`] sends the last spans.
#[derive(Debug)]
#[must_use = "the last spans are sent by `finish`"]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sends what was not sent yet; waits no longer than three seconds for the collector.
    pub fn finish(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown_with_timeout(EXPORT_TIMEOUT)
        {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Begins to log and to trace. Only the first call of a process counts. Call it on the runtime that
/// is to send the spans. What cannot be used is answered with a sentence for the user.
pub fn init(settings: &Settings<'_>) -> Result<Telemetry, String> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            format!("cannot use {LOG_VARIABLE}='{text}' as a log filter: {error}; try 'info'")
        })?,
        Err(_) => EnvFilter::new(settings.default_filter),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // It would complain about a closed standard error on standard error, with a panic.
        .log_internal_errors(false)
        // Colours are for terminals; a log file should stay readable.
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match settings.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let traces = settings
        .otlp
        .map(|url| exporter(url, settings.service))
        .transpose()?;
    let spans = traces.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("longtake"))
            // Spans of libraries are not ours; those of the exporter would export themselves.
            .with_filter(filter_fn(|meta| meta.target().starts_with("longtake")))
    });
    // What a task says is kept with its result, whatever is printed here.
    let tasks = Targets::new().with_target("longtake", LevelFilter::DEBUG);
    // An error means that a subscriber is there already, which is as good.
    let _ = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .with(TaskLogLayer.with_filter(tasks))
        .try_init();
    Ok(Telemetry { traces })
}

fn exporter(url: &str, service: &str) -> Result<SdkTracerProvider, String> {
    let bad = |reason: String| {
        format!("cannot send traces to '{url}': {reason}; give --otlp like http://host:4317")
    };
    if !url.starts_with("http://") {
        return Err(bad("it does not begin with http://".to_owned()));
    }
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(url)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| bad(error.to_string()))?;
    let batches = BatchSpanProcessor::builder(exporter)
        .with_batch_config(
            BatchConfigBuilder::default()
                .with_scheduled_delay(EXPORT_DELAY)
                .build(),
        )
        .build();
    let resource = Resource::builder_empty()
        .with_attributes([
            opentelemetry::KeyValue::new("service.name", service.to_owned()),
            opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            opentelemetry::KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(batches)
        .with_resource(resource)
        .build())
}

/// The trace that `span` belongs to, for others to carry on; `None` when nothing is traced.
pub fn traceparent(span: &Span) -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.remove(TRACE_HEADER)
}

/// Makes `span` go on with the trace of another process. One that cannot be read is left alone.
pub fn continue_trace(span: &Span, traceparent: Option<&str>) {
    let Some(text) = traceparent else { return };
    let carrier = HashMap::from([(TRACE_HEADER.to_owned(), text.to_owned())]);
    let parent = TraceContextPropagator::new().extract(&carrier);
    // Fails only where nothing is traced.
    let _ = span.set_parent(parent);
}
