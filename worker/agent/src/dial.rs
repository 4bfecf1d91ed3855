//! How a coordinator is reached: its address, TLS, the token; and what it means when it is not.

use crate::tls::{self, Files};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Longest wait for a connection.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Where a coordinator is and what it asks of us. All files are PEM but the token's.
#[derive(Clone, Debug, Default)]
pub struct Dial {
    /// Its address, like `http://host:7341` or `https://host:7341`.
    pub url: String,
    /// Authorities that its certificate must come from; the system's when there are none.
    pub ca: Option<PathBuf>,
    /// Our certificate, for coordinators that ask for one.
    pub cert: Option<PathBuf>,
    /// The private key of `cert`.
    pub key: Option<PathBuf>,
    /// A file with our token: the token alone, or `ROLE TOKEN` lines.
    pub token_file: Option<PathBuf>,
}

/// A coordinator that cannot be reached, or does not want us.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address cannot be used.
    #[error(
        "'{url}' is not a coordinator's address: {reason}; give one like http://host:7341, or https:// where it has a certificate"
    )]
    Address {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Flags that do not go together.
    #[error("{0}")]
    Flags(String),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token file has no token for us.
    #[error("{} holds no token for a {role}: put the token there alone, or on a line '{role} TOKEN'", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What we are.
        role: &'static str,
    },
    /// Certificate or key cannot be used.
    #[error("cannot use the certificates for {url}: {reason}")]
    Certificates {
        /// The coordinator.
        url: String,
        /// Why.
        reason: String,
    },
    /// No answer; there may be one later.
    #[error("no coordinator answers at {url}: {reason}")]
    Unreachable {
        /// The coordinator.
        url: String,
        /// Why.
        reason: String,
    },
    /// An answer that will be the same next time.
    #[error("cannot connect to the coordinator at {url}: {reason}")]
    Barred {
        /// The coordinator.
        url: String,
        /// Why, and the way out.
        reason: String,
    },
}

/// A channel that shows our token and carries the trace on.
pub type Link = InterceptedService<Channel, Credentials>;

/// Adds to every request who we are and which trace it belongs to.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        let trace = longtake_common::telemetry::traceparent(&tracing::Span::current());
        if let Some(value) = trace.and_then(|trace| trace.parse().ok()) {
            request.metadata_mut().insert("traceparent", value);
        }
        Ok(request)
    }
}

/// A coordinator, ready to be dialled.
#[derive(Clone, Debug)]
pub struct Dialler {
    url: String,
    endpoint: Endpoint,
    credentials: Credentials,
    /// For finding out what is wrong, with TLS.
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Dial {
    /// A coordinator that takes anyone, without TLS.
    pub fn plain(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ..Self::default()
        }
    }

    /// Checks the address and reads the files; makes no connection. `role` says which line of a
    /// token file with several is ours: `worker` or `user`.
    pub fn prepare(&self, role: &'static str) -> Result<Dialler, DialError> {
        let mut endpoint = self.endpoint()?;
        let mut tls = None;
        if self.url.starts_with("https://") {
            let files = Files::read(self)?;
            tls = Some(files.probe(&self.url)?);
            endpoint =
                endpoint
                    .tls_config(files.config())
                    .map_err(|error| DialError::Certificates {
                        url: self.url.clone(),
                        reason: crate::error::story(&error),
                    })?;
        } else if self.ca.is_some() || self.cert.is_some() {
            return Err(DialError::Flags(format!(
                "certificates are given, but {} is not encrypted: write https:// if the coordinator has a certificate, or leave out the --tls flags",
                self.url
            )));
        }
        Ok(Dialler {
            url: self.url.clone(),
            endpoint: endpoint.connect_timeout(CONNECT_DEADLINE).tcp_nodelay(true),
            credentials: self.credentials(role)?,
            tls,
        })
    }

    fn endpoint(&self) -> Result<Endpoint, DialError> {
        let bad = |reason| DialError::Address {
            url: self.url.clone(),
            reason,
        };
        if !self.url.starts_with("http://") && !self.url.starts_with("https://") {
            return Err(bad("it does not begin with http:// or https://"));
        }
        let endpoint =
            Endpoint::from_shared(self.url.clone()).map_err(|_| bad("it is not a URL"))?;
        if endpoint.uri().port().is_none() {
            return Err(bad("it has no port"));
        }
        Ok(endpoint)
    }

    fn credentials(&self, role: &'static str) -> Result<Credentials, DialError> {
        let Some(path) = &self.token_file else {
            return Ok(Credentials::default());
        };
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        let missing = || DialError::Token {
            path: path.clone(),
            role,
        };
        let token = own_token(&text, role).ok_or_else(missing)?;
        let value = format!("Bearer {token}").parse().map_err(|_| missing())?;
        Ok(Credentials {
            authorization: Some(value),
        })
    }
}

