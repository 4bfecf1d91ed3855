//! One picture as PNG.

use super::{MediaError, Result};
use crate::{Frame, Sample};
use png::{BitDepth, ColorType, Transformations};
use std::io::Cursor;

/// Largest picture that is read, in pixels: keeps a forged header from asking for all memory.
pub(super) const PIXELS_MAX: u64 = 1 << 28;

/// RGB, quickly compressed; the same frame gives the same bytes.
pub fn encode_png<S: Sample>(frame: &Frame<S>) -> Result<Vec<u8>> {
    let (width, height) = (frame.width(), frame.height());
    if width == 0 || height == 0 {
        return Err(MediaError::EmptyPicture { width, height });
    }
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(match S::BITS {
        8 => BitDepth::Eight,
        _ => BitDepth::Sixteen,
    });
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(MediaError::PngEncode)?;
    writer
        .write_image_data(&S::big_endian(frame.data()))
        .map_err(MediaError::PngEncode)?;
    writer.finish().map_err(MediaError::PngEncode)?;
    Ok(out)
}

/// Any PNG as RGB: grey is spread over the channels, palettes are looked up, alpha is dropped,
/// 16 bits are rounded where 8 are wanted. `what` names it in errors; `expected` is the size it must
/// have.
pub fn decode_png<S: Sample>(
    bytes: &[u8],
    what: &str,
    expected: Option<(u32, u32)>,
) -> Result<Frame<S>> {
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
    let samples: Vec<S> = match output.bit_depth {
        BitDepth::Sixteen => {
            let deep = u16::from_big_endian(samples);
            deep.into_iter().map(S::from_u16).collect()
        }
        _ => S::of_bytes(samples),
    };
    let rgb = to_rgb(samples, output.color_type);
    Frame::from_samples(width, height, rgb)
        .ok_or_else(|| MediaError::damaged(what, "its pixels do not fill its size"))
}

/// Whether a PNG that begins like this has more than 8 bits a channel.
pub(super) fn is_deep(head: &[u8]) -> bool {
    // Signature, length and name of the first chunk, width, height, depth.
    head.get(24).is_some_and(|&depth| depth > 8)
}

/// Bytes of a PNG after which [`is_deep`] can be told.
pub(super) const HEAD_BYTES: u64 = 25;

fn to_rgb<S: Sample>(samples: Vec<S>, color: ColorType) -> Vec<S> {
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
