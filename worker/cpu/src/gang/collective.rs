//! [`Collective`] over a [`Link`], by way of the host.

use super::Link;
use longtake_tensor::{Backend, Collective, Error, Result, Shape, Tensor};
use std::sync::atomic::{AtomicU32, Ordering};

/// A rank's end of a gang that meets in host memory.
pub struct Gang<L: Link> {
    link: L,
    /// Exchanges begun: every message says which it belongs to, so that ranks that do different things
    /// fail instead of taking one thing for another.
    exchanges: AtomicU32,
}

/// Bytes of the number of the exchange in front of a message.
const HEADER: usize = 4;

impl<L: Link> Gang<L> {
    /// The gang of `link`.
    pub fn new(link: L) -> Self {
        Self {
            link,
            exchanges: AtomicU32::new(0),
        }
    }

    fn begin(&self) -> u32 {
        self.exchanges.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, exchange: u32, to: usize, content: impl Iterator<Item = u8>) -> Result<()> {
        self.check_rank(to)?;
        let mut message = Vec::with_capacity(HEADER + content.size_hint().0);
        message.extend_from_slice(&exchange.to_le_bytes());
        message.extend(content);
        self.link.send(to, message)
    }

    /// The content of the message that rank `from` sent in this exchange; the header is still in
    /// front.
    fn receive(&self, exchange: u32, from: usize) -> Result<Vec<u8>> {
        self.check_rank(from)?;
        let message = self.link.receive(from)?;
        let Some(&theirs) = message.first_chunk::<HEADER>() else {
            return Err(self.out_of_step(from, "sent a message without a header".to_owned()));
        };
        match u32::from_le_bytes(theirs) {
            same if same == exchange => Ok(message),
            other => {
                let what = format!("is at exchange {other} while this one is at {exchange}");
                Err(self.out_of_step(from, what))
            }
        }
    }

    fn receive_values(&self, exchange: u32, from: usize, count: usize) -> Result<Vec<f32>> {
        let message = self.receive(exchange, from)?;
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
        let (exchange, slice) = (self.begin(), count / ranks);
        let mut values = b.download(x)?;
        let others = || (0..ranks).filter(|&other| other != rank);
        for to in others() {
            self.send(exchange, to, bytes(&values[to * slice..][..slice]))?;
        }
        for from in others() {
            let theirs = self.receive_values(exchange, from, slice)?;
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
        let exchange = self.begin();
        for (to, x) in sends {
            self.send(exchange, *to, bytes(&b.download(x)?))?;
        }
        let receive = |&(from, shape): &(usize, Shape)| {
            let values = self.receive_values(exchange, from, shape.count())?;
            b.upload(shape, &values)
        };
        receives.iter().map(receive).collect()
    }

    fn exchange_bytes(&self, sends: &[(usize, &[u8])], from: &[usize]) -> Result<Vec<Vec<u8>>> {
        let exchange = self.begin();
        for &(to, content) in sends {
            self.send(exchange, to, content.iter().copied())?;
        }
        let receive = |&from: &usize| {
            let mut message = self.receive(exchange, from)?;
            message.drain(..HEADER);
            Ok(message)
        };
        from.iter().map(receive).collect()
    }

    fn abort(&self, reason: &str) {
        self.link.abort(reason);
    }
}
