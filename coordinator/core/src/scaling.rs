//! What sharing a window among ranks costs and brings, on paper: a denoising step of LTX-Video 13B by
//! tokens, ranks and links. `docs/scaling.md` compares it with what was measured.
//!
//! A step is products with the weights, in proportion to the tokens, and attention, in proportion to
//! their square; each rank does its share of both. Twice a block all ranks exchange heads for tokens:
//! q, k and v before self-attention, its result after it. Nothing is taken to overlap.

/// Blocks of the model.
const BLOCKS: f64 = 48.0;
/// Channels of a token.
const CHANNELS: f64 = 4096.0;
/// Attention heads: no more ranks, and only their divisors.
const HEADS: usize = 32;
/// Weights that every token passes through.
const PARAMETERS: f64 = 13.0e9;
/// Floating-point operations of all products with weights, for a token.
const FLOP_PER_TOKEN: f64 = 302e12 / 13_376.0;
/// Tensors that a rank sends its share of in a block: q, k, v and attention's result.
const TENSORS: f64 = 4.0;
/// Exchanges of a block.
const EXCHANGES: f64 = 2.0;

/// What a rank computes with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// What it is.
    pub name: &'static str,
    /// Products with weights and what goes with them, in FLOP/s.
    pub linear_rate: f64,
    /// Attention, in FLOP/s.
    pub attention_rate: f64,
    /// Memory, in bytes/s: weights are read at least once a step.
    pub memory_rate: f64,
    /// Bytes of a weight.
    pub weight_bytes: f64,
}

/// Rates from one GPU's steps at 5,600 and 22,400 tokens, in seconds.
const fn card(
    name: &'static str,
    small: f64,
    large: f64,
    memory_rate: f64,
    weight_bytes: f64,
) -> Card {
    // Four times the tokens: four times the products, sixteen times the attention.
    let attention = (large - 4.0 * small) / 12.0;
    Card {
        name,
        linear_rate: FLOP_PER_TOKEN * 5_600.0 / (small - attention),
        attention_rate: attention_flop(5_600.0) / attention,
        memory_rate,
        weight_bytes,
    }
}

/// Scores and weighted sums of all blocks.
const fn attention_flop(tokens: f64) -> f64 {
    4.0 * tokens * tokens * CHANNELS * BLOCKS
}

/// diffusers in bf16, compiled, on an H200.
pub const H200_DIFFUSERS: Card = card("H200, bf16, diffusers", 0.265, 1.513, 4.8e12, 2.0);
/// longtake with weights in 8 bits on an H100.
pub const H100_LONGTAKE: Card = card("H100, FP8, longtake", 0.161, 1.109, 3.35e12, 1.0);

/// How ranks are linked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Network {
    /// What it is.
    pub name: &'static str,
    /// Ranks that are linked by `inner`, the others of the gang by `outer`.
    pub ranks_inside: usize,
    /// Within a host, or an NVLink domain.
    pub inner: Link,
    /// Between hosts.
    pub outer: Link,
}

/// A rank's way to others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes/s in either direction, as the vendor says.
    pub rate: f64,
    /// Share of it that an exchange among all ranks gets. Assumed.
    pub yields: f64,
    /// Seconds until the first byte of an exchange arrives. Assumed.
    pub latency: f64,
}

const NVLINK4: Link = Link {
    rate: 450e9,
    yields: 0.75,
    latency: 12e-6,
};
const NDR: Link = Link {
    rate: 50e9,
    yields: 0.85,
    latency: 25e-6,
};

/// All ranks in one NVLink domain: 8 GPUs of an HGX host, more behind NVLink switches.
pub const NVLINK: Network = Network {
    name: "NVLink",
    ranks_inside: HEADS,
    inner: NVLINK4,
    outer: NDR,
};
/// Hosts of 8 GPUs with NVLink inside, a 400 Gbit/s InfiniBand port for each GPU between them.
pub const HOSTS_OF_8: Network = Network {
    name: "8 a host, InfiniBand",
    ranks_inside: 8,
    inner: NVLINK4,
    outer: NDR,
};
/// Every rank on a host of its own.
pub const INFINIBAND: Network = Network {
    name: "InfiniBand alone",
    ranks_inside: 1,
    inner: NVLINK4,
    outer: NDR,
};

/// A denoising step of one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Seconds of products with weights.
    pub linear_s: f64,
    /// Seconds of attention.
    pub attention_s: f64,
    /// Seconds of exchanges.
    pub exchange_s: f64,
    /// Bytes that a rank sends.
    pub sent_bytes: f64,
}

impl Step {
    /// Seconds of all of it, one after the other.
    pub fn seconds(&self) -> f64 {
        self.linear_s + self.attention_s + self.exchange_s
    }
}

