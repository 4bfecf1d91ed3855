//! One picture as PNG.

use super::{MediaError, Result};
use crate::Frame;
use png::{BitDepth, ColorType, Transformations};
use std::io::Cursor;

/// Largest picture that is read, in pixels: keeps a forged header from asking for all memory.
pub(super) const PIXELS_MAX: u64 = 1 << 28;

/// 8-bit RGB, quickly compressed; the same frame gives the same bytes.
pub fn encode_png(frame: &Frame) -> Result<Vec<u8>> {
    let (width, height) = (frame.width(), frame.height());
    if width == 0 || height == 0 {
        return Err(MediaError::EmptyPicture { width, height });
    }
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(MediaError::PngEncode)?;
    writer
        .write_image_data(frame.data())
        .map_err(MediaError::PngEncode)?;
    writer.finish().map_err(MediaError::PngEncode)?;
    Ok(out)
}

/// Any PNG as 8-bit RGB: grey is spread over the channels, palettes are looked up, alpha is dropped,
/// 16 bits are rounded to 8. `what` names it in errors; `expected` is the size it must have.
pub fn decode_png(bytes: &[u8], what: &str, expected: Option<(u32, u32)>) -> Result<Frame> {
    let damaged = |error: png::DecodingError| MediaError::damaged(what, error.to_string());
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(damaged)?;
    let (width, height) = info.size();
    if expected.is_some_and(|size| size != (width, height)) {
        return Err(MediaError::damaged(
            what,
            format!("it is {width}x{height}, which it should not be"),
        ));
    }
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        let feature = format!("a picture of {width}x{height}");
        return Err(MediaError::Unsupported {
            what: what.to_owned(),
            feature,
        });
    }
    let mut reader = decoder.read_info().map_err(damaged)?;
    let Some(length) = reader.output_buffer_size() else {
        return Err(MediaError::damaged(what, "its size overflows"));
    };
    let mut samples = vec![0; length];
    let output = reader.next_frame(&mut samples).map_err(damaged)?;
    samples.truncate(output.buffer_size());
    let samples = if output.bit_depth == BitDepth::Sixteen {
        to_eight_bits(&samples)
    } else {
        samples
    };
    let rgb = to_rgb(samples, output.color_type);
    Frame::from_rgb8(width, height, rgb)
        .ok_or_else(|| MediaError::damaged(what, "its pixels do not fill its size"))
}

/// Rounds big-endian 16-bit samples to the nearest of 255 steps.
fn to_eight_bits(samples: &[u8]) -> Vec<u8> {
    let round = |pair: &[u8]| {
        let value = u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        ((value * 255 + 32_767) / 65_535) as u8
    };
    samples.chunks_exact(2).map(round).collect()
}

fn to_rgb(samples: Vec<u8>, color: ColorType) -> Vec<u8> {
    match color {
        ColorType::Rgb | ColorType::Indexed => samples,
        ColorType::Rgba => samples
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        ColorType::Grayscale => samples.iter().flat_map(|&grey| [grey; 3]).collect(),
        ColorType::GrayscaleAlpha => samples.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
    }
}
