//! What keeps a coordinator from running.

use crate::store::StateError;
use longtake_common::artifact::ArtifactError;
use longtake_core::RestoreError;
use std::net::SocketAddr;

/// Why a coordinator cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Others could reach it.
    #[error(
        "{listen} can be reached from other machines and nothing is encrypted: give --tls-cert and --tls-key, listen on 127.0.0.1, or give --insecure if the network is trusted"
    )]
    Exposed {
        /// Address asked for.
        listen: SocketAddr,
    },
    /// The port is taken.
    #[error("{listen} is in use by another program: stop it or choose another port")]
    Address {
        /// Address asked for.
        listen: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// Address asked for.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The tokens cannot be used.
    #[error(transparent)]
    Tokens(#[from] crate::auth::TokenError),
    /// The artifact store cannot be used.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The state store cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state store holds something else.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The server broke off.
    #[error("the coordinator stopped serving: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// A mistake in the coordinator.
    #[error(
        "the coordinator stopped by a mistake of its own: {0}; start it again, its state is stored"
    )]
    Panic(String),
}
