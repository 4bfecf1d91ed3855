//! Tokens and what their bearers may do.
//!
//! A token file has a line `ROLE TOKEN` for each token. Only hashes of the tokens are kept, and
//! comparing hashes says nothing about how much of a guess was right.

use blake3::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};

/// Shortest token: 16 characters drawn at random from hexadecimal digits are 64 bits.
const TOKEN_BYTES_MIN: usize = 16;

/// What the bearer of a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Attach as a worker; nothing else.
    Worker,
    /// Everything that users do: submit, cancel, look, fetch.
    User,
    /// Look and fetch.
    Viewer,
}

impl Role {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "worker" => Some(Self::Worker),
            "user" => Some(Self::User),
            "viewer" => Some(Self::Viewer),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::User => "user",
            Self::Viewer => "viewer",
        }
    }

    fn may(self, need: Need) -> bool {
        match need {
            Need::Work => self == Self::Worker,
            Need::Change => self == Self::User,
            Need::Look => self == Self::User || self == Self::Viewer,
        }
    }
}

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// To be a worker.
    Work,
    /// To change what the farm does.
    Change,
    /// To see what it does.
    Look,
}

/// What the method at a path, like `/longtake.v1.Jobs/Submit`, asks. A method that is not named
/// here asks for the most that users have, so that a new one is never open by mistake.
fn need(path: &str) -> Need {
    match path.rsplit('/').next().unwrap_or_default() {
        "Attach" | "Workplace" => Need::Work,
        "Get" | "List" | "Watch" | "Fetch" | "Logs" | "Explain" | "ListWorkers" | "Manifest"
        | "Chunk" | "metrics" => Need::Look,
        _ => Need::Change,
    }
}

/// A token file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the token file {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of it is not understood. The line is not shown, since it may hold a token.
    #[error(
        "{} line {line}: {reason}; a line is 'ROLE TOKEN' with the role worker, user or viewer", .path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// There is no token in it.
    #[error(
        "{} holds no token, so nobody could use the farm; add lines 'ROLE TOKEN' with the role worker, user or viewer", .path.display()
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The tokens that are accepted.
pub struct Tokens {
    entries: Vec<(Role, Hash)>,
}

impl Tokens {
    /// Reads a token file: `ROLE TOKEN` lines, empty lines and comments that begin with `#`.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path).map_err(|source| TokenError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = entry(line).map_err(|reason| TokenError::Line {
                path: path.to_owned(),
                line: index + 1,
                reason,
            })?;
            entries.push(entry);
        }
        if entries.is_empty() {
            return Err(TokenError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(Self { entries })
    }

    /// The role of a token. Looks at every entry, whichever matches.
    fn role(&self, token: &str) -> Option<Role> {
        let hash = blake3::hash(token.as_bytes());
        let mut found = None;
        for (role, known) in &self.entries {
            // Equality of `blake3::Hash` takes the same time wherever the difference is.
            if *known == hash {
                found = Some(*role);
            }
        }
        found
    }

    /// Whether a request to `path` with these headers may pass.
    pub fn check(&self, path: &str, headers: &http::HeaderMap) -> Result<(), Status> {
        let Some(header) = headers.get(http::header::AUTHORIZATION) else {
            return Err(Status::unauthenticated(
                "this coordinator asks for a token: give --token-file FILE or set LONGTAKE_TOKEN_FILE",
            ));
        };
        let token = header.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let Some(role) = token.and_then(|token| self.role(token)) else {
            return Err(Status::unauthenticated(
                "the token is not one of this coordinator's: ask its operator for one that is",
            ));
        };
        let need = need(path);
        if role.may(need) {
            return Ok(());
        }
        let asked = match need {
            Need::Work => "attach workers: that takes a worker's token",
            Need::Change => "change anything: that takes a user's token",
            Need::Look => "see jobs: that takes a user's or a viewer's token",
        };
        let role = role.name();
        Err(Status::permission_denied(format!(
            "a {role}'s token cannot {asked}"
        )))
    }
}

