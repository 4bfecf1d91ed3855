//! One picture from JPEG, which is only ever read.

use super::{MediaError, Result};
use crate::Frame;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Longest side of a JPEG, by its format.
const SIDE_MAX: usize = 65_535;

/// Whether a file that begins so is a JPEG.
pub(super) fn is_jpeg(head: &[u8]) -> bool {
    head.starts_with(&[0xff, 0xd8, 0xff])
}

/// Any JPEG as 8-bit RGB, as its pixels are stored: the orientation that a camera notes beside them
/// is not applied. `what` names it in errors.
pub fn decode_jpeg(bytes: &[u8], what: &str) -> Result<Frame> {
    let options = DecoderOptions::default()
        .set_strict_mode(true) // half a picture is none
        .set_max_width(SIDE_MAX)
        .set_max_height(SIDE_MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let damaged = |why: String| MediaError::damaged(what, why);
    let headers = decoder.decode_headers();
    headers.map_err(|error| damaged(error.to_string()))?;
    let size = decoder.dimensions();
    let (width, height) = size.ok_or_else(|| damaged("it has no size".to_owned()))?;
    if (width * height) as u64 > super::png::PIXELS_MAX {
        return Err(MediaError::Unsupported {
            what: what.to_owned(),
            feature: format!("a picture of {width}x{height}"),
        });
    }
    let rgb = decoder.decode();
    let rgb = rgb.map_err(|error| damaged(error.to_string()))?;
    // Both sides were found to fit 16 bits.
    Frame::from_rgb8(width as u32, height as u32, rgb)
        .ok_or_else(|| damaged("its pixels do not fill its size".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8x8 pixels, left half red, right half blue, written by Pillow at quality 95 without chroma
    /// subsampling.
    const HALVES: &[u8] = include_bytes!("../../tests/halves.jpg");

    #[test]
    fn a_picture_is_read() {
        let frame = decode_jpeg(HALVES, "halves.jpg").expect("a picture");
        assert_eq!((frame.width(), frame.height()), (8, 8));
        let pixel = |x: usize| &frame.data()[3 * (8 * 4 + x)..][..3];
        let near = |pixel: &[u8], wanted: [u8; 3]| {
            let far = pixel.iter().zip(wanted).map(|(&a, b)| a.abs_diff(b));
            far.max().unwrap_or(255) <= 12
        };
        assert!(near(pixel(0), [255, 0, 0]), "{:?}", pixel(0));
        assert!(near(pixel(7), [0, 0, 255]), "{:?}", pixel(7));
    }

    #[test]
    fn damage_is_an_error() {
        for cut in [3, 20, HALVES.len() / 2, HALVES.len() - 40] {
            let error = decode_jpeg(&HALVES[..cut], "cut.jpg").expect_err("cut short");
            assert!(error.to_string().contains("cut.jpg"), "{error}");
        }
    }
}
