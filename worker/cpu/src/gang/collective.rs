//! [`Collective`] over a [`Link`], by way of the host.

use super::Link;
use longtake_tensor::{Backend, Collective, Error, Result, Shape, Tensor};

/// A rank's end of a gang that meets in host memory.
pub struct Gang<L: Link> {
    link: L,
}

/// What a message belongs to. It says so in its first byte, so that ranks that do different things fail
/// instead of taking one thing for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    AllToAll = 1,
    Tensor = 2,
    Bytes = 3,
}

/// Bytes in front of a message's content.
const HEADER: usize = 1;

impl<L: Link> Gang<L> {
    /// The gang of `link`.
    pub fn new(link: L) -> Self {
        Self { link }
    }

    fn send(&self, kind: Kind, to: usize, content: impl Iterator<Item = u8>) -> Result<()> {
        self.check_rank(to)?;
        let mut message = Vec::with_capacity(HEADER + content.size_hint().0);
        message.push(kind as u8);
        message.extend(content);
        self.link.send(to, message)
    }

    /// The message of this kind that rank `from` sent; the header is still in front.
    fn receive(&self, kind: Kind, from: usize) -> Result<Vec<u8>> {
        self.check_rank(from)?;
        let message = self.link.receive(from)?;
        match message.first() {
            Some(&found) if found == kind as u8 => Ok(message),
            found => {
                let what = format!("does something else: {kind:?} was expected, not {found:?}");
                Err(self.out_of_step(from, what))
            }
        }
    }

    fn receive_values(&self, kind: Kind, from: usize, count: usize) -> Result<Vec<f32>> {
        let message = self.receive(kind, from)?;
        let (values, rest) = message[HEADER..].as_chunks::<4>();
        if values.len() != count || !rest.is_empty() {
            let bytes = message.len() - HEADER;
            let what = format!("sent {bytes} bytes where {count} values were expected");
            return Err(self.out_of_step(from, what));
        }
        Ok(values.iter().map(|&v| f32::from_le_bytes(v)).collect())
    }

    fn check_rank(&self, rank: usize) -> Result<()> {
        let ranks = self.link.ranks();
        if rank < ranks && rank != self.link.rank() {
            return Ok(());
        }
        Err(Error::rank(rank, ranks, "is nobody to exchange with"))
    }

    fn out_of_step(&self, rank: usize, what: String) -> Error {
        Error::rank(rank, self.link.ranks(), what)
    }
}

fn bytes(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|v| v.to_le_bytes())
}

impl<B: Backend, L: Link> Collective<B> for Gang<L> {
    fn rank(&self) -> usize {
        self.link.rank()
    }

    fn ranks(&self) -> usize {
        self.link.ranks()
    }

    fn all_to_all(&self, b: &B, x: &B::Tensor) -> Result<B::Tensor> {
        let (rank, ranks) = (self.link.rank(), self.link.ranks());
        let count = x.shape().count();
        if x.shape().dims().first() != Some(&ranks) {
            let rule = "a slice for each rank is needed";
            return Err(Error::operand("all_to_all", x.shape(), rule));
        }
        let slice = count / ranks;
        let mut values = b.download(x)?;
        let others = || (0..ranks).filter(|&other| other != rank);
        for to in others() {
            self.send(Kind::AllToAll, to, bytes(&values[to * slice..][..slice]))?;
        }
        for from in others() {
            let theirs = self.receive_values(Kind::AllToAll, from, slice)?;
            values[from * slice..][..slice].copy_from_slice(&theirs);
        }
        b.upload(x.shape(), &values)
    }

    fn exchange(
        &self,
        b: &B,
        sends: &[(usize, &B::Tensor)],
        receives: &[(usize, Shape)],
    ) -> Result<Vec<B::Tensor>> {
        for (to, x) in sends {
            self.send(Kind::Tensor, *to, bytes(&b.download(x)?))?;
        }
        let receive = |&(from, shape): &(usize, Shape)| {
            let values = self.receive_values(Kind::Tensor, from, shape.count())?;
            b.upload(shape, &values)
        };
        receives.iter().map(receive).collect()
    }

    fn exchange_bytes(&self, sends: &[(usize, &[u8])], from: &[usize]) -> Result<Vec<Vec<u8>>> {
        for &(to, content) in sends {
            self.send(Kind::Bytes, to, content.iter().copied())?;
        }
        let receive = |&from: &usize| {
            let mut message = self.receive(Kind::Bytes, from)?;
            message.drain(..HEADER);
            Ok(message)
        };
        from.iter().map(receive).collect()
    }

    fn abort(&self, reason: &str) {
        self.link.abort(reason);
    }
}
