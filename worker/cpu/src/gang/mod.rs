//! Gangs whose ranks meet in host memory: threads of one process, or processes linked by sockets.
//!
//! [`Gang`] is a [`Collective`](longtake_tensor::Collective) on either, for any backend. What the other ranks send arrives in a
//! [`mailbox`]; how it gets there is the [`Link`]'s business. Start with [`threads`].

mod collective;
mod mailbox;
mod sockets;
mod threads;

pub use collective::Gang;
pub use sockets::{JoinError, Seat, SocketLink, Timing};
pub use threads::{ThreadLink, threads};

use longtake_tensor::Result;
use mailbox::Mailbox;

/// The way from one rank to the others.
pub trait Link: Send + Sync {
    /// This rank.
    fn rank(&self) -> usize;
    /// Ranks of the gang.
    fn ranks(&self) -> usize;
    /// Sends a message to rank `to`; returns before it is read.
    fn send(&self, to: usize, message: Vec<u8>) -> Result<()>;
    /// The next message of rank `from`; waits for it.
    fn receive(&self, from: usize) -> Result<Vec<u8>>;
    /// Tells all ranks, this one included, that it cannot go on.
    fn abort(&self, reason: &str);
}
