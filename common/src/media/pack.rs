//! Frame packs: lossless pictures in one piece, for the overlaps that seams are made of and for
//! films that are stored as PNG.
//!
//! Layout, little-endian: `LTPACK01`, width u32, height u32, frame count u32, then for each frame its
//! length u32 and that many bytes of PNG.

use super::{MediaError, Result, decode_png, encode_png};
use crate::Frame;
use std::io::{self, Read};

/// First bytes of a pack.
pub(super) const MAGIC: &[u8; 8] = b"LTPACK01";
const COUNT_AT: usize = 16;
const HEADER_BYTES: usize = 20;

/// Writes a pack frame by frame.
#[derive(Default)]
pub struct PackWriter {
    out: Vec<u8>,
    size: Option<(u32, u32)>,
    frame_count: u32,
}

impl PackWriter {
    /// An empty pack; the first frame sets its size.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a frame.
    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        let size = (frame.width(), frame.height());
        let expected = *self.size.get_or_insert(size);
        if size != expected {
            return Err(MediaError::SizeChanged {
                what: "a frame pack".to_owned(),
                frame: self.frame_count.into(),
                width: size.0,
                height: size.1,
                expected_width: expected.0,
                expected_height: expected.1,
            });
        }
        let png = encode_png(frame)?;
        if self.out.is_empty() {
            self.out.extend_from_slice(MAGIC);
            for value in [size.0, size.1, 0] {
                self.out.extend_from_slice(&value.to_le_bytes());
            }
        }
        self.out
            .extend_from_slice(&(png.len() as u32).to_le_bytes());
        self.out.extend_from_slice(&png);
        self.frame_count += 1;
        Ok(())
    }

    /// Frames so far.
    pub fn frame_count(&self) -> u32 {
        self.frame_count
    }

    /// The pack. An error when nothing was pushed.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        if self.frame_count == 0 {
            return Err(MediaError::NoFrames("a frame pack".to_owned()));
        }
        self.out[COUNT_AT..HEADER_BYTES].copy_from_slice(&self.frame_count.to_le_bytes());
        Ok(self.out)
    }
}

/// A pack of `frames`, which must not be empty and of one size.
pub fn write_pack<'a>(frames: impl IntoIterator<Item = &'a Frame>) -> Result<Vec<u8>> {
    let mut pack = PackWriter::new();
    for frame in frames {
        pack.push(frame)?;
    }
    pack.finish()
}

/// Frames of a pack, one at a time.
pub fn read_pack(bytes: &[u8]) -> Result<PackReader<&[u8]>> {
    PackReader::new(bytes, "a frame pack")
}

/// Reads a pack from anywhere, holding one frame at a time. After an error it ends.
pub struct PackReader<R> {
    reader: R,
    what: String,
    width: u32,
    height: u32,
    frame_count: u32,
    next: u32,
    done: bool,
}

impl<R: Read> PackReader<R> {
    /// `what` names the source in errors.
    pub fn new(mut reader: R, what: impl Into<String>) -> Result<Self> {
        let what = what.into();
        let mut header = [0; HEADER_BYTES];
        reader
            .read_exact(&mut header)
            .map_err(|error| broken(&what, "its header", error))?;
        if &header[..8] != MAGIC {
            return Err(MediaError::damaged(
                what,
                "it does not begin like a frame pack",
            ));
        }
        let field = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (width, height, frame_count) = (field(8), field(12), field(COUNT_AT));
        if width == 0 || height == 0 || frame_count == 0 {
            return Err(MediaError::damaged(what, "its header names no frames"));
        }
        Ok(Self {
            reader,
            what,
            width,
            height,
            frame_count,
            next: 0,
            done: false,
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

    /// Frames in all, as the header says.
    pub fn frame_count(&self) -> u32 {
        self.frame_count
    }

    fn read_frame(&mut self) -> Result<Frame> {
        let label = format!("frame {}", self.next);
        let mut length = [0; 4];
        self.reader
            .read_exact(&mut length)
            .map_err(|error| broken(&self.what, &label, error))?;
        let length = u64::from(u32::from_le_bytes(length));
        // A PNG is never much larger than its raw pixels, so a wild length is found out before it is
        // read; `take` keeps memory to what is really there.
        let raw = 3 * u64::from(self.width) * u64::from(self.height);
        if length > raw + raw / 64 + u64::from(self.height) + 4096 {
            return Err(MediaError::damaged(
                &self.what,
                format!("{label} claims {length} bytes"),
            ));
        }
        let mut png = Vec::new();
        let read = self.reader.by_ref().take(length).read_to_end(&mut png);
        let read = read.map_err(|error| broken(&self.what, &label, error))?;
        if (read as u64) < length {
            return Err(MediaError::damaged(
                &self.what,
                format!("it ends inside {label}"),
            ));
        }
        let frame = decode_png(
            &png,
            &format!("{}, {label}", self.what),
            Some((self.width, self.height)),
        )?;
        self.next += 1;
        if self.next == self.frame_count {
            let extra = self.reader.by_ref().take(1).read_to_end(&mut Vec::new());
            if extra.map_err(|error| broken(&self.what, "its end", error))? > 0 {
                return Err(MediaError::damaged(
                    &self.what,
                    "bytes follow the last frame",
                ));
            }
        }
        Ok(frame)
    }
}

fn broken(what: &str, part: &str, error: io::Error) -> MediaError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => MediaError::damaged(what, format!("it ends inside {part}")),
        _ => MediaError::damaged(what, format!("{part} cannot be read: {error}")),
    }
}

impl<R: Read> Iterator for PackReader<R> {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        if self.done || self.next == self.frame_count {
            return None;
        }
        let frame = self.read_frame();
        self.done = frame.is_err();
        Some(frame)
    }
}
