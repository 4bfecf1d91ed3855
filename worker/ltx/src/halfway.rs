//! A window between two steps: what another process needs to go on as if nothing had happened.

use crate::error::{Error, Result};
use crate::noise::Drawn;
use crate::types::{read_f32, read_note, write_f32};
use serde::{Deserialize, Serialize};

/// Note in the file with everything that is no tensor.
const NOTE: &str = "halfway";
/// What it is called where it cannot be used.
const WHAT: &str = "window to go on with";

/// How a run that is asked to stop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What was computed is dropped: [`Error::Cancelled`].
    Drop,
    /// What was computed is kept: [`Error::Stopped`]. Under TeaCache it is dropped, for what that
    /// remembers is larger than what it spares.
    Keep,
}

/// A window after some of its steps. Whoever is given the same request and this makes the bytes
/// that would have been made without the break.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Halfway {
    /// Steps done, at least 1.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Seconds that the steps took, where somebody counts them.
    #[serde(default)]
    pub seconds: f64,
    /// All that was drawn from the seed so far.
    pub drawn: Drawn,
    /// Values of a token.
    pub channels: usize,
    /// Tokens in front of the window's own included.
    pub token_count: usize,
    /// `[token_count, channels]`, as the last step left them.
    #[serde(skip)]
    pub tokens: Vec<f32>,
    /// What is held, with the noise that it has now; the same shape.
    #[serde(skip)]
    pub held: Vec<f32>,
}

impl Halfway {
    /// A safetensors file with `tokens` and `held`, f32 `[tokens, channels]`; its metadata says the
    /// rest.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let shape = [self.token_count, self.channels];
        let tensors = [("tokens", &self.tokens), ("held", &self.held)];
        let note = serde_json::to_string(self).expect("numbers can be written");
        let tensors = tensors.map(|(name, values)| (name, shape.to_vec(), values.as_slice()));
        write_f32(&tensors, Some((NOTE, note)))
    }

    /// From such a file.
    ///
    /// # Errors
    /// When it is no such file.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self> {
        let note = read_note(bytes, WHAT, NOTE)?.unwrap_or_default();
        let mut halfway: Self =
            serde_json::from_str(&note).map_err(|e| wrong(format!("its note `{NOTE}`: {e}")))?;
        let shape = [halfway.token_count, halfway.channels];
        for (name, values) in [("tokens", &mut halfway.tokens), ("held", &mut halfway.held)] {
            let (found, read) = read_f32(bytes, name)?;
            if found != shape {
                return Err(wrong(format!(
                    "`{name}` is {found:?}, its note says {shape:?}"
                )));
            }
            *values = read;
        }
        Ok(halfway)
    }

    /// Refuses what a window of so many tokens and steps cannot go on with.
    pub(crate) fn check(&self, values: usize, channels: usize, steps: usize) -> Result<()> {
        let fits = self.channels == channels
            && [self.tokens.len(), self.held.len()] == [values; 2]
            && self.steps == steps
            && (1..=steps).contains(&self.step);
        let are_numbers = || self.tokens.iter().all(|v| v.is_finite());
        if fits && are_numbers() {
            return Ok(());
        }
        Err(wrong(format!(
            "step {} of {} with {} values of {} channels is not of this window: {steps} steps, {values} \
             values of {channels} channels, all of them finite",
            self.step,
            self.steps,
            self.tokens.len(),
            self.channels,
        )))
    }
}

fn wrong(message: String) -> Error {
    Error::Artifact {
        name: WHAT.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Halfway {
        Halfway {
            step: 3,
            steps: 8,
            seconds: 1.5,
            drawn: Drawn {
                generator: vec![12, 6],
                ambient: vec![2],
            },
            channels: 2,
            token_count: 3,
            tokens: vec![0.1, -2.5, 3e-30, 4.0, 5.0, 6.0],
            held: vec![1.0; 6],
        }
    }

    #[test]
    fn it_survives_a_file() {
        let bytes = some().to_safetensors();
        assert_eq!(Halfway::from_safetensors(&bytes).expect("whole"), some());
        for cut in [0, 9, bytes.len() - 1] {
            assert!(Halfway::from_safetensors(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn another_windows_is_refused() {
        assert!(some().check(6, 2, 8).is_ok());
        for (values, channels, steps) in [(8, 2, 8), (6, 3, 8), (6, 2, 9), (6, 2, 2)] {
            assert!(some().check(values, channels, steps).is_err());
        }
        let broken = Halfway {
            tokens: vec![f32::NAN; 6],
            ..some()
        };
        assert!(broken.check(6, 2, 8).is_err());
    }
}
