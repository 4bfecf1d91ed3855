//! What the official program does to its input: a slight blur, and a round trip through H.264. A still
//! picture is sharper than any frame of a film, and a model that has seen films takes that for a
//! sign that nothing will move.

use longtake_common::Frame;
use longtake_common::media::{ChunkEncoder, MediaError, check_size, read_chunk};
use longtake_common::spec::Codec;
use longtake_ltx::Video;

/// Quantiser of the round trip; the official program asks x264 for a rate factor of 29.
const QP: u8 = 29;
/// Standard deviation of the blur over three samples, in pixels.
const SIGMA: f64 = 1.0;

/// Blurred, and through H.264 where that can store pictures of this size. Each picture is coded by
/// itself.
pub fn soften(video: Video) -> Result<Video, MediaError> {
    let (width, height) = (video.width as u32, video.height as u32);
    let is_coded = check_size(Codec::H264, width, height).is_ok();
    let mut rgb = Vec::with_capacity(video.rgb.len());
    for picture in video.pictures() {
        let blurred = blurred(picture, video.height, video.width);
        if is_coded {
            rgb.extend(coded(blurred, width, height)?);
        } else {
            rgb.extend(blurred);
        }
    }
    Ok(Video { rgb, ..video })
}

fn coded(rgb: Vec<u8>, width: u32, height: u32) -> Result<Vec<u8>, MediaError> {
    let empty = || MediaError::EmptyPicture { width, height };
    let frame = Frame::from_rgb8(width, height, rgb).ok_or_else(empty)?;
    let mut encoder = ChunkEncoder::with_qp(width, height, 1.0, QP)?;
    encoder.push(&frame)?;
    let decoded = read_chunk(&encoder.finish()?)?.next();
    Ok(decoded.ok_or_else(empty)??.data().to_vec())
}

/// `torchvision.transforms.functional.gaussian_blur` with three taps: edges are reflected.
fn blurred(rgb: &[u8], height: usize, width: usize) -> Vec<u8> {
    let side = libm::exp(-0.5 / (SIGMA * SIGMA));
    let weights = [side, 1.0, side].map(|w| w / (1.0 + 2.0 * side));
    let at = |y: usize, x: usize, c: usize| f64::from(rgb[3 * (y * width + x) + c]);
    let rows = near(height);
    let columns = near(width);
    let mut out = Vec::with_capacity(rgb.len());
    for row in &rows {
        for column in &columns {
            for c in 0..3 {
                let line = |y: usize| -> f64 {
                    (column.iter().zip(weights))
                        .map(|(&x, w)| w * at(y, x, c))
                        .sum()
                };
                let sum: f64 = row.iter().zip(weights).map(|(&y, w)| w * line(y)).sum();
                out.push(sum.round() as u8);
            }
        }
    }
    out
}

/// Each of `count` places between its neighbours; those beyond an edge are reflected.
fn near(count: usize) -> Vec<[usize; 3]> {
    let last = count - 1;
    let place = |i: usize| {
        let before = if i == 0 { 1.min(last) } else { i - 1 };
        let after = if i == last {
            last.saturating_sub(1)
        } else {
            i + 1
        };
        [before, i, after]
    };
    (0..count).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_is_spread_as_torchvision_spreads_it() {
        let mut rgb = vec![0; 3 * 25];
        rgb[3 * 12..3 * 13].fill(255);
        let out = blurred(&rgb, 5, 5);
        let row: Vec<u8> = out
            .iter()
            .skip(3 * 10)
            .step_by(3)
            .take(5)
            .copied()
            .collect();
        // 255 times 0.2741 and 0.4519, times 0.4519.
        assert_eq!(row, [0, 32, 52, 32, 0]);
    }

    #[test]
    fn pictures_keep_their_look() {
        let ramp = |i: usize| [(i % 32 * 8) as u8, (i / 32 * 8) as u8, 128];
        let video = Video {
            frames: 2,
            height: 32,
            width: 32,
            rgb: (0..2).flat_map(|_| (0..32 * 32).flat_map(ramp)).collect(),
        };
        let soft = soften(video.clone()).expect("softened");
        assert_eq!(soft.rgb.len(), video.rgb.len());
        let far = soft.rgb.iter().zip(&video.rgb);
        let mean =
            far.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / video.rgb.len() as f64;
        assert!(mean > 0.0 && mean < 8.0, "{mean}");
    }
}
