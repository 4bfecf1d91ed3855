//! A window's tokens, shared by the ranks of a gang: context parallelism after Ulysses (Jacobs et
//! al., "DeepSpeed Ulysses", 2023).
//!
//! Each rank has a run of neighbouring tokens, and all weights. Only self-attention looks at other
//! tokens: for it, ranks exchange heads for tokens. Everything before the blocks and after them is
//! done on all tokens by every rank alike, so that guidance, noise and conditioning know nothing of
//! ranks. Runs are equally long; the last ones end in padding, which no attention sees.

use crate::calls::Call;
use crate::config::ModelConfig;
use crate::error::{Error, InPart, Result};
use longtake_tensor::{Backend, Collective, Rope, Shape, Tensor};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Op<T> = longtake_tensor::Result<T>;

/// Fails when the model's attention cannot be shared by so many ranks.
pub fn check_ranks(config: &ModelConfig, ranks: usize) -> Result<()> {
    let heads = config.transformer.num_attention_heads;
    if ranks > 0 && heads.is_multiple_of(ranks) {
        return Ok(());
    }
    let work: Vec<String> = (1..=heads)
        .filter(|&n| heads.is_multiple_of(n))
        .map(|n| n.to_string())
        .collect();
    Err(Error::Request {
        what: "--ranks",
        message: format!(
            "the model's {heads} attention heads cannot be shared by {ranks} ranks; {} work",
            work.join(", ")
        ),
    })
}

/// The gang that a model is a rank of: at least two ranks.
pub(crate) struct Team<B: Backend> {
    gang: Arc<dyn Collective<B>>,
    /// Whether this rank tells the others what to do.
    leads: bool,
    /// Whether an exchange has failed: the gang is of no use any more.
    broken: AtomicBool,
}

impl<B: Backend> Team<B> {
    /// `None` for a gang of one, which has nothing to share.
    pub fn new(gang: Arc<dyn Collective<B>>, leads: bool) -> Option<Self> {
        let broken = AtomicBool::new(false);
        (gang.ranks() > 1).then_some(Self {
            gang,
            leads,
            broken,
        })
    }

    /// Notes what an operation came to, and tells the other ranks when this one cannot go on.
    pub fn judge<T>(&self, done: &Result<T>) {
        let Err(error @ Error::Backend { source, .. }) = done else {
            return;
        };
        self.broken.store(true, Ordering::Relaxed);
        match source {
            // Whoever is behind it is named already.
            longtake_tensor::Error::Rank { .. } => self.gang.abort(&source.to_string()),
            source => self.gang.abort(&format!("{error}: {source}")),
        }
    }

    /// Whether the gang is of no use any more.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Tells the others what to do, if this rank leads them.
    pub fn announce(&self, call: impl FnOnce() -> Call) -> Result<()> {
        if !self.leads {
            return Ok(());
        }
        let told = self.gang.broadcast(0, &mut call().into_bytes());
        let told = told.in_part(|| "what the ranks are told".into());
        self.judge(&told);
        told
    }

    /// What the rank that leads says.
    pub fn listen(&self) -> Result<Call> {
        let mut bytes = Vec::new();
        let heard = self.gang.broadcast(0, &mut bytes);
        heard.in_part(|| "what the ranks are told".into())?;
        Call::from_bytes(&bytes)
    }

    /// This rank's end of it.
    pub fn gang(&self) -> &dyn Collective<B> {
        &*self.gang
    }

    /// What rank 0 finds, which alone looks for it.
    pub fn told(&self, find: impl FnOnce() -> Result<Vec<f32>>) -> Result<Vec<f32>> {
        let mut bytes = match self.gang.rank() {
            0 => find()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            _ => Vec::new(),
        };
        let told = self.gang.broadcast(0, &mut bytes);
        told.in_part(|| "what rank 0 tells".into())?;
        let values = bytes.as_chunks::<4>().0.iter();
        Ok(values.map(|&v| f32::from_le_bytes(v)).collect())
    }

    /// Tells the other ranks that this one cannot go on.
    pub fn abort(&self, reason: &str) {
        self.gang.abort(reason);
    }
}

/// This rank's share of a window's tokens.
pub struct Shard<'a, B: Backend> {
    gang: &'a dyn Collective<B>,
    /// Tokens of the window.
    count: usize,
    /// Tokens of each rank, padding included.
    each: usize,
    /// What stands behind all tokens, for attention's result: zeros `[padding, D / ranks]`.
    padding: Option<B::Tensor>,
}

/// `[L, D]` as frames of one cell, which backends cut and join.
fn cells<B: Backend>(b: &B, x: &B::Tensor) -> Op<B::Tensor> {
    let shape = x.shape();
    b.reshape(x, Shape::from([shape.rows(), 1, 1, shape.last()]))
}

fn tokens<B: Backend>(b: &B, x: &B::Tensor) -> Op<B::Tensor> {
    let shape = x.shape();
    b.reshape(x, Shape::from([shape.rows(), shape.last()]))
}

fn zeros<B: Backend>(b: &B, rows: usize, width: usize) -> Op<B::Tensor> {
    b.upload(Shape::from([rows, width]), &vec![0.0; rows * width])
}

