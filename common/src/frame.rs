//! One picture in memory.

use std::borrow::Cow;

/// One channel of a pixel: 8 or 16 bits of the full range.
pub trait Sample: Copy + Default + PartialEq + Send + Sync + 'static {
    /// Bits of it.
    const BITS: u32;

    /// In steps of 1/255 of the full range, in which everything is computed.
    fn level(self) -> f32;

    /// The value nearest to `level`; an end of the range beyond it.
    fn nearest(level: f32) -> Self;

    /// The nearest colour of 8 bits.
    fn to_u8(self) -> u8;

    /// The nearest colour.
    fn from_u16(value: u16) -> Self;

    /// The same colours.
    fn of_bytes(bytes: Vec<u8>) -> Vec<Self>;

    /// The nearest colours of 8 bits.
    fn into_bytes(samples: Vec<Self>) -> Vec<u8>;

    /// As in PNG files and ffmpeg's pipes: the higher byte first.
    fn big_endian(samples: &[Self]) -> Cow<'_, [u8]>;

    /// From such bytes; some at the end that fill no sample are left out.
    fn from_big_endian(bytes: Vec<u8>) -> Vec<Self>;
}

impl Sample for u8 {
    const BITS: u32 = 8;

    fn level(self) -> f32 {
        f32::from(self)
    }

    fn nearest(level: f32) -> Self {
        // The cast saturates at both ends.
        (level + 0.5) as u8
    }

    fn to_u8(self) -> u8 {
        self
    }

    fn from_u16(value: u16) -> Self {
        ((u32::from(value) * 255 + 32_767) / 65_535) as u8
    }

    fn of_bytes(bytes: Vec<u8>) -> Vec<Self> {
        bytes
    }

    fn into_bytes(samples: Vec<Self>) -> Vec<u8> {
        samples
    }

    fn big_endian(samples: &[Self]) -> Cow<'_, [u8]> {
        samples.into()
    }

    fn from_big_endian(bytes: Vec<u8>) -> Vec<Self> {
        bytes
    }
}

impl Sample for u16 {
    const BITS: u32 = 16;

    fn level(self) -> f32 {
        f32::from(self) / 257.0
    }

    fn nearest(level: f32) -> Self {
        // The cast saturates at both ends.
        (level * 257.0 + 0.5) as u16
    }

    fn to_u8(self) -> u8 {
        u8::from_u16(self)
    }

    fn from_u16(value: u16) -> Self {
        value
    }

    fn of_bytes(bytes: Vec<u8>) -> Vec<Self> {
        bytes
            .into_iter()
            .map(|byte| u16::from(byte) * 257)
            .collect()
    }

    fn into_bytes(samples: Vec<Self>) -> Vec<u8> {
        samples.into_iter().map(Self::to_u8).collect()
    }

    fn big_endian(samples: &[Self]) -> Cow<'_, [u8]> {
        let bytes: Vec<u8> = samples.iter().flat_map(|s| s.to_be_bytes()).collect();
        bytes.into()
    }

    fn from_big_endian(bytes: Vec<u8>) -> Vec<Self> {
        let (pairs, _) = bytes.as_chunks::<2>();
        pairs
            .iter()
            .map(|&pair| Self::from_be_bytes(pair))
            .collect()
    }
}

/// An RGB picture, rows top to bottom, channels interleaved, 8 bits a channel unless said otherwise.
///
/// `data.len() == 3 * width * height`; the constructors keep that true.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame<S = u8> {
    width: u32,
    height: u32,
    data: Vec<S>,
}

impl Frame {
    /// Wraps `data` (`[height, width, 3]`, row-major). Returns `None` when the length does not fit.
    pub fn from_rgb8(width: u32, height: u32, data: Vec<u8>) -> Option<Self> {
        Self::from_samples(width, height, data)
    }

    /// A black picture.
    pub fn black(width: u32, height: u32) -> Self {
        Self {
            width,
            height,
            data: vec![0; 3 * width as usize * height as usize],
        }
    }
}

impl<S: Sample> Frame<S> {
    /// The same picture with samples of this kind.
    pub fn of_eight_bits(frame: Frame) -> Self {
        Self {
            width: frame.width,
            height: frame.height,
            data: S::of_bytes(frame.data),
        }
    }

    /// Wraps `data` (`[height, width, 3]`, row-major). Returns `None` when the length does not fit.
    pub fn from_samples(width: u32, height: u32, data: Vec<S>) -> Option<Self> {
        (data.len() == 3 * width as usize * height as usize).then_some(Self {
            width,
            height,
            data,
        })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The samples, `[height, width, 3]`.
    pub fn data(&self) -> &[S] {
        &self.data
    }

    /// The samples, writable.
    pub fn data_mut(&mut self) -> &mut [S] {
        &mut self.data
    }

    /// The three channels at (`x`, `y`). Panics outside the picture, as slices do.
    pub fn pixel(&self, x: u32, y: u32) -> [S; 3] {
        let at = 3 * (y as usize * self.width as usize + x as usize);
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }

    /// The picture in 8 bits a channel, each sample the nearest.
    pub fn rounded(self) -> Frame {
        Frame {
            width: self.width,
            height: self.height,
            data: S::into_bytes(self.data),
        }
    }

    /// The top-left `width` x `height` part; `self` when it is not larger than that.
    pub fn cropped(self, width: u32, height: u32) -> Self {
        if self.width <= width && self.height <= height {
            return self;
        }
        let (w, h) = (width.min(self.width), height.min(self.height));
        let mut data = Vec::with_capacity(3 * w as usize * h as usize);
        for row in self
            .data
            .chunks_exact(3 * self.width as usize)
            .take(h as usize)
        {
            data.extend_from_slice(&row[..3 * w as usize]);
        }
        Self {
            width: w,
            height: h,
            data,
        }
    }
}

impl<S> std::fmt::Debug for Frame<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_keep_their_colour() {
        for value in 0..=u8::MAX {
            assert_eq!(u8::nearest(value.level()), value);
            let deep = u16::of_bytes(vec![value])[0];
            assert_eq!((deep.level(), deep.to_u8()), (value.level(), value));
        }
        for value in 0..=u16::MAX {
            assert_eq!(u16::nearest(value.level()), value);
        }
        assert_eq!((u16::nearest(-3.0), u16::nearest(300.0)), (0, u16::MAX));
        let bytes = u16::big_endian(&[0x1234, 0xff00]).into_owned();
        assert_eq!(bytes, [0x12, 0x34, 0xff, 0x00]);
        assert_eq!(u16::from_big_endian(bytes), [0x1234, 0xff00]);
    }

    #[test]
    fn deep_pictures_are_rounded() {
        let deep = Frame::from_samples(1, 1, vec![0u16, 128, 65_535]).expect("a pixel");
        let rounded = deep.rounded();
        assert_eq!(rounded.data(), [0, 0, 255]);
        let again = Frame::<u16>::of_eight_bits(rounded.clone());
        assert!(again.rounded() == rounded);
    }
}
