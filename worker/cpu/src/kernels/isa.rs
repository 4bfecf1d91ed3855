//! The instruction-set level that the kernels run on.

use std::fmt;
use std::str::FromStr;

/// An instruction-set level. Results are bit-equal among machines that run on the same level.
///
/// A level is a choice, not a proof: [`Isa::ensure_available`] tells whether this processor
/// has it, and every kernel panics when it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, DQ and VL, and everything that [`Isa::Avx2`] asks for.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Portable Rust, any processor.
    Scalar,
}

/// Why an instruction-set level cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is not that of a level.
    #[error("unknown instruction-set level `{0}`: use avx512, avx2 or scalar")]
    Unknown(String),
    /// The processor lacks the level.
    #[error("this processor does not have {wanted}: use {best} or leave the level to be detected")]
    Unavailable {
        /// The level asked for.
        wanted: Isa,
        /// The best level of this processor.
        best: Isa,
    },
}

impl Isa {
    /// All levels, best first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Scalar];

    /// The best level of this processor.
    pub fn detect() -> Isa {
        let best = Isa::ALL.into_iter().find(|isa| isa.is_available());
        best.unwrap_or(Isa::Scalar)
    }

    /// The levels this processor has, best first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// Whether this processor has the level.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => false,
        }
    }

    /// The level itself, or an error that names the best one of this processor.
    pub fn ensure_available(self) -> Result<Isa, IsaError> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(IsaError::Unavailable {
                wanted: self,
                best: Isa::detect(),
            })
        }
    }

    /// Panics when this processor lacks the level.
    pub(super) fn assert_available(self) {
        assert!(self.is_available(), "this processor does not have {self}");
    }

    /// The level's name: `avx512`, `avx2` or `scalar`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Scalar => "scalar",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    /// Reads a name. Does not look at the processor: see [`Isa::ensure_available`].
    fn from_str(name: &str) -> Result<Isa, IsaError> {
        let found = Isa::ALL.into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_the_detected_level_is_available() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
        assert!(matches!("sse9".parse::<Isa>(), Err(IsaError::Unknown(name)) if name == "sse9"));
        assert_eq!(Isa::detect().ensure_available(), Ok(Isa::detect()));
        assert!(Isa::available().contains(&Isa::Scalar));
    }
}
