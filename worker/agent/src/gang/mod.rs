//! The ranks that this worker is of a gang: the first is this process, the others are processes of its
//! own, one for each, which can always be killed.
//!
//! A rank's process is told over its standard input what to load and whom to join, and says over its
//! standard output where it is reached. It ends when its input does, that is with the worker. A gang is
//! formed in two steps: every rank has loaded and has a seat, then all join, with a secret that is new
//! each time. Where all ranks are this worker's, it does that by itself; a gang of several workers
//! meets through the coordinator ([`line`](crate::control)). Whatever ends a gang, the processes that
//! live stay loaded for the next one.

mod crew;
mod guard;
mod rank;

pub use crew::{Crew, GangError};
pub use guard::Guard;
pub use rank::serve_rank;

use longtake_ltx::ModelFiles;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How often a rank's process says that it is there.
const SIGN_OF_LIFE: Duration = Duration::from_millis(400);
/// Silence after which it is taken for lost. Shorter than the ranks' own patience with each other, so
/// that whoever was found lost by them is found here at once.
const SILENCE: Duration = Duration::from_millis(2000);
/// How long a rank's process may take to let go of a gang that has ended, before it is killed.
const LETTING_GO: Duration = Duration::from_secs(1);

/// How a worker shares windows among ranks.
#[derive(Clone, Debug)]
pub struct GangSettings {
    /// Most ranks that it can be, itself included; at least 1.
    pub ranks: usize,
    /// Where other workers' ranks reach them: an address of this machine.
    pub address: IpAddr,
    /// What is started for each but the first: a program that calls [`serve_rank`].
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// What ranks compute with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Equipment {
    /// The model.
    pub files: ModelFiles,
    /// The latent upscaler, where one is needed.
    pub upscaler: Option<PathBuf>,
}

/// What a rank's process is told.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Load this and take a seat at that address. Orders are numbered: what is answered to one that was
    /// given up is not taken for an answer to the next.
    Load {
        number: u64,
        equipment: Equipment,
        address: IpAddr,
    },
    /// Join the ranks at these addresses as rank so-and-so, and follow the first.
    Join {
        rank: usize,
        addresses: Vec<SocketAddr>,
        secret: u64,
    },
}

/// What a rank's process says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Word {
    /// It lives.
    Here,
    /// It has loaded, and is reached there.
    Seat { number: u64, address: SocketAddr },
    /// It cannot, for this reason.
    Failed { number: u64, reason: String },
    /// The gang has ended, for this reason.
    Ended(String),
}
