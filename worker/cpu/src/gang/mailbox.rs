//! What arrives for a rank, and what is known of those who send.

use longtake_tensor::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a waiting rank looks whether the other has been silent for too long.
const LOOK: Duration = Duration::from_millis(50);

/// How long the reading of a connection that broke may take to say why: what came last is still in
/// the system's buffers.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is known of another rank.
enum Peer {
    Here,
    /// It has ended in good order; what it sent before is still good.
    Left,
    /// It will send nothing more, for this reason.
    Lost(String),
}

struct State {
    /// By rank, what it sent and nobody has read.
    messages: Vec<VecDeque<Vec<u8>>>,
    peers: Vec<Peer>,
    /// By rank, when it last gave a sign of life.
    heard: Vec<Instant>,
}

/// The messages for one rank.
pub(super) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
    rank: usize,
    /// Silence after which a rank counts as lost, where ranks give signs of life.
    silence: Option<Duration>,
}

impl Mailbox {
    /// For rank `rank`. The first signs of life may take `patience` longer than those after them.
    pub fn new(rank: usize, ranks: usize, silence: Option<Duration>, patience: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                messages: (0..ranks).map(|_| VecDeque::new()).collect(),
                peers: (0..ranks).map(|_| Peer::Here).collect(),
                heard: vec![Instant::now() + patience; ranks],
            }),
            changed: Condvar::new(),
            rank,
            silence,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before the lock is let go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message of rank `from` in.
    pub fn put(&self, from: usize, message: Vec<u8>) {
        let mut state = self.lock();
        state.messages[from].push_back(message);
        state.heard[from] = Instant::now();
        self.changed.notify_all();
    }

    /// Rank `from` has given a sign of life.
    pub fn heard(&self, from: usize) {
        self.lock().heard[from] = Instant::now();
    }

    /// Rank `from` has ended in good order.
    pub fn leave(&self, from: usize) {
        let mut state = self.lock();
        if matches!(state.peers[from], Peer::Here) {
            state.peers[from] = Peer::Left;
        }
        self.changed.notify_all();
    }

    /// Rank `from` is lost; the first reason stays.
    pub fn lose(&self, from: usize, reason: &str) {
        let mut state = self.lock();
        if matches!(state.peers[from], Peer::Here) {
            state.peers[from] = Peer::Lost(reason.to_owned());
        }
        self.changed.notify_all();
    }

    /// The connection to rank `to` broke under what was sent. Its last words, which are read on
    /// another thread, say why; without any, it is lost for `reason`.
    pub fn broke(&self, to: usize, reason: &str) -> Error {
        let state = self.lock();
        let unexplained = |state: &mut State| {
            matches!(state.peers[to], Peer::Here) && state.check(self.rank).is_ok()
        };
        let waited = self
            .changed
            .wait_timeout_while(state, LAST_WORDS, unexplained)
            .unwrap_or_else(PoisonError::into_inner);
        drop(waited);
        self.lose(to, reason);
        let state = self.lock();
        let has_left = || Error::rank(to, state.peers.len(), "has left the gang");
        state.check(self.rank).err().unwrap_or_else(has_left)
    }

    /// Fails when a rank is lost: nothing can be exchanged any more.
    pub fn check(&self) -> Result<()> {
        self.lock().check(self.rank)
    }

    /// The next message of rank `from`; waits for it.
    pub fn take(&self, from: usize) -> Result<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if let Some(message) = state.messages[from].pop_front() {
                return Ok(message);
            }
            state.check(self.rank)?;
            if matches!(state.peers[from], Peer::Left) {
                let ranks = state.peers.len();
                return Err(Error::rank(from, ranks, "has left the gang"));
            }
            if let Some(silence) = self.silence {
                state.lose_silent(self.rank, silence);
                state.check(self.rank)?;
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// This rank's own reason comes last: who gave up because of another names that one.
    fn check(&self, own: usize) -> Result<()> {
        let ranks = self.peers.len();
        let order = (0..ranks).filter(|&rank| rank != own).chain([own]);
        for rank in order {
            if let Peer::Lost(reason) = &self.peers[rank] {
                return Err(Error::rank(rank, ranks, reason.clone()));
            }
        }
        Ok(())
    }

    fn lose_silent(&mut self, own: usize, silence: Duration) {
        let now = Instant::now();
        for rank in (0..self.peers.len()).filter(|&rank| rank != own) {
            let quiet = now.saturating_duration_since(self.heard[rank]);
            if quiet > silence && matches!(self.peers[rank], Peer::Here) {
                let seconds = quiet.as_secs_f64();
                self.peers[rank] = Peer::Lost(format!(
                    "has given no sign of life for {seconds:.1} s: it hangs, or its network is cut"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_before_leaving_is_still_read() {
        let mailbox = Mailbox::new(0, 2, None, Duration::ZERO);
        mailbox.put(1, vec![7]);
        mailbox.leave(1);
        assert_eq!(mailbox.take(1).expect("the message"), [7]);
        let error = mailbox.take(1).expect_err("it has left").to_string();
        assert_eq!(error, "rank 1 of 2 has left the gang");
    }

    #[test]
    fn a_loss_anywhere_ends_all_waiting() {
        let mailbox = Mailbox::new(0, 3, None, Duration::ZERO);
        mailbox.lose(2, "was killed");
        mailbox.lose(2, "and something else");
        let error = mailbox.take(1).expect_err("rank 2 is lost").to_string();
        assert_eq!(error, "rank 2 of 3 was killed");
    }

    #[test]
    fn last_words_explain_a_broken_connection() {
        let mailbox = Mailbox::new(0, 3, None, Duration::ZERO);
        let error = std::thread::scope(|scope| {
            let broke = scope.spawn(|| mailbox.broke(2, "has gone: broken pipe"));
            std::thread::sleep(Duration::from_millis(20));
            mailbox.lose(2, "gave up: its card is too hot");
            broke.join().expect("no panic").to_string()
        });
        assert_eq!(error, "rank 2 of 3 gave up: its card is too hot");
    }

    #[test]
    fn a_broken_connection_without_last_words_is_loss() {
        let mailbox = Mailbox::new(0, 3, None, Duration::ZERO);
        let error = mailbox.broke(2, "has gone: broken pipe").to_string();
        assert_eq!(error, "rank 2 of 3 has gone: broken pipe");
        let mailbox = Mailbox::new(0, 3, None, Duration::ZERO);
        mailbox.leave(1);
        let error = mailbox.broke(1, "has gone: broken pipe").to_string();
        assert_eq!(error, "rank 1 of 3 has left the gang");
    }

    #[test]
    fn silence_is_loss_where_signs_of_life_are_given() {
        let mailbox = Mailbox::new(1, 2, Some(Duration::from_millis(1)), Duration::ZERO);
        let error = mailbox.take(0).expect_err("silent").to_string();
        assert!(
            error.starts_with("rank 0 of 2 has given no sign of life"),
            "{error}"
        );
    }
}
