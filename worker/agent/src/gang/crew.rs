//! The processes of a worker's other ranks.

use super::{Equipment, GangSettings, Order, SILENCE, Word};
use crate::host;
use longtake_cpu::gang::{Gang, Seat, SocketLink, Timing};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How often a gang is tried to form: each time with new processes for those that were lost.
const TRIES: usize = 3;

/// Why no gang could be formed.
#[derive(Debug, thiserror::Error)]
pub enum GangError {
    /// A rank's process could not be started.
    #[error("rank {rank} cannot be started: {source}")]
    Start {
        /// Which.
        rank: usize,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A rank cannot load what it needs.
    #[error("rank {rank} cannot take part: {reason}")]
    Unable {
        /// Which.
        rank: usize,
        /// In its words.
        reason: String,
    },
    /// A rank's process has ended or hangs.
    #[error("rank {rank} was lost while the gang formed: {what}")]
    Lost {
        /// Which.
        rank: usize,
        /// What happened to it.
        what: &'static str,
    },
    /// The ranks could not be linked.
    #[error("the ranks cannot be linked")]
    Join(#[from] longtake_tensor::Error),
}

/// The other ranks' processes, kept from one gang to the next. Dropping it kills them.
pub struct Crew {
    settings: GangSettings,
    /// Of ranks 1 and up.
    members: Vec<Member>,
    /// Gangs that were tried to form.
    formed: u64,
}

impl Crew {
    /// Nobody is started yet.
    pub fn new(settings: GangSettings) -> Self {
        Self {
            settings,
            members: Vec::new(),
            formed: 0,
        }
    }

    /// The most ranks, the leading one included.
    pub fn ranks_max(&self) -> usize {
        self.settings.ranks
    }

    /// Forms a gang of `ranks` ranks, of which this process is the first: starts the processes that are
    /// missing, has all of them load `equipment` and take a seat, and then join.
    ///
    /// # Errors
    /// When that fails for a reason that new processes do not mend.
    pub fn form(
        &mut self,
        ranks: usize,
        equipment: &Equipment,
    ) -> Result<Gang<SocketLink>, GangError> {
        let mut tries = 1;
        loop {
            match self.try_to_form(ranks, equipment) {
                Err(error @ (GangError::Lost { .. } | GangError::Join(_))) if tries < TRIES => {
                    tracing::warn!("{error}; trying again with another process");
                    self.replace(&error);
                    tries += 1;
                }
                formed => return formed,
            }
        }
    }

    fn try_to_form(
        &mut self,
        ranks: usize,
        equipment: &Equipment,
    ) -> Result<Gang<SocketLink>, GangError> {
        self.members.truncate(ranks.saturating_sub(1));
        for rank in self.members.len() + 1..ranks {
            let member = Member::start(&self.settings);
            self.members
                .push(member.map_err(|source| GangError::Start { rank, source })?);
        }
        self.formed += 1;
        let number = self.formed;
        // All load at the same time.
        for (i, member) in self.members.iter_mut().enumerate() {
            let equipment = equipment.clone();
            member.tell(i + 1, &Order::Load { number, equipment })?;
        }
        let own = Seat::on_loopback().map_err(|source| GangError::Start { rank: 0, source })?;
        let mut addresses = vec![own.address()];
        for (i, member) in self.members.iter_mut().enumerate() {
            addresses.push(member.seat(i + 1, number)?);
        }
        let secret = RandomState::new().build_hasher().finish();
        for (i, member) in self.members.iter_mut().enumerate() {
            let join = Order::Join {
                rank: i + 1,
                addresses: addresses.clone(),
                secret,
            };
            member.tell(i + 1, &join)?;
        }
        Ok(own.join(0, &addresses, secret, Timing::default())?)
    }

    /// Makes room for another process in the place of the one that `error` names. A process that was
    /// killed may count as living for a while yet, and would be lost again at once.
    fn replace(&mut self, error: &GangError) {
        let rank = match error {
            GangError::Lost { rank, .. }
            | GangError::Join(longtake_tensor::Error::Rank { rank, .. }) => *rank,
            _ => 0,
        };
        if (1..=self.members.len()).contains(&rank) {
            self.members.remove(rank - 1);
        }
        self.bury();
    }

    /// Kills the processes that hang and forgets those that have ended; says whether there were any.
    pub fn bury(&mut self) -> bool {
        let before = self.members.len();
        self.members.retain_mut(Member::is_well);
        self.members.len() < before
    }

    /// The sum of the processes' largest resident memory, in bytes.
    pub fn peak_rss_bytes(&self) -> u64 {
        let peaks = self.members.iter().map(|m| m.child.id());
        peaks.map(host::peak_rss_bytes_of).sum()
    }
}

/// One process.
struct Member {
    child: Child,
    orders: ChildStdin,
    words: mpsc::Receiver<Word>,
    heard: Arc<Mutex<Instant>>,
}

impl Member {
    fn start(settings: &GangSettings) -> io::Result<Self> {
        let mut child = Command::new(&settings.program)
            .args(&settings.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A terminal's Ctrl-C is for the worker, which may want to finish first.
            .process_group(0)
            .spawn()?;
        let missing = || io::Error::other("its pipes are missing");
        let orders = child.stdin.take().ok_or_else(missing)?;
        let out = child.stdout.take().ok_or_else(missing)?;
        let (sender, words) = mpsc::channel();
        let heard = Arc::new(Mutex::new(Instant::now()));
        let clock = heard.clone();
        let read = move || {
            for line in BufReader::new(out).lines() {
                let word = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                *clock.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                let told = match word {
                    Some(Word::Here) => true,
                    Some(word) => sender.send(word).is_ok(),
                    None => false,
                };
                if !told {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("rank-words".to_owned())
            .spawn(read)?;
        Ok(Self {
            child,
            orders,
            words,
            heard,
        })
    }

    fn tell(&mut self, rank: usize, order: &Order) -> Result<(), GangError> {
        let line = serde_json::to_string(order).expect("orders can be written");
        let told = writeln!(self.orders, "{line}").and_then(|()| self.orders.flush());
        told.map_err(|_| GangError::Lost {
            rank,
            what: "its process has ended",
        })
    }

    /// Where it is reached, once it has loaded what order `number` says.
    fn seat(&mut self, rank: usize, number: u64) -> Result<SocketAddr, GangError> {
        loop {
            let what = match self.words.recv_timeout(SILENCE) {
                Ok(Word::Seat { number: n, address }) if n == number => return Ok(address),
                Ok(Word::Failed { number: n, reason }) if n == number => {
                    return Err(GangError::Unable { rank, reason });
                }
                // Of a gang before.
                Ok(_) => continue,
                Err(RecvTimeoutError::Timeout) if self.is_heard() => continue,
                Err(RecvTimeoutError::Timeout) => "its process hangs",
                Err(RecvTimeoutError::Disconnected) => "its process has ended",
            };
            return Err(GangError::Lost { rank, what });
        }
    }

    fn is_heard(&self) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.elapsed() < SILENCE
    }

    /// Whether its process lives and does not hang.
    fn is_well(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None)) && self.is_heard()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
