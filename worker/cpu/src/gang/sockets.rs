//! Ranks that are processes, every two of them linked by a TCP connection.
//!
//! A thread for each connection reads what comes at once, so that nobody has to wait for a rank that
//! is busy sending; another gives signs of life, so that a rank that hangs is told from one that
//! computes. Content is sent as it is: for the loopback interface, or a network of one's own.

use super::{Gang, Link, Mailbox};
use longtake_tensor::{Error, Result};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long one try to connect takes at most: a lost packet is sent again after a second.
const DIAL: Duration = Duration::from_millis(1500);
/// Begins every connection.
const GREETING: [u8; 8] = *b"longtake";
/// Bytes of a frame's header: its kind and the length of what follows.
const HEADER: usize = 9;
/// Content is read in pieces of so many bytes, each a sign of life.
const PIECE: usize = 1 << 20;
/// Longest message that is taken for one.
const MESSAGE_BYTES_MAX: u64 = 1 << 36;
/// Pause before a connection is tried again while a gang forms.
const RETRY: Duration = Duration::from_millis(20);

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Message = 1,
    SignOfLife = 2,
    /// The sender ends in good order.
    Leave = 3,
    /// The sender cannot go on; the reason follows.
    GiveUp = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        let kinds = [Self::Message, Self::SignOfLife, Self::Leave, Self::GiveUp];
        kinds.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// How long ranks wait for each other.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For all ranks to be there.
    pub forming: Duration,
    /// For a sign of life; each rank gives several in this time.
    pub silence: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            forming: Duration::from_secs(10),
            silence: Duration::from_millis(2500),
        }
    }
}

/// Why a gang did not form.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A rank did not come in time, or cannot be reached from here.
    #[error("rank {rank} of {ranks} {what}")]
    Late {
        /// Which.
        rank: usize,
        /// How many there are.
        ranks: usize,
        /// What is known of it.
        what: String,
    },
    /// Nobody wants the gang any more.
    #[error("the gang was given up while it formed")]
    GivenUp,
    /// A rank is lost.
    #[error(transparent)]
    Lost(#[from] Error),
}

type Joining<T> = std::result::Result<T, JoinError>;

/// A place in a gang that is still to form: where the other ranks can reach this one.
pub struct Seat {
    listener: TcpListener,
    address: SocketAddr,
}

impl Seat {
    /// A place at one of this machine's addresses.
    ///
    /// # Errors
    /// When it is none of this machine, or no port can be had.
    pub fn at(address: IpAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where the other ranks reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Joins the gang of the ranks at `addresses`, this one included, as `rank`. `secret` is known to
    /// the ranks of this gang alone: no other process, and none of an earlier gang, gets in. Asks
    /// `goes_on` again and again whether the gang is still wanted.
    ///
    /// # Errors
    /// Names the rank that is not there in time.
    pub fn join(
        self,
        rank: usize,
        addresses: &[SocketAddr],
        secret: u64,
        timing: Timing,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Joining<Gang<SocketLink>> {
        let mut forming = Forming {
            rank,
            ranks: addresses.len(),
            secret,
            deadline: Instant::now() + timing.forming,
            goes_on,
        };
        let mut streams: Vec<Option<TcpStream>> = addresses.iter().map(|_| None).collect();
        // Each dials those before it and answers those behind it.
        for (other, address) in addresses.iter().enumerate().take(rank) {
            streams[other] = Some(forming.dial(other, *address)?);
        }
        self.listener
            .set_nonblocking(true)
            .map_err(|error| forming.failed(rank, &error))?;
        while let Some(missing) = (rank + 1..forming.ranks).find(|&r| streams[r].is_none()) {
            if let Some((other, stream)) = forming.answer(&self.listener, missing)? {
                streams[other] = Some(stream);
            }
        }
        SocketLink::start(rank, streams, timing)
            .map(Gang::new)
            .map_err(|error| forming.failed(rank, &error).into())
    }
}

/// A gang in the making.
struct Forming<'a> {
    rank: usize,
    ranks: usize,
    secret: u64,
    deadline: Instant,
    goes_on: &'a mut dyn FnMut() -> bool,
}

impl Forming<'_> {
    fn failed(&self, rank: usize, error: &io::Error) -> Error {
        Error::rank(rank, self.ranks, format!("cannot be linked: {error}"))
    }

