//! Gangs of this machine: a worker that renders each window with several ranks is the first of them;
//! the others are processes of its own, one for each, which can always be killed.
//!
//! A rank's process is told over its standard input what to load and whom to join, and says over its
//! standard output where it is reached. It ends when its input does, that is with the worker. A gang is
//! formed in two steps: every rank has loaded and has a seat, then all join, with a secret that is new
//! each time. Whatever ends a gang, the processes that live stay loaded for the next one.

mod crew;
mod rank;

pub use crew::Crew;
pub use rank::serve_rank;

use longtake_ltx::ModelFiles;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How often a rank's process says that it is there.
const SIGN_OF_LIFE: Duration = Duration::from_millis(400);
/// Silence after which it is taken for lost. Shorter than the ranks' own patience with each other, so
/// that whoever was found lost by them is found here at once.
const SILENCE: Duration = Duration::from_millis(2000);

/// How a worker shares windows among ranks.
#[derive(Clone, Debug)]
pub struct GangSettings {
    /// Most ranks of a window, the worker included; at least 2.
    pub ranks: usize,
    /// What is started for each of the others: a program that calls [`serve_rank`].
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
    /// Load this and take a seat. Orders are numbered: what is answered to one that was given up is
    /// not taken for an answer to the next.
    Load { number: u64, equipment: Equipment },
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
