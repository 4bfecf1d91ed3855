//! Flags of every subcommand about logs and traces.

use longtake_common::telemetry::LogFormat;

/// Logs and traces.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TelemetryArgs {
    /// How log lines on stderr look: text or json
    #[arg(long, global = true, value_name = "FORMAT", env = "LONGTAKE_LOG_FORMAT", hide_env_values = true, value_parser = log_format)]
    log_format: Option<LogFormat>,
    /// Send traces to an OpenTelemetry collector (OTLP over gRPC), like http://host:4317
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "LONGTAKE_OTLP",
        hide_env_values = true
    )]
    otlp: Option<String>,
}

impl TelemetryArgs {
    /// How log lines look.
    pub fn log_format(&self) -> LogFormat {
        self.log_format.unwrap_or_default()
    }

    /// Where traces go, if anywhere; an empty variable names nothing.
    pub fn otlp(&self) -> Option<&str> {
        self.otlp.as_deref().filter(|url| !url.is_empty())
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" | "" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("logs are written as text or json".to_owned()),
    }
}