    fn greeting(&self, rank: usize) -> [u8; 20] {
        let mut greeting = [0; 20];
        greeting[..8].copy_from_slice(&GREETING);
        greeting[8..16].copy_from_slice(&self.secret.to_le_bytes());
        greeting[16..].copy_from_slice(&(rank as u32).to_le_bytes());
        greeting
    }

    /// The time that is left for a rank, of which `what` is known.
    fn left(&mut self, rank: usize, what: impl FnOnce() -> String) -> Joining<Duration> {
        if !(self.goes_on)() {
            return Err(JoinError::GivenUp);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(JoinError::Late {
                rank,
                ranks: self.ranks,
                what: what(),
            }),
            false => Ok(left),
        }
    }

    fn dial(&mut self, other: usize, address: SocketAddr) -> Joining<TcpStream> {
        let mut known = String::from("does not answer");
        loop {
            let left = self.left(other, || format!("cannot be reached at {address}: {known}"))?;
            match TcpStream::connect_timeout(&address, left.min(DIAL)) {
                Ok(mut stream) => {
                    let greeted = stream.write_all(&self.greeting(self.rank));
                    return greeted
                        .map(|()| stream)
                        .map_err(|error| self.failed(other, &error).into());
                }
                // It had its seat before its address was known.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Err(self.failed(other, &error).into());
                }
                Err(error) => {
                    known = error.to_string();
                    std::thread::sleep(RETRY.min(left));
                }
            }
        }
    }

    /// A rank behind this one, if one has dialled. Whoever else dials is turned away.
    fn answer(
        &mut self,
        listener: &TcpListener,
        missing: usize,
    ) -> Joining<Option<(usize, TcpStream)>> {
        let left = self.left(missing, || "did not join the gang in time".to_owned())?;
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(RETRY.min(left));
            return Ok(None);
        };
        let mut greeting = [0; 20];
        let read = || -> io::Result<()> {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(left.min(Duration::from_secs(1))))?;
            stream.read_exact(&mut greeting)
        };
        if { read }().is_err() {
            return Ok(None);
        }
        let known = (self.rank + 1..self.ranks).find(|&rank| greeting == self.greeting(rank));
        Ok(known.map(|rank| (rank, stream)))
    }
}

/// A connection's end that is written to.
struct Writer(Mutex<TcpStream>);

impl Writer {
    fn write(&self, kind: Kind, content: &[u8]) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut stream, kind, content)
    }

    /// A sign of life, unless something is being sent, which is one.
    fn sign(&self) {
        if let Ok(mut stream) = self.0.try_lock() {
            // That the other is lost is found out by its own silence.
            let _ = write_frame(&mut stream, Kind::SignOfLife, &[]);
        }
    }
}

fn write_frame(stream: &mut TcpStream, kind: Kind, content: &[u8]) -> io::Result<()> {
    let mut header = [0; HEADER];
    header[0] = kind as u8;
    header[1..].copy_from_slice(&(content.len() as u64).to_le_bytes());
    stream.write_all(&header)?;
    stream.write_all(content)
}

/// A rank among processes. Dropping it leaves the gang.
pub struct SocketLink {
    rank: usize,
    mailbox: Arc<Mailbox>,
    writers: Arc<Vec<Option<Writer>>>,
    ended: Arc<AtomicBool>,
}

