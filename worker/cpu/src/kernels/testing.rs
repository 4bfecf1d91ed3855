//! What the kernels' tests share: random values, comparisons, thread pools.

use super::isa::Isa;

/// A small generator of reproducible values (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    /// 1 to `max`.
    pub fn size(&mut self, max: usize) -> usize {
        1 + self.next() as usize % max
    }

    /// Uniform in -1..1.
    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| (self.next() & 0xff_ffff) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }
}

/// Runs a check on every level that this processor has.
pub fn each_isa(check: impl Fn(Isa)) {
    Isa::available().into_iter().for_each(check);
}

/// Runs a kernel on pools of one, two and three threads and outside of any pool of this test,
/// requires equal bits, returns them.
pub fn same_bits_for_any_threads(len: usize, run: impl Fn(&mut [f32]) + Sync) -> Vec<f32> {
    let fresh = || vec![f32::NAN; len];
    let mut first = fresh();
    run(&mut first);
    for threads in 1..=3 {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let mut y = fresh();
        pool.install(|| run(&mut y));
        let equal = y
            .iter()
            .zip(&first)
            .all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(equal, "{threads} threads give other bits");
    }
    first
}

/// Requires |y - exact| <= tolerance * max(1, largest |exact|) for each element.
pub fn assert_close(y: &[f32], exact: &[f64], tolerance: f64, what: &str) {
    assert_eq!(y.len(), exact.len(), "{what}");
    let scale = exact.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
    for (i, (&y, &exact)) in y.iter().zip(exact).enumerate() {
        let error = (f64::from(y) - exact).abs() / scale;
        assert!(
            error <= tolerance,
            "{what}: element {i} is {y}, not {exact} (off by {error:.1e})"
        );
    }
}