fn entry(line: &str) -> Result<(Role, Hash), String> {
    let mut words = line.split_whitespace();
    let (role, token) = (words.next().unwrap_or_default(), words.next());
    let role = Role::parse(role).ok_or("its first word is no role")?;
    let token = token.ok_or("it has no token")?;
    if words.next().is_some() {
        return Err("it has more than two words".to_owned());
    }
    if token.len() < TOKEN_BYTES_MIN {
        return Err(format!(
            "its token has fewer than {TOKEN_BYTES_MIN} characters and could be guessed; 'openssl rand -hex 32' makes a good one"
        ));
    }
    Ok((role, blake3::hash(token.as_bytes())))
}

/// Lets a request pass to the services behind it, or answers it.
#[derive(Clone)]
pub struct Gate<S> {
    tokens: Option<Arc<Tokens>>,
    inner: S,
}

impl<S> Gate<S> {
    /// A gate before `inner`; without tokens it is open.
    pub fn new(tokens: Option<Arc<Tokens>>, inner: S) -> Self {
        Self { tokens, inner }
    }
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let checked = match &self.tokens {
            Some(tokens) => tokens.check(request.uri().path(), request.headers()),
            None => Ok(()),
        };
        match checked {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: &str = "0123456789abcdef-worker";
    const USER: &str = "0123456789abcdef-user";
    const VIEWER: &str = "0123456789abcdef-viewer";

    fn read(text: &str) -> Result<Tokens, TokenError> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        Tokens::read(file.path())
    }

    fn ask(tokens: &Tokens, method: &str, authorization: Option<&str>) -> Result<(), tonic::Code> {
        let mut headers = http::HeaderMap::new();
        if let Some(text) = authorization {
            headers.insert("authorization", text.parse().expect("a header"));
        }
        let path = format!("/longtake.v1.Any/{method}");
        tokens.check(&path, &headers).map_err(|s| s.code())
    }

    #[test]
    fn each_role_may_do_its_part_only() {
        let text = format!("# farm\n\nworker {WORKER}\n user  {USER} \nviewer {VIEWER}\n");
        let tokens = read(&text).expect("tokens");
        let rows = [
            (WORKER, [true, false, false]),
            (USER, [false, true, true]),
            (VIEWER, [false, false, true]),
        ];
        for (token, allowed) in rows {
            let bearer = format!("Bearer {token}");
            for (method, allowed) in ["Attach", "Submit", "Watch"].into_iter().zip(allowed) {
                let expected = allowed.then_some(()).ok_or(tonic::Code::PermissionDenied);
                assert_eq!(
                    ask(&tokens, method, Some(&bearer)),
                    expected,
                    "{token} {method}"
                );
            }
        }
        // A method that nobody thought of is not open to viewers.
        let viewer = format!("Bearer {VIEWER}");
        let unheard = ask(&tokens, "Unheard", Some(&viewer));
        assert_eq!(unheard, Err(tonic::Code::PermissionDenied));
    }

    #[test]
    fn a_request_without_a_known_token_is_turned_away() {
        let tokens = read(&format!("user {USER}")).expect("tokens");
        let longer = format!("Bearer {USER}x");
        let basic = format!("Basic {USER}");
        for header in [
            None,
            Some(""),
            Some("Bearer "),
            Some(&*longer),
            Some(&*basic),
            Some(USER),
        ] {
            let answer = ask(&tokens, "List", header);
            assert_eq!(answer, Err(tonic::Code::Unauthenticated), "{header:?}");
        }
        assert_eq!(
            ask(&tokens, "List", Some(&format!("bearer {USER}"))),
            Ok(())
        );
    }

    #[test]
    fn a_bad_token_file_is_explained_without_showing_a_token() {
        for (text, part) in [
            ("", "no token"),
            ("# none", "no token"),
            (
                "admin 0123456789abcdef",
                "line 1: its first word is no role",
            ),
            ("user 0123456789abcdef\nworker", "line 2: it has no token"),
            ("user secret", "fewer than 16"),
            ("user 0123456789abcdef x", "more than two words"),
        ] {
            let error = read(text).map(|_| ()).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
            assert!(
                !error.contains("secret") && !error.contains("0123"),
                "{error}"
            );
        }
        let error = Tokens::read(Path::new("/nowhere/tokens")).map(|_| ());
        assert!(
            error
                .expect_err("no file")
                .to_string()
                .contains("/nowhere/tokens")
        );
    }
}
