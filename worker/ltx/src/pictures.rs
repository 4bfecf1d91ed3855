//! Pictures before they are encoded and after they were decoded: cut, padded and scaled.

use crate::types::Video;
use serde::{Deserialize, Serialize};

/// RGB pictures of one size as the VAE takes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pictures {
    /// Pictures.
    pub frames: usize,
    /// Pixel rows.
    pub height: usize,
    /// Pixel columns.
    pub width: usize,
    /// Samples in -1..1, `[frames, height, width, 3]`.
    #[serde(skip)]
    pub values: Vec<f32>,
}

impl From<&Video> for Pictures {
    fn from(video: &Video) -> Self {
        Self {
            frames: video.frames,
            height: video.height,
            width: video.width,
            values: video
                .rgb
                .iter()
                .map(|&v| f32::from(v) / 127.5 - 1.0)
                .collect(),
        }
    }
}

impl Pictures {
    /// The pictures in the middle of larger, grey ones: how the official code brings them to whole
    /// latent cells. The margin is larger by one at the right and at the bottom if it is odd.
    /// Sides that are not larger stay as they are.
    pub fn padded(&self, height: usize, width: usize) -> Self {
        let (height, width) = (height.max(self.height), width.max(self.width));
        let (top, left) = ((height - self.height) / 2, (width - self.width) / 2);
        let mut values = vec![0.0; self.frames * height * width * 3];
        let (line, source) = (3 * width, 3 * self.width);
        for (row, pixels) in self.values.chunks_exact(source.max(1)).enumerate() {
            let (frame, y) = (row / self.height, row % self.height);
            let at = (frame * height + top + y) * line + 3 * left;
            values[at..at + source].copy_from_slice(pixels);
        }
        Self {
            frames: self.frames,
            height,
            width,
            values,
        }
    }
}

impl Pictures {
    /// The pictures at the top left of larger ones, their last row and column repeated.
    pub fn extended(&self, height: usize, width: usize) -> Self {
        let (height, width) = (height.max(self.height), width.max(self.width));
        let mut values = Vec::with_capacity(self.frames * height * width * 3);
        for frame in 0..self.frames {
            for row in 0..height {
                let row = frame * self.height + row.min(self.height - 1);
                let pixels = &self.values[3 * row * self.width..][..3 * self.width];
                values.extend_from_slice(pixels);
                let last = &pixels[3 * (self.width - 1)..];
                (self.width..width).for_each(|_| values.extend_from_slice(last));
            }
        }
        Self {
            frames: self.frames,
            height,
            width,
            values,
        }
    }

    /// Scaled as [`Video::resized`] does.
    pub fn resized(self, height: usize, width: usize) -> Self {
        if (height, width) == (self.height, self.width) {
            return self;
        }
        let values = scaled(&self.values, self.height, self.width, height, width);
        Self {
            frames: self.frames,
            height,
            width,
            values: values.collect(),
        }
    }
}

impl Video {
    /// The first `frames` pictures, cut to `height` rows and `width` columns that begin at row
    /// `top` and column `left`; what lies outside is left out.
    pub fn cropped(
        &self,
        frames: usize,
        [top, left]: [usize; 2],
        height: usize,
        width: usize,
    ) -> Self {
        let frames = frames.min(self.frames);
        let (top, left) = (top.min(self.height), left.min(self.width));
        let (height, width) = (height.min(self.height - top), width.min(self.width - left));
        let mut rgb = Vec::with_capacity(frames * height * width * 3);
        for picture in self.pictures().take(frames) {
            for row in top..top + height {
                let at = 3 * (row * self.width + left);
                rgb.extend_from_slice(&picture[at..at + 3 * width]);
            }
        }
        Self {
            frames,
            height,
            width,
            rgb,
        }
    }

    /// Scaled with linear weights between the nearest samples, centres aligned, without a wider
    /// filter for smaller pictures: `torch.nn.functional.interpolate(mode="bilinear")`.
    pub fn resized(&self, height: usize, width: usize) -> Self {
        if (height, width) == (self.height, self.width) {
            return self.clone();
        }
        let rgb = scaled(&self.rgb, self.height, self.width, height, width);
        Self {
            frames: self.frames,
            height,
            width,
            rgb: rgb.map(|v| v.round_ties_even() as u8).collect(),
        }
    }
}

/// Pictures `[.., height, width, 3]` scaled to `to_height` x `to_width`, sample by sample.
fn scaled<T: Copy + Into<f32>>(
    samples: &[T],
    height: usize,
    width: usize,
    to_height: usize,
    to_width: usize,
) -> impl Iterator<Item = f32> {
    let (rows, columns) = (taps(height, to_height), taps(width, to_width));
    let pictures = samples.chunks_exact((3 * height * width).max(1));
    pictures.flat_map(move |picture| {
        let at = move |y: usize, x: usize, c: usize| picture[3 * (y * width + x) + c].into();
        let mut out = Vec::with_capacity(3 * to_height * to_width);
        for &(y, y_next, below) in &rows {
            for &(x, x_next, right) in &columns {
                for c in 0..3 {
                    let mix = |y| at(y, x, c) * (1.0 - right) + at(y, x_next, c) * right;
                    out.push(mix(y) * (1.0 - below) + mix(y_next) * below);
                }
            }
        }
        out
    })
}

/// For each of `to` samples of a side of `from`, its two neighbours and the weight of the second.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f32 / to as f32;
    let tap = |i: usize| {
        let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let first = (at as usize).min(from - 1);
        (first, (first + 1).min(from - 1), at - first as f32)
    };
    (0..to).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(height: usize, width: usize) -> Video {
        Video {
            frames: 1,
            height,
            width,
            rgb: (0..height * width)
                .flat_map(|i| [(i % width * 10) as u8, (i / width * 20) as u8, 7])
                .collect(),
        }
    }

    #[test]
    fn pictures_are_scaled_between_neighbours() {
        let twice = ramp(2, 3).resized(4, 6);
        let red: Vec<u8> = twice.rgb.iter().step_by(3).take(6).copied().collect();
        assert_eq!(red, [0, 2, 8, 12, 18, 20]); // 0, 2.5, 7.5, 12.5, 17.5, 20; ties to even
        let green: Vec<u8> = twice.rgb.iter().skip(1).step_by(18).copied().collect();
        assert_eq!(green, [0, 5, 15, 20]);
        assert_eq!(ramp(2, 3).resized(2, 3), ramp(2, 3));
    }

    #[test]
    fn padding_and_cropping_undo_each_other() {
        let video = ramp(2, 3);
        let padded = Pictures::from(&video).padded(5, 4);
        assert_eq!((padded.height, padded.width), (5, 4));
        // One row above, two below; no column in front, one behind.
        assert_eq!(padded.values[..12], [0.0; 12]);
        assert_eq!(padded.values[12..15], [-1.0, -1.0, 7.0 / 127.5 - 1.0]);
        let extended = Pictures::from(&video).extended(3, 4);
        assert_eq!(extended.values[9..12], extended.values[6..9]);
        assert_eq!(extended.values[24..], extended.values[12..24]);
        let large = ramp(5, 4).cropped(9, [1, 1], 2, 9);
        assert_eq!((large.frames, large.height, large.width), (1, 2, 3));
        assert_eq!(large.rgb[..3], [10, 20, 7]);
    }
}
