//! Logs on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Environment variable with a filter, such as `info` or `longtake_server=debug`.
pub const LOG_VARIABLE: &str = "LONGTAKE_LOG";

/// Sends logs to standard error: what `LONGTAKE_LOG` says, else `default` (`warn` for commands
/// whose progress is shown otherwise, `info` for services). Only the first call of a process counts.
/// A filter that cannot be read is answered with a sentence for the user.
pub fn init(default: &str) -> Result<(), String> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| {
            format!("cannot use {LOG_VARIABLE}='{text}' as a log filter: {error}; try 'info'")
        })?,
        Err(_) => EnvFilter::new(default),
    };
    // An error means that a subscriber is there already, which is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would complain about a closed standard error on standard error, with a panic.
        .log_internal_errors(false)
        // Colours are for terminals; a log file should stay readable.
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    Ok(())
}
