//! What a sequence parameter set says (ITU-T H.264, 7.3.2.1.1 and E.1.1): enough to refuse what the
//! decoder cannot do before it sees it, and to know size, colours and rate.

use super::color::{ColorSpace, Matrix};
use super::{MAX_PIXELS, MediaError, Rate, Result};

/// The fields that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sps {
    pub profile: u8,
    pub chroma_format: u32,
    pub bit_depth: u32,
    pub interlaced: bool,
    /// Size after cropping.
    pub width: u32,
    pub height: u32,
    /// Pixels of the coded picture.
    pub coded_pixels: u64,
    pub full_range: Option<bool>,
    pub matrix_code: Option<u16>,
    pub rate: Option<Rate>,
}

impl Sps {
    /// Reads a NAL unit without start code; `None` when it is not a sound parameter set.
    pub fn parse(nal: &[u8]) -> Option<Self> {
        let mut bits = Bits::new(nal.get(1..)?);
        let profile = bits.u(8)? as u8;
        bits.u(16)?; // constraint flags, level
        bits.ue()?; // id
        let (chroma_format, bit_depth) = high_profile_fields(&mut bits, profile)?;
        bits.ue()?; // log2_max_frame_num
        skip_picture_order(&mut bits)?;
        bits.ue()?; // max_num_ref_frames
        bits.u(1)?; // gaps_in_frame_num
        let (mbs_across, units_down) = (u64::from(bits.ue()?) + 1, u64::from(bits.ue()?) + 1);
        let interlaced = bits.u(1)? == 0;
        if interlaced {
            bits.u(1)?; // mb_adaptive_frame_field
        }
        bits.u(1)?; // direct_8x8_inference
        let coded_width = mbs_across * 16;
        let coded_height = units_down * 16 * if interlaced { 2 } else { 1 };
        let crop = crop(&mut bits, chroma_format, interlaced)?;
        let cropped = |coded: u64, crop: u64| {
            coded
                .checked_sub(crop)
                .filter(|&side| side > 0)
                .and_then(|side| u32::try_from(side).ok())
        };
        let mut sps = Self {
            profile,
            chroma_format,
            bit_depth,
            interlaced,
            width: cropped(coded_width, crop.0)?,
            height: cropped(coded_height, crop.1)?,
            coded_pixels: coded_width.checked_mul(coded_height)?,
            full_range: None,
            matrix_code: None,
            rate: None,
        };
        if bits.u(1)? == 1 {
            // What usability information says is optional: a broken one is as good as none.
            let _ = sps.read_usability(&mut bits);
        }
        Some(sps)
    }

    fn read_usability(&mut self, bits: &mut Bits<'_>) -> Option<()> {
        const EXTENDED_SAR: u32 = 255;
        if bits.u(1)? == 1 && bits.u(8)? == EXTENDED_SAR {
            bits.u(32)?;
        }
        if bits.u(1)? == 1 {
            bits.u(1)?; // overscan_appropriate
        }
        if bits.u(1)? == 1 {
            bits.u(3)?; // video_format
            self.full_range = Some(bits.u(1)? == 1);
            if bits.u(1)? == 1 {
                bits.u(16)?; // primaries, transfer
                self.matrix_code = Some(bits.u(8)? as u16);
            }
        }
        if bits.u(1)? == 1 {
            bits.ue()?; // chroma location, top and bottom field
            bits.ue()?;
        }
        if bits.u(1)? == 1 {
            let (units_in_tick, time_scale) = (bits.u(32)?, bits.u(32)?);
            // A tick is a field: two make a frame.
            self.rate = Rate::new(time_scale.into(), 2 * u64::from(units_in_tick));
        }
        Some(())
    }

    /// Refuses, by name, what the decoder cannot do.
    pub fn check_supported(&self, what: &str) -> Result<()> {
        let refuse = |feature: String| {
            Err(MediaError::Unsupported {
                what: what.to_owned(),
                feature,
            })
        };
        match (self.profile, self.chroma_format, self.bit_depth) {
            (_, 1, 8) if matches!(self.profile, 66 | 77 | 100) => {}
            (_, 1, 8) => return refuse(format!("H.264 profile {}", self.profile)),
            (_, 1, depth) => return refuse(format!("H.264 with {depth} bits a sample")),
            (_, chroma, _) => {
                let name = ["4:0:0", "4:2:0", "4:2:2", "4:4:4"]
                    .get(chroma as usize)
                    .unwrap_or(&"unknown");
                return refuse(format!("H.264 with {name} chroma"));
            }
        }
        if self.interlaced {
            return refuse("interlaced H.264".to_owned());
        }
        if self.coded_pixels > u64::from(MAX_PIXELS) {
            return refuse(format!("H.264 of {}x{} pixels", self.width, self.height));
        }
        self.color(None)
            .map(|_| ())
            .or_else(|| Some(()).filter(|()| self.matrix_code.is_none()))
            .map_or_else(
                || refuse(format!("colour matrix {}", self.matrix_code.unwrap_or(2))),
                Ok,
            )
    }

