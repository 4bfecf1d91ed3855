//! Ranks that are threads of one process.

use super::{Gang, Link, Mailbox};
use longtake_tensor::Result;
use std::sync::Arc;
use std::time::Duration;

/// A rank among threads. Dropping it leaves the gang.
pub struct ThreadLink {
    rank: usize,
    mailboxes: Arc<Vec<Mailbox>>,
}

/// A gang of `ranks` threads: one end for each, in the order of the ranks.
pub fn threads(ranks: usize) -> Vec<Gang<ThreadLink>> {
    let mailbox = |rank| Mailbox::new(rank, ranks, None, Duration::ZERO);
    let mailboxes: Arc<Vec<_>> = Arc::new((0..ranks).map(mailbox).collect());
    let link = |rank| {
        Gang::new(ThreadLink {
            rank,
            mailboxes: mailboxes.clone(),
        })
    };
    (0..ranks).map(link).collect()
}

impl Link for ThreadLink {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.mailboxes.len()
    }

    fn send(&self, to: usize, message: Vec<u8>) -> Result<()> {
        self.mailboxes[self.rank].check()?;
        self.mailboxes[to].put(self.rank, message);
        Ok(())
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>> {
        self.mailboxes[self.rank].take(from)
    }

    fn abort(&self, reason: &str) {
        for mailbox in self.mailboxes.iter() {
            mailbox.lose(self.rank, &format!("gave up: {reason}"));
        }
    }
}

impl Drop for ThreadLink {
    fn drop(&mut self) {
        for mailbox in self.mailboxes.iter() {
            mailbox.leave(self.rank);
        }
    }
}
