//! Ranks that compute one window together, and how their tensors get from one to another.
//!
//! All ranks of a gang run the same program and call the same operations in the same order; each
//! has its share of the tokens, or of the rows of a picture. What is received depends on what was
//! sent alone, never on who came first: sums are taken in the order of the ranks.

use crate::backend::{Backend, Tensor};
use crate::error::{Error, Result};
use crate::shape::Shape;

/// A rank's end of its gang.
///
/// Every operation fails with [`Error::Rank`] when a rank is lost, has given up, or does something
/// else; none waits for ever. After a failure the gang is of no use any more.
pub trait Collective<B: Backend>: Send + Sync {
    /// This rank, below [`Collective::ranks`].
    fn rank(&self) -> usize;

    /// Ranks of the gang.
    fn ranks(&self) -> usize;

    /// Sends slice `i` of `x` `[ranks, ..]` to rank `i`; slice `i` of the result, which has the
    /// shape of `x`, came from rank `i`.
    fn all_to_all(&self, b: &B, x: &B::Tensor) -> Result<B::Tensor>;

    /// Sends tensors to the ranks named beside them, and receives tensors of these shapes from
    /// these ranks, in this order. What a rank sends to another is received in the order of sending.
    fn exchange(
        &self,
        b: &B,
        sends: &[(usize, &B::Tensor)],
        receives: &[(usize, Shape)],
    ) -> Result<Vec<B::Tensor>>;

    /// The same for bytes of any number in host memory.
    fn exchange_bytes(&self, sends: &[(usize, &[u8])], from: &[usize]) -> Result<Vec<Vec<u8>>>;

    /// Whether what calls this may be recorded and run again by [`Backend::recorded`].
    fn is_recordable(&self) -> bool {
        false
    }

    /// Has every rank's operations fail from now on, for the reason given. For a rank that cannot
    /// go on: without, the others would find out by waiting.
    fn abort(&self, reason: &str);

    /// `x` of all ranks, of one shape each, in their order.
    fn all_gather(&self, b: &B, x: &B::Tensor) -> Result<Vec<B::Tensor>> {
        let others: Vec<usize> = others(self.rank(), self.ranks());
        let sends: Vec<_> = others.iter().map(|&to| (to, x)).collect();
        let receives: Vec<_> = others.iter().map(|&from| (from, x.shape())).collect();
        let mut all = self.exchange(b, &sends, &receives)?;
        all.insert(self.rank(), x.clone());
        Ok(all)
    }

    /// `mine` of the first `among` ranks, which alone may call this.
    fn all_gather_bytes(&self, among: usize, mine: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let others = others(self.rank(), among);
        let sends: Vec<(usize, &[u8])> = others.iter().map(|&to| (to, &mine[..])).collect();
        let mut all = self.exchange_bytes(&sends, &others)?;
        all.insert(self.rank(), mine);
        Ok(all)
    }

    /// Adds up `values` of all ranks, in their order.
    fn all_reduce_sum(&self, values: &mut [f64]) -> Result<()> {
        let all = self.all_gather_bytes(self.ranks(), f64_bytes(values))?;
        values.fill(0.0);
        for (rank, bytes) in all.iter().enumerate() {
            let theirs = f64_values(bytes);
            if theirs.len() != values.len() {
                let what = format!("adds {} values, not {}", theirs.len(), values.len());
                return Err(Error::rank(rank, self.ranks(), what));
            }
            values.iter_mut().zip(theirs).for_each(|(v, t)| *v += t);
        }
        Ok(())
    }

    /// What rank `root` has in `bytes`, on all ranks.
    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        if self.rank() == root {
            let others = others(root, self.ranks());
            let sends: Vec<(usize, &[u8])> = others.iter().map(|&to| (to, &bytes[..])).collect();
            return self.exchange_bytes(&sends, &[]).map(drop);
        }
        *bytes = self.exchange_bytes(&[], &[root])?.remove(0);
        Ok(())
    }

    /// Returns when all ranks have called it.
    fn barrier(&self) -> Result<()> {
        self.all_gather_bytes(self.ranks(), Vec::new()).map(drop)
    }
}

/// The ranks below `ranks` but for `rank`.
fn others(rank: usize, ranks: usize) -> Vec<usize> {
    (0..ranks).filter(|&other| other != rank).collect()
}

/// Values as little-endian bytes.
pub fn f64_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The inverse of [`f64_bytes`]; what is left over is left out.
pub fn f64_values(bytes: &[u8]) -> Vec<f64> {
    let values = bytes.as_chunks::<8>().0.iter();
    values.map(|&v| f64::from_le_bytes(v)).collect()
}
