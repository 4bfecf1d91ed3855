//! H.264 byte streams (ITU-T H.264, Annex B): finding NAL units, pictures and parameter sets.

use super::{MediaError, Result};
use std::io::{self, BufRead, Read};

/// A NAL unit beyond this is not a picture of any size that the decoder takes.
const NAL_BYTES_MAX: usize = 64 << 20;

/// `nal_unit_type` of those that matter here (Table 7-1).
pub(super) mod nal_type {
    pub const SLICE: u8 = 1;
    pub const PARTITION_A: u8 = 2;
    pub const IDR: u8 = 5;
    pub const SEI: u8 = 6;
    pub const SPS: u8 = 7;
    pub const PPS: u8 = 8;
    pub const DELIMITER: u8 = 9;
}

/// Type of a NAL unit; 0 for an empty one.
pub(super) fn kind(nal: &[u8]) -> u8 {
    nal.first().map_or(0, |byte| byte & 31)
}

/// Whether it carries picture data.
pub(super) fn is_slice(nal: &[u8]) -> bool {
    matches!(
        kind(nal),
        nal_type::SLICE | nal_type::PARTITION_A | nal_type::IDR
    )
}

/// Whether it is the first slice of a picture: `first_mb_in_slice` is 0, coded as a single 1 bit.
fn starts_picture(nal: &[u8]) -> bool {
    is_slice(nal) && nal.get(1).is_some_and(|byte| byte & 0x80 != 0)
}

/// NAL units of a byte stream, one at a time, without their start codes.
pub(super) struct NalReader<R> {
    reader: R,
    started: bool,
}

impl<R: BufRead> NalReader<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            started: false,
        }
    }

    /// The next unit, `None` at the end.
    pub fn next_nal(&mut self) -> io::Result<Option<Vec<u8>>> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        if !self.started {
            let mut head = Vec::new();
            self.reader.by_ref().take(64).read_until(1, &mut head)?;
            let zeros = head.iter().take_while(|&&byte| byte == 0).count();
            if zeros < 2 || head.get(zeros) != Some(&1) {
                return Err(invalid("it does not begin with a start code"));
            }
            self.started = true;
        }
        loop {
            let mut nal = Vec::new();
            let ended = self.read_until_start_code(&mut nal)?;
            if nal.len() > NAL_BYTES_MAX {
                return Err(invalid("a unit is larger than any picture"));
            }
            while nal.last() == Some(&0) {
                nal.pop();
            }
            if !nal.is_empty() {
                return Ok(Some(nal));
            }
            if ended {
                return Ok(None);
            }
        }
    }

    /// Appends up to the next start code, which is consumed. True at the end of the stream.
    fn read_until_start_code(&mut self, nal: &mut Vec<u8>) -> io::Result<bool> {
        while nal.len() <= NAL_BYTES_MAX {
            let limit = (NAL_BYTES_MAX + 1 - nal.len()) as u64;
            if self.reader.by_ref().take(limit).read_until(1, nal)? == 0 {
                return Ok(true);
            }
            if nal.ends_with(&[0, 0, 1]) {
                nal.truncate(nal.len() - 3);
                return Ok(false);
            }
        }
        Ok(false)
    }
}

/// Pictures of a byte stream: each item holds the NAL units of one, parameter sets included.
pub(super) struct PictureReader<R> {
    nals: NalReader<R>,
    pending: Option<Vec<u8>>,
}

impl<R: BufRead> PictureReader<R> {
    pub fn new(reader: R) -> Self {
        Self {
            nals: NalReader::new(reader),
            pending: None,
        }
    }

    /// The next picture, `None` at the end.
    pub fn next_picture(&mut self) -> io::Result<Option<Vec<Vec<u8>>>> {
        let mut units: Vec<Vec<u8>> = self.pending.take().into_iter().collect();
        let mut has_slice = units.iter().any(|nal| is_slice(nal));
        while let Some(nal) = self.nals.next_nal()? {
            // 7.4.1.2.3: what may open an access unit ends the one before, once that has a picture.
            let opens = matches!(
                kind(&nal),
                nal_type::SEI | nal_type::SPS | nal_type::PPS | nal_type::DELIMITER | 14..=18
            );
            if has_slice && (opens || starts_picture(&nal)) {
                self.pending = Some(nal);
                return Ok(Some(units));
            }
            has_slice |= is_slice(&nal);
            units.push(nal);
        }
        Ok((!units.is_empty()).then_some(units))
    }
}

/// The sequence and picture parameter sets of a chunk, without start codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSets {
    /// Sequence parameter set.
    pub sps: Vec<u8>,
    /// Picture parameter set.
    pub pps: Vec<u8>,
}

/// The parameter sets at the front of a chunk.
pub fn parameter_sets(chunk: &[u8]) -> Result<ParameterSets> {
    let damaged = |why: &str| MediaError::damaged("an encoded chunk", why);
    let mut nals = NalReader::new(chunk);
    let (mut sps, mut pps) = (None, None);
    while let Some(nal) = nals
        .next_nal()
        .map_err(|error| damaged(&error.to_string()))?
    {
        match kind(&nal) {
            nal_type::SPS => sps = Some(nal),
            nal_type::PPS => pps = Some(nal),
            _ => {}
        }
        if let (Some(sps), Some(pps)) = (&sps, &pps) {
            return Ok(ParameterSets {
                sps: sps.clone(),
                pps: pps.clone(),
            });
        }
    }
    Err(damaged("it has no parameter sets"))
}

/// Writes `nal` behind a start code.
pub(super) fn push_nal(out: &mut Vec<u8>, nal: &[u8]) {
    out.extend_from_slice(&[0, 0, 0, 1]);
    out.extend_from_slice(nal);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut reader = NalReader::new(bytes);
        std::iter::from_fn(|| reader.next_nal().unwrap()).collect()
    }

    #[test]
    fn start_codes_of_both_lengths_and_padding_are_understood() {
        let bytes = [
            0, 0, 0, 1, 0x67, 1, 2, 0, 0, 1, 0x68, 0, 3, 1, 9, 0, 0, 0, 1, 0x65, 0x80, 0, 0,
        ];
        assert_eq!(
            units(&bytes),
            [vec![0x67, 1, 2], vec![0x68, 0, 3, 1, 9], vec![0x65, 0x80]]
        );
        assert!(NalReader::new(&b"RIFF"[..]).next_nal().is_err());
        assert!(NalReader::new(&[][..]).next_nal().is_err());
    }

    #[test]
    fn slices_with_the_same_first_macroblock_open_pictures() {
        let mut bytes = Vec::new();
        for nal in [
            &[0x67, 1][..],
            &[0x68, 1],
            &[0x65, 0x80],
            &[0x65, 0x40],
            &[0x61, 0x80],
            &[0x61, 0xC0],
        ] {
            push_nal(&mut bytes, nal);
        }
        let mut reader = PictureReader::new(bytes.as_slice());
        let counts: Vec<usize> = std::iter::from_fn(|| reader.next_picture().unwrap())
            .map(|units| units.len())
            .collect();
        assert_eq!(counts, [4, 1, 1]);
    }

    #[test]
    fn chunks_without_parameter_sets_are_refused() {
        assert!(parameter_sets(&[0, 0, 1, 0x65, 0x80]).is_err());
        assert!(parameter_sets(b"no").is_err());
    }
}