impl SocketLink {
    fn start(rank: usize, streams: Vec<Option<TcpStream>>, timing: Timing) -> io::Result<Self> {
        let ranks = streams.len();
        // Others may still be waiting for theirs.
        let (silence, patience) = (Some(timing.silence), timing.forming);
        let mailbox = Arc::new(Mailbox::new(rank, ranks, silence, patience));
        let mut writers = Vec::with_capacity(ranks);
        for (other, stream) in streams.into_iter().enumerate() {
            let Some(stream) = stream else {
                writers.push(None);
                continue;
            };
            stream.set_nodelay(true)?;
            // The other end reads at once while it lives.
            stream.set_write_timeout(Some(timing.silence))?;
            stream.set_read_timeout(None)?;
            let (reading, mailbox) = (stream.try_clone()?, mailbox.clone());
            std::thread::Builder::new()
                .name(format!("from-rank-{other}"))
                .spawn(move || read(reading, other, &mailbox))?;
            writers.push(Some(Writer(Mutex::new(stream))));
        }
        let (writers, ended) = (Arc::new(writers), Arc::<AtomicBool>::default());
        let (all, stop) = (writers.clone(), ended.clone());
        let pause = timing.silence / 12;
        std::thread::Builder::new()
            .name("signs-of-life".to_owned())
            .spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    all.iter().flatten().for_each(Writer::sign);
                    std::thread::sleep(pause);
                }
            })?;
        Ok(Self {
            rank,
            mailbox,
            writers,
            ended,
        })
    }

    fn tell_all(&self, kind: Kind, content: &[u8]) {
        for writer in self.writers.iter().flatten() {
            // Whoever cannot be told is lost, or finds out by itself.
            let _ = writer.write(kind, content);
        }
    }
}

/// Reads what rank `from` sends until it ends.
fn read(mut stream: TcpStream, from: usize, mailbox: &Mailbox) {
    loop {
        match read_frame(&mut stream, || mailbox.heard(from)) {
            Ok((Kind::Message, content)) => mailbox.put(from, content),
            Ok((Kind::SignOfLife, _)) => mailbox.heard(from),
            Ok((Kind::Leave, _)) => return mailbox.leave(from),
            Ok((Kind::GiveUp, reason)) => {
                let reason = String::from_utf8_lossy(&reason);
                return mailbox.lose(from, &format!("gave up: {reason}"));
            }
            Err(error) => return mailbox.lose(from, &gone(&error)),
        }
    }
}

/// Whether the other end took nothing for too long.
fn is_late(error: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut)
}

/// What a connection's error says of the rank at its other end. Which of them comes first when a
/// process ends depends on who is reading and who is writing just then.
fn gone(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted => "has gone: its process ended".to_owned(),
        _ if is_late(error) => "takes nothing more: it hangs, or its network is cut".to_owned(),
        _ => format!("has gone: {error}"),
    }
}

fn read_frame(stream: &mut TcpStream, heard: impl Fn()) -> io::Result<(Kind, Vec<u8>)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let mut length = [0; HEADER - 1];
    length.copy_from_slice(&header[1..]);
    let length = u64::from_le_bytes(length);
    let kind = Kind::of(header[0]).filter(|_| length <= MESSAGE_BYTES_MAX);
    let kind = kind.ok_or_else(|| io::Error::other("it speaks another language"))?;
    let mut content = Vec::new();
    let mut left = length as usize;
    while left > 0 {
        let (begin, piece) = (content.len(), left.min(PIECE));
        content.resize(begin + piece, 0);
        stream.read_exact(&mut content[begin..])?;
        left -= piece;
        heard();
    }
    Ok((kind, content))
}

impl Link for SocketLink {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.writers.len()
    }

    fn send(&self, to: usize, message: Vec<u8>) -> Result<()> {
        self.mailbox.check()?;
        let Some(Some(writer)) = self.writers.get(to) else {
            return Err(Error::rank(to, self.ranks(), "is nobody to send to"));
        };
        match writer.write(Kind::Message, &message) {
            Ok(()) => self.mailbox.check(),
            Err(error) if is_late(&error) => {
                self.mailbox.lose(to, &gone(&error));
                self.mailbox.check()
            }
            Err(error) => Err(self.mailbox.broke(to, &gone(&error))),
        }
    }

    fn receive(&self, from: usize) -> Result<Vec<u8>> {
        self.mailbox.take(from)
    }

    fn abort(&self, reason: &str) {
        self.mailbox.lose(self.rank, &format!("gave up: {reason}"));
        self.tell_all(Kind::GiveUp, reason.as_bytes());
    }
}

impl Drop for SocketLink {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        match self.mailbox.check() {
            Ok(()) => self.tell_all(Kind::Leave, &[]),
            // Or others might take us for the one that broke the gang.
            Err(error) => self.tell_all(Kind::GiveUp, error.to_string().as_bytes()),
        }
        for writer in self.writers.iter().flatten() {
            let stream = writer.0.lock().unwrap_or_else(PoisonError::into_inner);
            // What was written before still arrives; our reading thread ends with the other's end.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}
