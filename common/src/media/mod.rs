//! Video in and out: chunks of H.264 that can be put side by side without encoding again, lossless
//! frame packs, MP4 files made of chunks, and readers for what users bring.
//!
//! Knows no job, no seam and no model. Start with [`ChunkWriter`] (frames to an artifact),
//! [`Muxer`] (chunks to a film) and [`open_video`] (a file to frames).
//!
//! Everything written here is a pure function of its input: the same frames give the same bytes,
//! and no file carries a clock, a host or a path.

mod annexb;
mod chunk;
mod color;
mod decoder;
mod demux;
mod error;
mod external;
mod h264;
mod jpeg;
mod mux;
mod pack;
mod png;
mod rate;
mod read;
mod samples;
mod sequence;
mod sps;
mod tags;
mod temporary;

pub use annexb::{ParameterSets, parameter_sets};
pub use chunk::{ChunkReader, ChunkWriter, encode_chunk, read_chunk};
pub use color::{ColorSpace, Matrix, Yuv420};
pub use error::{MediaError, Result};
pub use external::{
    ExternalCodec, ExternalInfo, ExternalReader, ExternalWriter, Ffmpeg, SoundPart,
};
pub use h264::{ChunkEncoder, DEFAULT_QP, MAX_PIXELS};
pub use jpeg::decode_jpeg;
pub use mux::{MuxReport, Muxer};
pub use pack::{PackReader, PackWriter, read_pack, write_pack};
pub use png::{decode_png, encode_png};
pub use rate::Rate;
pub use read::{VideoInfo, VideoReader, open_video};
pub use sequence::{
    check_sequence, is_sequence, stranger_in_sequence, write_png_sequence, write_png_sequence_from,
};

use crate::spec::Codec;

/// Whether pictures of this size can be stored by `codec`, so that a job can be refused before
/// anything is rendered. H.264 with 4:2:0 chroma needs even sides of at least 16 pixels and at most
/// [`MAX_PIXELS`] in all; PNG takes any size that is not empty.
pub fn check_size(codec: Codec, width: u32, height: u32) -> Result<()> {
    match codec {
        Codec::H264 => h264::check_size(width, height),
        Codec::Png if width == 0 || height == 0 => Err(MediaError::EmptyPicture { width, height }),
        Codec::Png => Ok(()),
    }
}