/// The token for `role`: on its own line, or alone in the file. A user's commands also make do with
/// a viewer's token; the coordinator says what that cannot do.
fn own_token<'a>(text: &'a str, role: &str) -> Option<&'a str> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<Vec<&str>> = lines
        .map(|line| line.split_whitespace().collect())
        .collect();
    let of = |wanted: &str| {
        lines.iter().find_map(|line| match line[..] {
            [named, token] if named == wanted => Some(token),
            _ => None,
        })
    };
    let alone = match &lines[..] {
        [line] if line.len() == 1 => Some(line[0]),
        _ => None,
    };
    let viewer = || (role == "user").then(|| of("viewer")).flatten();
    alone.or_else(|| of(role)).or_else(viewer)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DialError> {
    std::fs::read(path).map_err(|source| DialError::Read {
        path: path.to_owned(),
        source,
    })
}

impl Dialler {
    /// Probes idle connections this often, and gives them up when a probe is not answered as long.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.endpoint = self
            .endpoint
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(interval)
            .keep_alive_while_idle(true);
        self
    }

    /// The address, as it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connects. A coordinator may still turn the first request away: see [`Dialler::explain`].
    pub async fn connect(&self) -> Result<Link, DialError> {
        match self.endpoint.connect().await {
            Ok(channel) => Ok(InterceptedService::new(channel, self.credentials.clone())),
            Err(error) => Err(self.failure(&error)),
        }
    }

    fn failure(&self, error: &(dyn Error + 'static)) -> DialError {
        let url = self.url.clone();
        match tls::cause(error).map(|cause| tls::reason(cause, &url)) {
            Some(reason) => DialError::Barred { url, reason },
            None => DialError::Unreachable {
                url,
                reason: innermost(error).to_string(),
            },
        }
    }

    /// What is the matter when a request was not even heard, or was turned away for want of a
    /// token, and trying again is of no use. May block for half a second to find out.
    pub fn explain(&self, status: &Status) -> Option<DialError> {
        let barred = |reason: String| {
            Some(DialError::Barred {
                url: self.url.clone(),
                reason,
            })
        };
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => barred(status.message().to_owned()),
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled => {
                if let Some(cause) = tls::cause(status) {
                    return barred(tls::reason(cause, &self.url));
                }
                // Only a broken connection has a cause; other failures come from the other side.
                status.source()?;
                let uri = self.endpoint.uri();
                let (host, port) = (uri.host()?, uri.port_u16()?);
                match &self.tls {
                    Some(config) => tls::refusal(host, port, config)
                        .and_then(|cause| barred(tls::reason(&cause, &self.url))),
                    None if tls::answers(host, port) => {
                        barred("it speaks TLS: write https:// and give --tls-ca".to_owned())
                    }
                    None => None,
                }
            }
            _ => None,
        }
    }
}

/// Whether a connection broke, and not the other side refused: one that is killed in the middle of an
/// answer leaves an error of the transport behind, which may have any of several codes.
pub fn has_broken(status: &Status) -> bool {
    let may_be = matches!(
        status.code(),
        Code::Unknown | Code::Internal | Code::Cancelled
    );
    status.code() == Code::Unavailable || (may_be && status.source().is_some())
}

/// The cause at the bottom, which names what happened; the layers above only say "transport error".
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a dyn Error {
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_dialled() {
        for good in ["http://127.0.0.1:7341", "https://farm.example:7341"] {
            Dial::plain(good).prepare("user").expect(good);
        }
        for bad in [
            "",
            "127.0.0.1:7341",
            "http://",
            "http://host",
            "ftp://host:1",
            "http://a b:1",
        ] {
            let error = Dial::plain(bad).prepare("user").expect_err(bad).to_string();
            assert!(error.contains("http://host:7341"), "{error}");
        }
    }

    #[test]
    fn certificates_without_tls_are_a_mistake() {
        let dial = Dial {
            ca: Some("ca.pem".into()),
            ..Dial::plain("http://127.0.0.1:1")
        };
        let error = dial.prepare("user").expect_err("refused").to_string();
        assert!(error.contains("https://"), "{error}");
    }

    #[test]
    fn a_token_file_may_hold_one_token_or_one_for_each_role() {
        let file = "# keys\nworker w-token\n\nuser u-token\nviewer v-token\n";
        for (text, role, token) in [
            ("secret\n", "worker", Some("secret")),
            (" secret ", "user", Some("secret")),
            (file, "worker", Some("w-token")),
            (file, "user", Some("u-token")),
            ("viewer v-token", "user", Some("v-token")),
            ("viewer v-token", "worker", None),
            ("", "user", None),
            ("a\nb", "user", None),
        ] {
            assert_eq!(own_token(text, role), token, "{text:?} {role}");
        }
    }
}
