//! Flags by which a worker or a user's command and the coordinator know each other.

use longtake_agent::Dial;
use std::path::PathBuf;

/// TLS and token.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AccessArgs {
    /// Authorities that the coordinator's certificate must come from, PEM [default: the system's]
    #[arg(
        long,
        value_name = "FILE",
        env = "LONGTAKE_TLS_CA",
        hide_env_values = true
    )]
    tls_ca: Option<PathBuf>,
    /// Own certificate, for a coordinator that asks for one, PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "LONGTAKE_TLS_CERT",
        hide_env_values = true
    )]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, PEM
    #[arg(
        long,
        value_name = "FILE",
        env = "LONGTAKE_TLS_KEY",
        hide_env_values = true
    )]
    tls_key: Option<PathBuf>,
    /// File with the token that the coordinator asks for: the token alone, or ROLE TOKEN lines
    #[arg(
        long,
        value_name = "FILE",
        env = "LONGTAKE_TOKEN_FILE",
        hide_env_values = true
    )]
    token_file: Option<PathBuf>,
}

impl AccessArgs {
    /// The coordinator at `url`, dialled with these.
    pub fn dial(&self, url: &str) -> Dial {
        Dial {
            url: url.to_owned(),
            ca: self.tls_ca.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            token_file: self.token_file.clone(),
        }
    }
}