/// Tokens `range` of `x` `[L, D]`.
fn cut<B: Backend>(b: &B, x: &B::Tensor, range: Range<usize>) -> Op<B::Tensor> {
    if range == (0..x.shape().rows()) {
        return tokens(b, x);
    }
    tokens(b, &b.frames(&cells(b, x)?, range)?)
}

/// The tokens of `x` behind those of `before`.
fn join<B: Backend>(b: &B, before: &B::Tensor, x: &B::Tensor) -> Op<B::Tensor> {
    tokens(b, &b.join_frames(&cells(b, before)?, &cells(b, x)?)?)
}

impl<'a, B: Backend> Shard<'a, B> {
    /// The share of a window of `count` tokens of `dim` channels.
    pub(crate) fn new(b: &B, team: &'a Team<B>, count: usize, dim: usize) -> Op<Self> {
        let gang = team.gang();
        let ranks = gang.ranks();
        let each = count.div_ceil(ranks);
        let padding = ranks * each - count;
        let padding = (padding > 0).then(|| zeros(b, padding, dim / ranks));
        Ok(Self {
            gang,
            count,
            each,
            padding: padding.transpose()?,
        })
    }

    /// Ranks of the gang.
    pub fn ranks(&self) -> usize {
        self.gang.ranks()
    }

    /// Whether a backend may record what passes through here.
    pub(crate) fn is_recordable(&self) -> bool {
        self.gang.is_recordable()
    }

    /// This rank's tokens among the window's.
    fn range(&self) -> Range<usize> {
        let begin = self.gang.rank() * self.each;
        begin.min(self.count)..(begin + self.each).min(self.count)
    }

    /// This rank's tokens of the window's `x` `[L, D]`, with zeros for padding.
    pub(crate) fn own(&self, b: &B, x: &B::Tensor) -> Op<B::Tensor> {
        let (range, width) = (self.range(), x.shape().last());
        let missing = self.each - range.len();
        if range.is_empty() {
            return zeros(b, missing, width);
        }
        let own = cut(b, x, range)?;
        match missing {
            0 => Ok(own),
            missing => join(b, &own, &zeros(b, missing, width)?),
        }
    }

    /// The rotations of this rank's tokens.
    pub(crate) fn own_rope(&self, b: &B, rope: &Rope<B>) -> Op<Rope<B>> {
        Ok(Rope {
            cos: self.own(b, &rope.cos)?,
            sin: self.own(b, &rope.sin)?,
        })
    }

    /// The kinds of this rank's tokens; padding is of the first kind.
    pub(crate) fn own_index(&self, index: &[u32]) -> Vec<u32> {
        let mut own = index[self.range()].to_vec();
        own.resize(self.each, 0);
        own
    }

    /// Cuts the padding from values of this rank's tokens.
    pub(crate) fn cut_padding(&self, values: &mut Vec<f32>) {
        values.truncate(values.len() / self.each.max(1) * self.range().len());
    }

    /// The window's tokens, of which `x` `[each, D]` are this rank's.
    pub(crate) fn whole(&self, b: &B, x: &B::Tensor) -> Op<B::Tensor> {
        let all = self.gang.all_gather(b, x)?;
        let mut all = all.into_iter();
        let Some(first) = all.next() else {
            return Ok(x.clone());
        };
        let whole = all.try_fold(first, |whole, x| join(b, &whole, &x))?;
        cut(b, &whole, 0..self.count)
    }

    /// Of q, k and v `[each, D]` of this rank's tokens, the channels of this rank's heads for all
    /// tokens: `[L, D / ranks]` each. One exchange.
    pub(crate) fn to_heads(&self, b: &B, qkv: [&B::Tensor; 3]) -> Op<[B::Tensor; 3]> {
        let packed = b.pack_heads(&qkv, self.ranks())?;
        let width = packed.shape().last();
        let all = self.gang.all_to_all(b, &packed)?;
        let all = b.reshape(&all, Shape::from([self.ranks() * self.each, 3 * width]))?;
        let all = cut(b, &all, 0..self.count)?;
        let rule = "queries, keys and values are needed";
        let lost = |_| longtake_tensor::Error::operand("unpack_heads", all.shape(), rule);
        let parts: [B::Tensor; 3] = b.unpack_heads(&all, 3)?.try_into().map_err(lost)?;
        Ok(parts)
    }

    /// The way back for attention's result `[L, D / ranks]`: all channels of this rank's tokens,
    /// `[each, D]`.
    pub(crate) fn to_tokens(&self, b: &B, x: &B::Tensor) -> Op<B::Tensor> {
        let width = x.shape().last();
        let padded = match &self.padding {
            None => x.clone(),
            Some(padding) => join(b, x, padding)?,
        };
        let by_rank = Shape::from([self.ranks(), self.each, width]);
        let all = self.gang.all_to_all(b, &b.reshape(&padded, by_rank)?)?;
        b.join_heads(&all)
    }

    /// The sums of `values` over the ranks.
    pub(crate) fn sum<const N: usize>(&self, mut values: [f64; N]) -> Op<[f64; N]> {
        self.gang.all_reduce_sum(&mut values)?;
        Ok(values)
    }

    /// Whether any rank says so.
    pub(crate) fn any(&self, says: bool) -> Op<bool> {
        let [count] = self.sum([f64::from(u8::from(says))])?;
        Ok(count > 0.0)
    }
}
