//! The random numbers of `torch.Generator("cpu")` and `torch.randn`.
//!
//! Facts from PyTorch's `ATen/core/MT19937RNGEngine.h`, `TransformationHelper.h`,
//! `DistributionsHelper.h` and `native/cpu/DistributionTemplates.h`: mt19937; for fewer than 16
//! values Box-Muller in f64 that keeps its second value for the next draw, else uniform f32
//! values turned to normal ones in blocks of 16, the last block drawn anew when it is not whole.
//! torch has vector code of its own for logarithm, sine and cosine: results agree to 5e-7.

use std::f32::consts::TAU as TAU_F32;
use std::f64::consts::TAU;

const STATE: usize = 624;
const SHIFT: usize = 397;
/// Values that the blocked path transforms together.
const BLOCK: usize = 16;

/// torch's CPU generator.
#[derive(Clone)]
pub struct TorchRng {
    state: [u32; STATE],
    next: usize,
    /// Second value of the last pair of the short path.
    cached: Option<f64>,
}

impl TorchRng {
    /// `torch.Generator("cpu").manual_seed(seed)`: only the lower 32 bits count.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; STATE];
        state[0] = seed as u32;
        for i in 1..STATE {
            let last = state[i - 1];
            state[i] = (last ^ last >> 30)
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: STATE,
            cached: None,
        }
    }

    fn refill(&mut self) {
        for i in 0..STATE {
            let joined = self.state[i] & 0x8000_0000 | self.state[(i + 1) % STATE] & 0x7fff_ffff;
            let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ joined >> 1 ^ twist;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == STATE {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// Uniform in 0..1 with 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// Uniform in 0..1 with 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let bits = high << 32 | u64::from(self.next_u32());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// `torch.randn(count, generator=self)`.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        if count < BLOCK {
            values
                .iter_mut()
                .for_each(|v| *v = self.normal_f64() as f32);
            return values;
        }
        values.iter_mut().for_each(|v| *v = self.uniform_f32());
        let whole = count / BLOCK * BLOCK;
        by_many(&mut values[..whole], BLOCK, |part| {
            part.chunks_exact_mut(BLOCK).for_each(to_normal);
        });
        if whole < count {
            let last = &mut values[count - BLOCK..];
            last.iter_mut().for_each(|v| *v = self.uniform_f32());
            to_normal(last);
        }
        values
    }

    /// The same for a tensor whose values do not lie in one run: torch then draws one after the
    /// other, as for fewer than 16.
    pub fn randn_one_by_one(&mut self, count: usize) -> Vec<f32> {
        let kept = self.cached.take_if(|_| count > 0);
        let pairs = (count - usize::from(kept.is_some())).div_ceil(2);
        let mut values: Vec<f64> = (0..2 * pairs).map(|_| self.uniform_f64()).collect();
        by_many(&mut values, 2, |part| {
            part.as_chunks_mut().0.iter_mut().for_each(to_pair);
        });
        let mut all = kept.into_iter().chain(values);
        let drawn = all.by_ref().take(count).map(|v| v as f32).collect();
        self.cached = self.cached.or(all.next());
        drawn
    }

    /// Leaves the generator as `randn(count)` would.
    pub fn skip_randn(&mut self, count: usize) {
        if count < BLOCK {
            (0..count).for_each(|_| {
                self.normal_f64();
            });
            return;
        }
        let redrawn = if count.is_multiple_of(BLOCK) {
            0
        } else {
            BLOCK
        };
        (0..count + redrawn).for_each(|_| {
            self.next_u32();
        });
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(value) = self.cached.take() {
            return value;
        }
        let mut pair = [self.uniform_f64(), self.uniform_f64()];
        to_pair(&mut pair);
        self.cached = Some(pair[1]);
        pair[0]
    }
}

/// Turns two uniform values into normal ones.
fn to_pair(pair: &mut [f64; 2]) {
    let angle = TAU * pair[0];
    let radius = (-2.0 * libm::log1p(-pair[1])).sqrt();
    *pair = [radius * libm::cos(angle), radius * libm::sin(angle)];
}

/// Has `f` work on parts of many values side by side, cut at multiples of `unit` values. What comes out
/// does not depend on where: `f` looks at no more than a unit at a time.
fn by_many<T: Send>(values: &mut [T], unit: usize, f: impl Fn(&mut [T]) + Sync) {
    const EACH_MIN: usize = 1 << 15;
    const THREADS_MAX: usize = 16;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(THREADS_MAX).min(values.len() / EACH_MIN).max(1);
    let each = values
        .len()
        .div_ceil(threads)
        .next_multiple_of(unit)
        .max(unit);
    std::thread::scope(|scope| {
        let mut parts = values.chunks_mut(each);
        let first = parts.next();
        for part in parts {
            scope.spawn(|| f(part));
        }
        if let Some(first) = first {
            f(first);
        }
    });
}

/// Turns 16 uniform values into normal ones: value i and i + 8 make a pair.
fn to_normal(block: &mut [f32]) {
    for i in 0..BLOCK / 2 {
        // Rounded to f32 where torch rounds; each function is exact to the last bit.
        let log = libm::log(f64::from(1.0 - block[i])) as f32;
        let radius = (-2.0 * log).sqrt();
        let angle = f64::from(TAU_F32 * block[i + BLOCK / 2]);
        block[i] = radius * libm::cos(angle) as f32;
        block[i + BLOCK / 2] = radius * libm::sin(angle) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::TorchRng;

    #[test]
    fn the_engine_is_mt19937() {
        // The 10,000th output of the default-seeded engine is fixed by the C++ standard, [rand.predef].
        let mut rng = TorchRng::new(5489);
        (0..9_999).for_each(|_| {
            rng.next_u32();
        });
        assert_eq!(rng.next_u32(), 4_123_659_995);
    }

    #[test]
    fn skipping_equals_drawing() {
        for count in [1, 7, 15, 16, 17, 31, 32, 1000, 1001] {
            let (mut drawn, mut skipped) = (TorchRng::new(3), TorchRng::new(3));
            drawn.randn(count);
            skipped.skip_randn(count);
            assert_eq!(drawn.randn(5), skipped.randn(5), "{count}");
            assert_eq!(drawn.randn(40), skipped.randn(40), "{count}");
        }
    }

    #[test]
    fn drawing_many_one_by_one_equals_drawing_each() {
        for counts in [
            vec![1, 2, 3, 0, 70_001],
            vec![200_000, 1],
            vec![5, 65_536, 7],
        ] {
            let (mut many, mut each) = (TorchRng::new(5), TorchRng::new(5));
            for count in counts {
                let one_by_one: Vec<f32> = (0..count).map(|_| each.normal_f64() as f32).collect();
                assert!(many.randn_one_by_one(count) == one_by_one, "{count}");
            }
        }
    }

    #[test]
    fn many_values_equal_those_of_fewer_threads() {
        let mut rng = TorchRng::new(9);
        let mut uniform = TorchRng::new(9);
        let values = rng.randn(1 << 18);
        let mut blocks: Vec<f32> = values.iter().map(|_| uniform.uniform_f32()).collect();
        blocks.chunks_exact_mut(16).for_each(super::to_normal);
        assert!(values == blocks);
    }

    #[test]
    fn seeds_count_by_their_lower_half() {
        assert_eq!(
            TorchRng::new(7).randn(20),
            TorchRng::new(7 + (1 << 32)).randn(20)
        );
    }
}