    /// Matrix and range: from here, else as the container says `(matrix code, full range)`, else the
    /// usual for the size. `None` for a matrix that is not understood.
    pub fn color(&self, container: Option<(u16, bool)>) -> Option<ColorSpace> {
        const UNSPECIFIED: u16 = 2;
        let own = self.matrix_code.filter(|&code| code != UNSPECIFIED);
        let code = own
            .or(container.map(|(code, _)| code))
            .unwrap_or(UNSPECIFIED);
        let full_range = self
            .full_range
            .or(container.map(|(_, full)| full))
            .unwrap_or(false);
        Some(ColorSpace {
            matrix: Matrix::from_code(code, self.height)?,
            full_range,
        })
    }
}

/// (chroma_format_idc, bits a sample); 4:2:0 and 8 for profiles that do not say.
fn high_profile_fields(bits: &mut Bits<'_>, profile: u8) -> Option<(u32, u32)> {
    if !matches!(
        profile,
        100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135
    ) {
        return Some((1, 8));
    }
    let chroma_format = bits.ue()?;
    if chroma_format == 3 {
        bits.u(1)?; // separate_colour_plane
    }
    let luma_depth = bits.ue()?.checked_add(8)?;
    let chroma_depth = bits.ue()?.checked_add(8)?;
    bits.u(1)?; // qpprime_y_zero_transform_bypass
    if bits.u(1)? == 1 {
        for list in 0..if chroma_format == 3 { 12 } else { 8 } {
            if bits.u(1)? == 1 {
                skip_scaling_list(bits, if list < 6 { 16 } else { 64 })?;
            }
        }
    }
    Some((chroma_format, luma_depth.max(chroma_depth)))
}

fn skip_scaling_list(bits: &mut Bits<'_>, size: u32) -> Option<()> {
    let (mut last, mut next) = (8i64, 8i64);
    for _ in 0..size {
        if next != 0 {
            next = (last + i64::from(bits.se()?) + 256).rem_euclid(256);
        }
        if next != 0 {
            last = next;
        }
    }
    Some(())
}

fn skip_picture_order(bits: &mut Bits<'_>) -> Option<()> {
    match bits.ue()? {
        0 => {
            bits.ue()?;
        }
        1 => {
            bits.u(1)?;
            bits.se()?;
            bits.se()?;
            for _ in 0..bits.ue().filter(|&count| count <= 255)? {
                bits.se()?;
            }
        }
        _ => {}
    }
    Some(())
}

/// Pixels cut off (across, down).
fn crop(bits: &mut Bits<'_>, chroma_format: u32, interlaced: bool) -> Option<(u64, u64)> {
    if bits.u(1)? == 0 {
        return Some((0, 0));
    }
    let mut side = || Some(u64::from(bits.ue()?) + u64::from(bits.ue()?));
    let (across, down) = (side()?, side()?);
    let unit_x = if matches!(chroma_format, 1 | 2) { 2 } else { 1 };
    let unit_y = if chroma_format == 1 { 2 } else { 1 } * if interlaced { 2 } else { 1 };
    Some((across * unit_x, down * unit_y))
}

/// Bits of a payload, most significant first, skipping emulation prevention bytes (7.4.1.1).
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    zeros: u32,
    current: u8,
    left: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            zeros: 0,
            current: 0,
            left: 0,
        }
    }

    fn bit(&mut self) -> Option<u32> {
        if self.left == 0 {
            let mut byte = *self.bytes.get(self.at)?;
            self.at += 1;
            if self.zeros >= 2 && byte == 3 {
                byte = *self.bytes.get(self.at)?;
                self.at += 1;
                self.zeros = 0;
            }
            self.zeros = if byte == 0 { self.zeros + 1 } else { 0 };
            (self.current, self.left) = (byte, 8);
        }
        self.left -= 1;
        Some(u32::from(self.current >> self.left & 1))
    }

    /// `count` bits, at most 32.
    fn u(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0u32, |value, _| Some(value << 1 | self.bit()?))
    }

    /// Exp-Golomb, unsigned.
    fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.bit()? == 0 {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        Some(((1u64 << zeros) - 1 + u64::from(self.u(zeros)?)) as u32)
    }

    /// Exp-Golomb, signed.
    fn se(&mut self) -> Option<i32> {
        let code = i64::from(self.ue()?);
        i32::try_from(if code % 2 == 0 {
            -(code / 2)
        } else {
            code / 2 + 1
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_parameter_set_is_understood() {
        // High profile, 1920x1080 cropped from 1088, 30 frames a second, bt709 unstated.
        let nal = [
            103, 100, 0, 40, 172, 217, 64, 120, 2, 39, 229, 132, 0, 0, 3, 0, 4, 0, 0, 3, 0, 240,
            60, 96, 198, 88,
        ];
        let sps = Sps::parse(&nal).unwrap();
        assert_eq!(
            (sps.width, sps.height, sps.profile, sps.bit_depth),
            (1920, 1080, 100, 8)
        );
        assert_eq!(sps.coded_pixels, 1920 * 1088);
        assert_eq!(sps.rate, Rate::new(30, 1));
        sps.check_supported("it").unwrap();
        assert_eq!(sps.color(None).unwrap().matrix, Matrix::Bt709);
        for length in 0..12 {
            assert_eq!(Sps::parse(&nal[..length]), None, "{length}");
        }
    }
}
