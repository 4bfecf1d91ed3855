//! The processes of a worker's other ranks.

use super::{Equipment, GangSettings, LETTING_GO, Order, SILENCE, Word};
use crate::control::{Control, GangOrder, GangWord};
use crate::host;
use longtake_common::task::Share;
use longtake_cpu::gang::{Gang, JoinError, Seat, SocketLink, Timing};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    /// No place at the address for ranks.
    #[error("ranks cannot be reached at {address}: {source}; see --gang-address")]
    Seat {
        /// The address.
        address: IpAddr,
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
    Join(#[from] JoinError),
    /// The task was taken back meanwhile.
    #[error("the task was taken back while its gang formed")]
    Recalled,
    /// The coordinator does not bring the gang together any more.
    #[error("the gang was given up while it formed: {0}")]
    Broken(&'static str),
}

impl GangError {
    /// Whether new processes may mend it.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Join(_) | Self::Broken(_))
    }

    /// The rank that could not be reached, if that is what happened.
    pub fn unreached(&self) -> Option<usize> {
        match self {
            Self::Join(JoinError::Late { rank, .. }) => Some(*rank),
            _ => None,
        }
    }
}

/// The other ranks' processes, kept from one gang to the next. Dropping it kills them.
pub struct Crew {
    settings: GangSettings,
    /// Of this worker's second rank and those after it.
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

    /// Forms a gang of `ranks` ranks, all of them this worker's and the first this process: starts the
    /// processes that are missing, has all of them load `equipment` and take a seat, and then join.
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
                Err(error) if error.is_loss() && tries < TRIES => {
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
        let (own, seats) = self.take_seats(ranks, equipment, Ipv4Addr::LOCALHOST.into())?;
        self.join(own, 0..ranks, &seats, new_secret(), &|| true)
    }

    /// Takes this worker's `share` of a gang of several workers, which meet through the coordinator.
    ///
    /// # Errors
    /// Whatever happens to the others: the coordinator has all begin anew.
    pub fn take_part(
        &mut self,
        share: Share,
        equipment: &Equipment,
        control: &Control,
    ) -> Result<Gang<SocketLink>, GangError> {
        let taken = self.try_to_take_part(share, equipment, control);
        if let Err(error) = &taken {
            // Those that live let go of what did not come to be.
            self.settle();
            tracing::warn!("no part in a gang of {} ranks: {error}", share.ranks);
        }
        taken
    }

    fn try_to_take_part(
        &mut self,
        share: Share,
        equipment: &Equipment,
        control: &Control,
    ) -> Result<Gang<SocketLink>, GangError> {
        let (address, mut tries) = (self.settings.address, 1);
        let own_ranks = share.own as usize;
        let (own, seats) = loop {
            match self.take_seats(own_ranks, equipment, address) {
                Err(error) if error.is_loss() && tries < TRIES => {
                    tracing::warn!("{error}; trying again with another process");
                    self.replace(&error);
                    tries += 1;
                }
                taken => break taken?,
            }
        };
        let seated = Instant::now();
        let key = match share.follows() {
            true => Vec::new(),
            false => new_secret().to_le_bytes().to_vec(),
        };
        control.say(GangWord::Seated { seats, key });
        let GangOrder::Roster { seats, key } = await_order(control)? else {
            return Err(GangError::Broken("it was told to go before it was called"));
        };
        let (Ok(secret), true) = (key.try_into(), seats.len() == share.ranks as usize) else {
            return Err(GangError::Broken("it was called to another gang"));
        };
        let secret = u64::from_le_bytes(secret);
        let goes_on = || !control.is_cancelled();
        let first = share.first as usize;
        let gang = self.join(own, first..first + own_ranks, &seats, secret, &goes_on)?;
        control.say(GangWord::Joined);
        if !share.follows() {
            let GangOrder::Go = await_order(control)? else {
                return Err(GangError::Broken("it was called twice"));
            };
            let ranks = share.ranks;
            let seconds = seated.elapsed().as_secs_f64();
            tracing::info!(
                "a gang of {ranks} ranks stands {seconds:.3} s after our own had loaded"
            );
        }
        Ok(gang)
    }

    /// Has `own` ranks of this worker load `equipment` and take seats at `address`. Returns the first
    /// one's, which is this process's, and where all are reached.
    fn take_seats(
        &mut self,
        own: usize,
        equipment: &Equipment,
        address: IpAddr,
    ) -> Result<(Seat, Vec<SocketAddr>), GangError> {
        for rank in self.members.len() + 1..own {
            let member = Member::start(&self.settings);
            self.members
                .push(member.map_err(|source| GangError::Start { rank, source })?);
        }
        self.formed += 1;
        let number = self.formed;
        // All load at the same time.
        for (i, member) in self.members.iter_mut().enumerate().take(own - 1) {
            let equipment = equipment.clone();
            let load = Order::Load {
                number,
                equipment,
                address,
            };
            member.tell(i + 1, &load)?;
        }
        let seat = Seat::at(address).map_err(|source| GangError::Seat { address, source })?;
        let mut seats = vec![seat.address()];
        for (i, member) in self.members.iter_mut().enumerate().take(own - 1) {
            seats.push(member.seat(i + 1, number)?);
        }
        Ok((seat, seats))
    }

    /// Joins the ranks at `seats`, of which this worker is those in `own`.
    fn join(
        &mut self,
        seat: Seat,
        own: Range<usize>,
        seats: &[SocketAddr],
        secret: u64,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Gang<SocketLink>, GangError> {
        let (first, others) = (own.start, own.len() - 1);
        for (i, member) in self.members.iter_mut().enumerate().take(others) {
            let join = Order::Join {
                rank: first + i + 1,
                addresses: seats.to_vec(),
                secret,
            };
            member.tell(first + i + 1, &join)?;
            member.follows = true;
        }
        let mut lost = None;
        let members = &mut self.members;
        let mut all_well = || {
            let mut members = members.iter_mut().take(others);
            lost = members.position(|member| !member.is_joining());
            lost.is_none() && goes_on()
        };
        let joined = seat.join(first, seats, secret, Timing::default(), &mut all_well);
        joined.map_err(|error| match lost {
            Some(i) => GangError::Lost {
                rank: first + i + 1,
                what: "it did not join the others",
            },
            None => error.into(),
        })
    }

    /// Makes room for another process in the place of the one that `error` names. A process that was
    /// killed may count as living for a while yet, and would be lost again at once.
    fn replace(&mut self, error: &GangError) {
        let rank = match error {
            GangError::Lost { rank, .. }
            | GangError::Join(
                JoinError::Late { rank, .. }
                | JoinError::Lost(longtake_tensor::Error::Rank { rank, .. }),
            ) => *rank,
            _ => 0,
        };
        if (1..=self.members.len()).contains(&rank) {
            self.members.remove(rank - 1);
        }
        self.bury();
    }

    /// Kills the processes that hang and forgets those that have ended.
    fn bury(&mut self) {
        self.members.retain_mut(Member::is_well);
    }

    /// Waits for the processes to let go of a gang that has ended. Those that take too long are killed.
    pub fn settle(&mut self) {
        let deadline = Instant::now() + LETTING_GO;
        let let_go = |member: &mut Member| {
            member.is_well() && member.has_let_go(deadline) && member.is_well()
        };
        self.members.retain_mut(let_go);
    }

    /// The sum of the processes' largest resident memory, in bytes.
    pub fn peak_rss_bytes(&self) -> u64 {
        let peaks = self.members.iter().map(|m| m.child.id());
        peaks.map(host::peak_rss_bytes_of).sum()
    }
}

/// What the ranks of one gang know each other by.
fn new_secret() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What the coordinator says next.
fn await_order(control: &Control) -> Result<GangOrder, GangError> {
    match control.next_order() {
        Some(GangOrder::Broken) => Err(GangError::Broken("the coordinator was away")),
        Some(order) => Ok(order),
        None => Err(GangError::Recalled),
    }
}

/// One process.
struct Member {
    child: Child,
    /// It was told to join a gang and has not said that this has ended.
    follows: bool,
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
            follows: false,
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

    /// Whether nothing is known that keeps it from joining a gang.
    fn is_joining(&mut self) -> bool {
        while let Ok(word) = self.words.try_recv() {
            self.follows &= !matches!(word, Word::Ended(_));
        }
        self.follows && self.is_well()
    }

    /// Whether it has said by then that its gang has ended for it.
    fn has_let_go(&mut self, deadline: Instant) -> bool {
        while self.follows {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.words.recv_timeout(left.max(Duration::from_millis(1))) {
                Ok(word) => self.follows &= !matches!(word, Word::Ended(_)),
                Err(_) => return false,
            }
        }
        true
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
