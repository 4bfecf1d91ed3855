//! One error type for everything that goes in or out as pictures.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a video. The text names the thing and the way out; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// A side is odd, which 4:2:0 cannot store.
    #[error(
        "{width}x{height} cannot be stored as H.264: both sides must be even; \
         ask for {}x{} or {}x{}, or write a PNG sequence",
        width & !1, height & !1, width.saturating_add(width & 1), height.saturating_add(height & 1)
    )]
    OddSize {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// Larger or smaller than the encoder takes.
    #[error(
        "{width}x{height} cannot be stored as H.264: sides must be at least 16 and at most 4096 \
         pixels with {max} pixels in all; ask for another size or write a PNG sequence",
        max = super::h264::MAX_PIXELS
    )]
    SizeOutOfRange {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// No pixels.
    #[error("a picture of {width}x{height} has no pixels; both sides must be positive")]
    EmptyPicture {
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
    },
    /// Frames a second that no file can carry.
    #[error("{0} frames a second cannot be stored: give a number above 0 and at most 1000")]
    BadRate(f64),
    /// A frame of another size than the ones before.
    #[error(
        "{what}: frame {frame} is {width}x{height} where {expected_width}x{expected_height} was expected"
    )]
    SizeChanged {
        /// The file or stream.
        what: String,
        /// Which frame, from 0.
        frame: u64,
        /// Its size.
        width: u32,
        /// Its size.
        height: u32,
        /// Size of those before.
        expected_width: u32,
        /// Size of those before.
        expected_height: u32,
    },
    /// The encoder library refused.
    #[error("the H.264 encoder failed to {step} (code {code})")]
    Encoder {
        /// What it was asked to do.
        step: &'static str,
        /// Its answer.
        code: i64,
    },
    /// Nothing to encode or to mux.
    #[error("{0} has no frames; at least one is needed")]
    NoFrames(String),
    /// Chunks that one track cannot hold.
    #[error(
        "chunk {chunk} was encoded with other parameters than the first one, so the two cannot share \
         a track; render it again with the same version of longtake"
    )]
    ParameterSetsDiffer {
        /// Which chunk, from 0.
        chunk: u32,
    },
    /// Bytes that are not what they should be.
    #[error("{what} is damaged or incomplete: {why}")]
    Damaged {
        /// The file or artifact.
        what: String,
        /// What was found.
        why: String,
    },
    /// Sound, but beyond this reader.
    #[error(
        "{what}: {feature} is not supported; convert it first, for instance with \
         `ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4`"
    )]
    Unsupported {
        /// The file.
        what: String,
        /// What it uses.
        feature: String,
    },
    /// Not a video at all.
    #[error(
        "{0} is not a video that can be read: give an MP4 with H.264, a .h264 stream, a PNG or JPEG, a folder of PNGs or DIR/%06d.png"
    )]
    NotAVideo(PathBuf),
    /// Nothing there.
    #[error("{0} does not exist")]
    NotFound(PathBuf),
    /// A hole in a numbered sequence.
    #[error(
        "the sequence {pattern} has no frame {missing} although later ones exist; restore it or renumber the files"
    )]
    Gap {
        /// The pattern.
        pattern: String,
        /// Number of the file that is not there.
        missing: u64,
    },
    /// A pattern without exactly one number.
    #[error(
        "'{0}' is not a pattern for a PNG sequence: the file name must hold exactly one %d or %06d and end in .png"
    )]
    BadPattern(String),
    /// Reading or writing failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// ffmpeg failed.
    #[error("ffmpeg could not {action} {what}: {why}")]
    External {
        /// What was tried.
        action: &'static str,
        /// On which file.
        what: String,
        /// Its last words.
        why: String,
    },
    /// A PNG could not be written.
    #[error("a frame cannot be stored as PNG")]
    PngEncode(#[source] ::png::EncodingError),
}

impl MediaError {
    pub(super) fn damaged(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged {
            what: what.into(),
            why: why.into(),
        }
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Result with a [`MediaError`].
pub type Result<T> = std::result::Result<T, MediaError>;