/// A step over `tokens` tokens by each of `ranks` ranks; values are exchanged in `value_bytes` bytes.
/// `None` for ranks that do not divide the heads.
pub fn step(
    card: &Card,
    network: &Network,
    tokens: usize,
    ranks: usize,
    value_bytes: f64,
) -> Option<Step> {
    if ranks == 0 || !HEADS.is_multiple_of(ranks) {
        return None;
    }
    let n = ranks as f64;
    // The longest share, padding included.
    let own = tokens.div_ceil(ranks) as f64;
    let products = own * FLOP_PER_TOKEN / card.linear_rate;
    let weights = PARAMETERS * card.weight_bytes / card.memory_rate;
    // Of its own share a rank keeps a part; the others get equal ones.
    let to_each = BLOCKS * TENSORS * own * CHANNELS / n * value_bytes;
    let inside = network.ranks_inside.min(ranks);
    let [near, far] = [inside - 1, ranks - inside].map(|peers| peers as f64);
    // Both ways are used at the same time.
    let seconds = |link: &Link, peers: f64| match peers > 0.0 {
        true => peers * to_each / (link.rate * link.yields) + BLOCKS * EXCHANGES * link.latency,
        false => 0.0,
    };
    Some(Step {
        linear_s: products.max(weights),
        attention_s: attention_flop(tokens as f64) / n / card.attention_rate,
        exchange_s: seconds(&network.inner, near).max(seconds(&network.outer, far)),
        sent_bytes: (near + far) * to_each,
    })
}

/// Share of the ranks' time that is not lost against one rank's: `T1 / (n Tn)`.
pub fn efficiency(
    card: &Card,
    network: &Network,
    tokens: usize,
    ranks: usize,
    value_bytes: f64,
) -> Option<f64> {
    let alone = step(card, network, tokens, 1, value_bytes)?.seconds();
    let shared = step(card, network, tokens, ranks, value_bytes)?.seconds();
    Some(alone / (ranks as f64 * shared))
}

/// A step that was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// With what.
    pub card: Card,
    /// Tokens.
    pub tokens: usize,
    /// Ranks, over NVLink.
    pub ranks: usize,
    /// How long it took.
    pub seconds: f64,
}

const fn diffusers(tokens: usize, ranks: usize, seconds: f64) -> Measured {
    Measured {
        card: H200_DIFFUSERS,
        tokens,
        ranks,
        seconds,
    }
}

const fn longtake(tokens: usize, seconds: f64) -> Measured {
    Measured {
        card: H100_LONGTAKE,
        tokens,
        ranks: 1,
        seconds,
    }
}

/// All that was measured: 121 frames, 13B. Two points of each kind of one rank make the rates, the
/// others test them.
pub const MEASURED: [Measured; 10] = [
    diffusers(5_600, 1, 0.265),
    diffusers(13_376, 1, 0.731),
    diffusers(22_400, 1, 1.513),
    diffusers(5_600, 2, 0.156),
    diffusers(13_376, 2, 0.420),
    diffusers(22_400, 2, 0.812),
    diffusers(32_640, 2, 1.360),
    longtake(5_600, 0.161),
    longtake(13_376, 0.532),
    longtake(22_400, 1.109),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_met() {
        for m in MEASURED {
            let step = step(&m.card, &NVLINK, m.tokens, m.ranks, 2.0).expect("ranks that divide");
            let off = step.seconds() / m.seconds - 1.0;
            // diffusers does not fuse, exchanges q, k and v one by one, and starts kernels from Python:
            // what that costs is not in the model, which is below what was measured on two GPUs.
            let allowed = if m.ranks == 1 {
                -0.05..=0.05
            } else {
                -0.12..=0.0
            };
            assert!(allowed.contains(&off), "{m:?}: {off:+.3}");
        }
    }

    #[test]
    fn ranks_that_do_not_divide_the_heads_have_no_step() {
        for ranks in [0, 3, 5, 33, 64] {
            assert_eq!(step(&H100_LONGTAKE, &NVLINK, 5_600, ranks, 2.0), None);
        }
    }

    #[test]
    fn bytes_are_those_of_the_tensors() {
        // Two ranks: each sends half of its 2,800 tokens' q, k, v and result in each of 48 blocks.
        let step = step(&H100_LONGTAKE, &NVLINK, 5_600, 2, 2.0).expect("2 divides 32");
        assert_eq!(step.sent_bytes, 48.0 * 4.0 * 2_800.0 * 2_048.0 * 2.0);
        let alone = super::step(&H100_LONGTAKE, &NVLINK, 5_600, 1, 2.0).expect("1 divides 32");
        assert_eq!((alone.sent_bytes, alone.exchange_s), (0.0, 0.0));
    }

    #[test]
    fn long_windows_scale_better_and_wires_cost_more() {
        let at = |network, tokens, ranks| {
            efficiency(&H100_LONGTAKE, &network, tokens, ranks, 2.0).expect("a divisor")
        };
        for ranks in [2, 4, 8, 16, 32] {
            assert!(at(NVLINK, 5_600, ranks) < at(NVLINK, 56_880, ranks));
            assert!(at(INFINIBAND, 22_400, ranks) < at(NVLINK, 22_400, ranks));
            assert!(at(NVLINK, 22_400, ranks) < 1.0);
        }
        assert_eq!(at(HOSTS_OF_8, 22_400, 8), at(NVLINK, 22_400, 8));
        assert!(at(HOSTS_OF_8, 22_400, 16) > at(INFINIBAND, 22_400, 16));
    }
}
