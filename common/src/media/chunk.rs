//! A stretch of the film as one artifact, in the codec of the film.

use super::annexb::PictureReader;
use super::decoder::Decoder;
use super::{ChunkEncoder, MediaError, PackReader, PackWriter, Result, pack, read_pack};
use crate::Frame;
use crate::spec::Codec;
use crate::task::Picture;

/// Writes a chunk frame by frame: H.264 or a frame pack, as the film wants it.
pub enum ChunkWriter {
    /// Encoded.
    H264(Box<ChunkEncoder>),
    /// Lossless.
    Png(PackWriter),
}

impl ChunkWriter {
    /// A chunk of a film with this picture format.
    pub fn new(picture: &Picture) -> Result<Self> {
        super::check_size(picture.codec, picture.width, picture.height)?;
        Ok(match picture.codec {
            Codec::H264 => Self::H264(Box::new(ChunkEncoder::new(
                picture.width,
                picture.height,
                picture.fps,
            )?)),
            Codec::Png => Self::Png(PackWriter::new()),
        })
    }

    /// Appends a frame.
    pub fn push(&mut self, frame: &Frame) -> Result<()> {
        match self {
            Self::H264(encoder) => encoder.push(frame),
            Self::Png(pack) => pack.push(frame),
        }
    }

    /// The chunk. An error when nothing was pushed.
    pub fn finish(self) -> Result<Vec<u8>> {
        match self {
            Self::H264(encoder) => encoder.finish(),
            Self::Png(pack) => pack.finish(),
        }
    }
}

/// A chunk of `frames`, which must not be empty.
pub fn encode_chunk<'a>(
    picture: &Picture,
    frames: impl IntoIterator<Item = &'a Frame>,
) -> Result<Vec<u8>> {
    let mut chunk = ChunkWriter::new(picture)?;
    for frame in frames {
        chunk.push(frame)?;
    }
    chunk.finish()
}

/// Frames of a chunk or a frame pack, whichever `bytes` are.
pub fn read_chunk(bytes: &[u8]) -> Result<ChunkReader<'_>> {
    if bytes.starts_with(pack::MAGIC) {
        return Ok(ChunkReader(Inner::Pack(read_pack(bytes)?)));
    }
    let decoder = Decoder::new("an encoded chunk", None)?;
    Ok(ChunkReader(Inner::H264(Box::new(H264 {
        pictures: PictureReader::new(bytes),
        decoder,
        done: false,
    }))))
}

/// Iterator over the frames of a chunk. After an error it ends.
pub struct ChunkReader<'a>(Inner<'a>);

enum Inner<'a> {
    Pack(PackReader<&'a [u8]>),
    H264(Box<H264<'a>>),
}

struct H264<'a> {
    pictures: PictureReader<&'a [u8]>,
    decoder: Decoder,
    done: bool,
}

impl H264<'_> {
    fn next_frame(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(picture) = self.decoder.pop() {
                return Ok(Some(picture.to_frame(self.decoder.color())));
            }
            if self.done {
                return Ok(None);
            }
            let next = self.pictures.next_picture();
            match next
                .map_err(|error| MediaError::damaged("an encoded chunk", error.to_string()))?
            {
                Some(units) => self.decoder.feed(units.iter().map(Vec::as_slice))?,
                None => {
                    self.done = true;
                    self.decoder.flush()?;
                }
            }
        }
    }
}

impl Iterator for ChunkReader<'_> {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        match &mut self.0 {
            Inner::Pack(pack) => pack.next(),
            Inner::H264(stream) => {
                let frame = stream.next_frame().transpose();
                if matches!(frame, Some(Err(_))) {
                    stream.done = true;
                    stream.decoder.clear();
                }
                frame
            }
        }
    }
}
