//! Frames a second as a fraction, the way files store it.

use super::{MediaError, Result};

/// Frames a second: `num / den`, in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    num: u32,
    den: u32,
}

impl Rate {
    /// A fraction. `None` unless it is above 0 and at most 1000.
    pub fn new(num: u64, den: u64) -> Option<Self> {
        let divisor = gcd(num, den);
        if divisor == 0 || num == 0 || den == 0 || num / den > 1000 {
            return None;
        }
        let (mut num, mut den) = (num / divisor, den / divisor);
        // Media clocks of foreign files may not reduce; halving both keeps the rate to 1e-6.
        while num > 1 << 24 {
            num = num.div_ceil(2);
            den = den.div_ceil(2);
        }
        Some(Self {
            num: u32::try_from(num).ok()?,
            den: u32::try_from(den).ok()?,
        })
    }

    /// The fraction that is meant by a decimal number: a whole number, a broadcast rate such as
    /// 23.976 (24000/1001), else the simplest fraction within a millionth.
    pub fn from_fps(fps: f64) -> Result<Self> {
        if !(fps.is_finite() && fps > 0.0 && fps <= 1000.0) {
            return Err(MediaError::BadRate(fps));
        }
        let near = |value: f64, tolerance: f64| (value - fps).abs() <= tolerance;
        let whole = fps.round();
        if whole >= 1.0 && near(whole, 1e-6) {
            return Self::new(whole as u64, 1).ok_or(MediaError::BadRate(fps));
        }
        let nominal = (fps * 1.001).round();
        // Broadcast rates are written with two or three digits: 29.97, 23.976.
        if nominal >= 1.0 && near(nominal / 1.001, 5e-4) {
            return Self::new(nominal as u64 * 1000, 1001).ok_or(MediaError::BadRate(fps));
        }
        let simplest = (1..=1000u64).find_map(|den| {
            let num = (fps * den as f64).round();
            near(num / den as f64, fps * 1e-6)
                .then(|| Self::new(num as u64, den))
                .flatten()
        });
        let exact = || Self::new((fps * 10_000.0).round() as u64, 10_000);
        simplest.or_else(exact).ok_or(MediaError::BadRate(fps))
    }

    /// Numerator.
    pub fn num(self) -> u32 {
        self.num
    }

    /// Denominator.
    pub fn den(self) -> u32 {
        self.den
    }

    /// As a decimal number.
    pub fn fps(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }

    /// (ticks a second, ticks a frame) of a media clock that counts every frame exactly and is fine
    /// enough (at least 10,000 ticks) for players that round to their own clock.
    pub fn clock(self) -> (u32, u32) {
        let mut scale = 1;
        while self.num * scale < 10_000 {
            scale *= 2;
        }
        (self.num * scale, self.den * scale)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_rates_become_the_fractions_that_are_meant() {
        for (fps, num, den) in [
            (24.0, 24, 1),
            (30.0, 30, 1),
            (23.976, 24_000, 1001),
            (29.97, 30_000, 1001),
            (59.94, 60_000, 1001),
            (12.5, 25, 2),
            (0.5, 1, 2),
            (16.0, 16, 1),
            (1000.0, 1000, 1),
        ] {
            let rate = Rate::from_fps(fps).unwrap();
            assert_eq!((rate.num(), rate.den()), (num, den), "{fps}");
        }
        for fps in [7.123_456, 0.001, 999.999, 24.5] {
            assert!(
                (Rate::from_fps(fps).unwrap().fps() - fps).abs() < 1e-4 * fps.max(1.0),
                "{fps}"
            );
        }
        for fps in [0.0, -1.0, f64::NAN, f64::INFINITY, 1001.0] {
            assert!(Rate::from_fps(fps).is_err(), "{fps}");
        }
    }

    #[test]
    fn clocks_are_whole() {
        assert_eq!(Rate::from_fps(24.0).unwrap().clock(), (12_288, 512));
        assert_eq!(Rate::from_fps(23.976).unwrap().clock(), (24_000, 1001));
        assert_eq!(Rate::new(90_000, 3003), Rate::from_fps(29.97).ok());
    }
}
