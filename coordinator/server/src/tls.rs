//! Certificates of the coordinator and of those who dial it.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// Longest handshake; a peer that says nothing must not hold a socket for ever.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The files that make a coordinator speak TLS, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Its certificate, followed by those between it and the authority.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Authorities whose certificates workers and clients must show (mutual TLS).
    pub client_ca: Option<PathBuf>,
}

/// Files that cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One holds no certificate.
    #[error("{} holds no PEM certificate: it should begin with -----BEGIN CERTIFICATE-----", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
    },
    /// One holds no key.
    #[error("{} holds no PEM private key: it should begin with -----BEGIN PRIVATE KEY-----", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// They do not go together, or say something that is not supported.
    #[error("cannot use {} with {}: {reason}", .cert.display(), .key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        reason: String,
    },
    /// The authorities cannot be used.
    #[error("cannot use the authorities in {}: {reason}", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What the two servers of a coordinator take.
pub(crate) struct ServerTls {
    /// For gRPC; asks for client certificates when there are authorities for them.
    pub grpc: ServerTlsConfig,
    /// For the HTTP endpoint; never asks for certificates, since health checks have none.
    pub http: Arc<ServerConfig>,
}

/// Reads the files and checks that they go together.
pub(crate) fn load(files: &TlsFiles) -> Result<ServerTls, TlsError> {
    // Other parts of the program may have brought another provider; the first one serves all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (cert, key) = (read(&files.cert)?, read(&files.key)?);
    let chain = certificates(&files.cert, &cert)?;
    let private = PrivateKeyDer::from_pem_slice(&key).map_err(|_| TlsError::Key {
        path: files.key.clone(),
    })?;
    let http = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| TlsError::Pair {
            cert: files.cert.clone(),
            key: files.key.clone(),
            reason: pair_reason(&error),
        })?;
    let mut grpc = ServerTlsConfig::new()
        .identity(Identity::from_pem(cert, key))
        .timeout(HANDSHAKE_TIMEOUT);
    if let Some(path) = &files.client_ca {
        let authorities = read(path)?;
        check_authorities(path, &authorities)?;
        grpc = grpc.client_ca_root(Certificate::from_pem(authorities));
    }
    Ok(ServerTls {
        grpc,
        http: Arc::new(http),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(TlsError::Certificate {
            path: path.to_owned(),
        }),
    }
}

fn check_authorities(path: &Path, pem: &[u8]) -> Result<(), TlsError> {
    let unusable = |reason: String| TlsError::Authority {
        path: path.to_owned(),
        reason,
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(error.to_string()))?;
    }
    WebPkiClientVerifier::builder(Arc::new(roots))
        .build()
        .map(|_| ())
        .map_err(|error| unusable(error.to_string()))
}

fn pair_reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "the key is not the certificate's: give the two that were made together".to_owned()
        }
        other => other.to_string(),
    }
}
