//! One picture in memory.

/// An 8-bit RGB picture, rows top to bottom, channels interleaved.
///
/// `data.len() == 3 * width * height`; the constructors keep that true.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Frame {
    /// Wraps `data` (`[height, width, 3]`, row-major). Returns `None` when the length does not fit.
    pub fn from_rgb8(width: u32, height: u32, data: Vec<u8>) -> Option<Self> {
        (data.len() == 3 * width as usize * height as usize).then_some(Self {
            width,
            height,
            data,
        })
    }

    /// A black picture.
    pub fn black(width: u32, height: u32) -> Self {
        Self {
            width,
            height,
            data: vec![0; 3 * width as usize * height as usize],
        }
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
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The samples, writable.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// The three channels at (`x`, `y`). Panics outside the picture, as slices do.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let at = 3 * (y as usize * self.width as usize + x as usize);
        [self.data[at], self.data[at + 1], self.data[at + 2]]
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

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({}x{})", self.width, self.height)
    }
}
