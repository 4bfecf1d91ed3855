//! TeaCache: between two steps, what all blocks together add to the tokens hardly changes while
//! what goes into the first block hardly changes. It is then taken over instead of computed.
//! Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", 2024.

use crate::error::{InPart, Result};
use crate::guidance::Branch;
use crate::shard::Shard;
use crate::types::BlockCount;
use longtake_tensor::Backend;
use std::collections::BTreeMap;

/// What a pass remembers of its last computed step.
pub(crate) struct TeaCache<B: Backend> {
    /// `None`: nothing is reused.
    threshold: Option<f32>,
    /// The first block's modulated input at the last step.
    input: Option<Vec<f32>>,
    /// Relative change since blocks were last computed.
    change: f32,
    /// By branch, what the blocks added.
    added: BTreeMap<Branch, B::Tensor>,
    count: BlockCount,
}

impl<B: Backend> TeaCache<B> {
    pub fn new(threshold: Option<f32>) -> Self {
        Self {
            threshold: threshold.filter(|&t| t > 0.0),
            input: None,
            change: 0.0,
            added: BTreeMap::new(),
            count: BlockCount::default(),
        }
    }

    /// Whether anything may be reused at all.
    pub fn is_on(&self) -> bool {
        self.threshold.is_some()
    }

    /// Counts blocks that were computed without asking.
    pub fn add_computed(&mut self, block_count: usize) {
        self.count.computed += block_count;
    }

    /// Whether this step, with `input` going into the first block, may reuse what the blocks added
    /// before. The first and the last step of a pass never do.
    pub fn decide(
        &mut self,
        b: &B,
        input: &B::Tensor,
        shard: Option<&Shard<'_, B>>,
        last: bool,
    ) -> Result<bool> {
        let Some(threshold) = self.threshold else {
            return Ok(false);
        };
        let part = || "TeaCache".to_owned();
        let mut input = b.download(input).in_part(part)?;
        if let Some(shard) = shard {
            shard.cut_padding(&mut input);
        }
        let sums = self.input.as_deref().map(|before| change(before, &input));
        let change = match (sums, shard) {
            (Some(sums), None) => Some(relative(sums)),
            // All ranks find the same, and so decide the same.
            (Some(sums), Some(shard)) => Some(relative(shard.sum(sums).in_part(part)?)),
            (None, _) => None,
        };
        self.input = Some(input);
        self.change += change.unwrap_or(f32::INFINITY);
        let reuse = !last && self.change < threshold;
        if !reuse {
            self.change = 0.0;
        }
        Ok(reuse)
    }

    /// `h` after all blocks: computed, or with what they added before.
    pub fn blocks(
        &mut self,
        b: &B,
        branch: Branch,
        reuse: bool,
        h: &B::Tensor,
        block_count: usize,
        compute: impl FnOnce(B::Tensor) -> Result<B::Tensor>,
    ) -> Result<B::Tensor> {
        let part = || "TeaCache".to_owned();
        if let (true, Some(added)) = (reuse, self.added.get(&branch)) {
            self.count.reused += block_count;
            return b.weighted_sum(h, 1.0, added, 1.0).in_part(part);
        }
        self.count.computed += block_count;
        let out = compute(h.clone())?;
        if self.threshold.is_some() {
            let added = b.weighted_sum(&out, 1.0, h, -1.0).in_part(part)?;
            self.added.insert(branch, added);
        }
        Ok(out)
    }

    /// Blocks computed and reused so far.
    pub fn count(&self) -> BlockCount {
        self.count
    }
}

/// `sum |a - b|` and `sum |a|`.
fn change(before: &[f32], now: &[f32]) -> [f64; 2] {
    let pairs = before.iter().zip(now);
    let change: f64 = pairs.map(|(&a, &b)| f64::from((a - b).abs())).sum();
    let size: f64 = before.iter().map(|&a| f64::from(a.abs())).sum();
    [change, size]
}

fn relative([change, size]: [f64; 2]) -> f32 {
    (change / size) as f32
}
