//! Any video that a user brings, one frame at a time.
//!
//! Frames come as they are stored: edit lists, rotation and pixel aspect of foreign MP4 files are not
//! applied, and a varying frame rate is reported as its mean.

use super::annexb::{self, PictureReader, nal_type};
use super::color::Yuv420;
use super::decoder::Decoder;
use super::demux;
use super::jpeg;
use super::samples::SampleWalk;
use super::sequence::{self, Sequence};
use super::sps::Sps;
use super::{MediaError, PackReader, Rate, Result, pack};
use crate::task::FilmMetadata;
use crate::{Frame, Sample};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// What is known about a video before its frames are read.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoInfo {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Frames a second; `None` where the format does not say (pictures, packs, bare streams).
    pub fps: Option<f64>,
    /// Frames in all.
    pub frame_count: u64,
    /// How the film was made, when longtake made it.
    pub metadata: Option<FilmMetadata>,
    /// Whether there is sound beside the pictures.
    pub has_sound: bool,
}

/// Frames of a video, in display order; memory does not grow with its length. After an error it ends.
pub struct VideoReader {
    info: VideoInfo,
    source: Source,
    what: String,
    read_count: u64,
    failed: bool,
}

enum Source {
    Coded(Box<Coded>),
    Pictures(Sequence),
    Pack(PackReader<BufReader<File>>),
}

/// Opens an MP4 with H.264, a bare `.h264` stream, a frame pack, a PNG or JPEG, a folder of PNGs or a
/// numbered sequence `DIR/%06d.png`. The kind is told by content, not by name.
pub fn open_video(path: impl AsRef<Path>) -> Result<VideoReader> {
    let path = path.as_ref();
    if sequence::is_sequence(path) || path.is_dir() {
        return open_pictures(path);
    }
    if !path.exists() {
        return Err(MediaError::NotFound(path.to_owned()));
    }
    let read_error = |source| MediaError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let mut head = Vec::new();
    file.by_ref()
        .take(16)
        .read_to_end(&mut head)
        .map_err(read_error)?;
    file.seek(SeekFrom::Start(0)).map_err(read_error)?;
    let what = path.display().to_string();
    if head.starts_with(b"\x89PNG") || jpeg::is_jpeg(&head) {
        open_pictures(path)
    } else if head.starts_with(pack::MAGIC) {
        open_pack(file, what)
    } else if head.starts_with(&[0, 0, 1]) || head.starts_with(&[0, 0, 0, 1]) {
        open_stream(file, what)
    } else if demux::looks_like_mp4(&head) {
        open_mp4(file, what)
    } else {
        Err(MediaError::NotAVideo(path.to_owned()))
    }
}

impl VideoReader {
    /// Size, rate and length.
    pub fn info(&self) -> &VideoInfo {
        &self.info
    }

    /// The next frame as it is stored, without going through RGB; pictures are converted to BT.709,
    /// limited range. For measurements on luma. `None` at the end.
    pub fn next_planes(&mut self) -> Option<Result<Yuv420>> {
        let planes = |frame: Frame| Yuv420::from_frame(&frame);
        self.step(
            Coded::next_picture,
            |pictures| Ok(pictures.next_frame()?.map(planes)),
            planes,
        )
    }

    /// The next frame with samples of this kind; what is stored in 8 bits is not finer for it. `None`
    /// at the end.
    pub fn next_as<S: Sample>(&mut self) -> Option<Result<Frame<S>>> {
        self.step(
            |coded| Ok(coded.next_frame()?.map(Frame::of_eight_bits)),
            Sequence::next_frame,
            Frame::of_eight_bits,
        )
    }

    /// Whether it has more than 8 bits a channel, of which its iterator leaves 8.
    ///
    /// # Errors
    /// When one of its files cannot be read.
    pub fn is_deep(&self) -> Result<bool> {
        match &self.source {
            Source::Pictures(sequence) => sequence.is_deep(),
            Source::Coded(_) | Source::Pack(_) => Ok(false),
        }
    }

    fn step<T>(
        &mut self,
        coded: impl FnOnce(&mut Coded) -> Result<Option<T>>,
        picture: impl FnOnce(&mut Sequence) -> Result<Option<T>>,
        packed: impl FnOnce(Frame) -> T,
    ) -> Option<Result<T>> {
        if self.failed {
            return None;
        }
        let next = match &mut self.source {
            Source::Coded(source) => coded(source),
            Source::Pictures(source) => picture(source),
            Source::Pack(source) => source.next().transpose().map(|frame| frame.map(packed)),
        };
        let next = match next {
            Ok(None) if self.read_count < self.info.frame_count => {
                let (read, all) = (self.read_count, self.info.frame_count);
                let why = format!("only {read} of its {all} frames could be decoded");
                Err(MediaError::damaged(&self.what, why))
            }
            next => next,
        };
        self.failed = next.is_err();
        self.read_count += 1;
        next.transpose()
    }
}

impl Iterator for VideoReader {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Result<Frame>> {
        self.step(Coded::next_frame, Sequence::next_frame, |frame| frame)
    }
}

fn open_pictures(path: &Path) -> Result<VideoReader> {
    let source = Sequence::open(path)?;
    let info = VideoInfo {
        width: source.width,
        height: source.height,
        fps: None,
        frame_count: source.frame_count(),
        metadata: None,
        has_sound: false,
    };
    Ok(reader(
        info,
        Source::Pictures(source),
        path.display().to_string(),
    ))
}

fn open_pack(file: File, what: String) -> Result<VideoReader> {
    let source = PackReader::new(BufReader::new(file), what.as_str())?;
    let info = VideoInfo {
        width: source.width(),
        height: source.height(),
        fps: None,
        frame_count: source.frame_count().into(),
        metadata: None,
        has_sound: false,
    };
    Ok(reader(info, Source::Pack(source), what))
}

fn open_stream(mut file: File, what: String) -> Result<VideoReader> {
    let (sps, frame_count) = scan_stream(&file, &what)?;
    let rewound = file.seek(SeekFrom::Start(0));
    rewound.map_err(|error| MediaError::damaged(what.as_str(), error.to_string()))?;
    let info = video_info(&sps, sps.rate, frame_count);
    let source = Coded {
        units: Units::Stream(PictureReader::new(BufReader::new(file))),
        decoder: Decoder::new(&what, None)?,
        what: what.clone(),
        ended: false,
    };
    Ok(reader(info, Source::Coded(Box::new(source)), what))
}

/// Parameters and number of pictures of a bare stream, which has no index.
fn scan_stream(file: &File, what: &str) -> Result<(Sps, u64)> {
    let damaged = |why: String| MediaError::damaged(what, why);
    let mut pictures = PictureReader::new(BufReader::new(file));
    let (mut sps, mut frame_count) = (None, 0);
    while let Some(units) = pictures
        .next_picture()
        .map_err(|error| damaged(error.to_string()))?
    {
        if sps.is_none() {
            sps = units
                .iter()
                .find(|nal| annexb::kind(nal) == nal_type::SPS)
                .and_then(|nal| Sps::parse(nal));
        }
        frame_count += u64::from(units.iter().any(|nal| annexb::is_slice(nal)));
    }
    let sps = sps.ok_or_else(|| damaged("it has no H.264 sequence parameters".to_owned()))?;
    sps.check_supported(what)?;
    if frame_count == 0 {
        return Err(MediaError::NoFrames(what.to_owned()));
    }
    Ok((sps, frame_count))
}

fn open_mp4(mut file: File, what: String) -> Result<VideoReader> {
    let track = demux::read_track(&mut file, &what)?;
    let sps = track
        .parameter_sets
        .iter()
        .find(|nal| annexb::kind(nal) == nal_type::SPS);
    let sps = sps.and_then(|nal| Sps::parse(nal));
    let sps = sps
        .ok_or_else(|| MediaError::damaged(&what, "its decoder configuration has no parameters"))?;
    sps.check_supported(&what)?;
    let mut decoder = Decoder::new(&what, track.color)?;
    decoder.feed(track.parameter_sets.iter().map(Vec::as_slice))?;
    let frame_count = track.samples.count().into();
    let info = VideoInfo {
        metadata: track.metadata,
        has_sound: track.has_sound,
        ..video_info(&sps, track.rate.or(sps.rate), frame_count)
    };
    let units = Units::Mp4 {
        file: BufReader::new(file),
        samples: SampleWalk::new(track.samples),
        length_bytes: track.length_bytes,
        sample: Vec::new(),
    };
    let source = Coded {
        units,
        decoder,
        what: what.clone(),
        ended: false,
    };
    Ok(reader(info, Source::Coded(Box::new(source)), what))
}

fn video_info(sps: &Sps, rate: Option<Rate>, frame_count: u64) -> VideoInfo {
    VideoInfo {
        width: sps.width,
        height: sps.height,
        fps: rate.map(Rate::fps),
        frame_count,
        metadata: None,
        has_sound: false,
    }
}

fn reader(info: VideoInfo, source: Source, what: String) -> VideoReader {
    VideoReader {
        info,
        source,
        what,
        read_count: 0,
        failed: false,
    }
}

/// Coded pictures and their decoder.
struct Coded {
    units: Units,
    decoder: Decoder,
    what: String,
    ended: bool,
}

/// Where coded pictures come from.
enum Units {
    Stream(PictureReader<BufReader<File>>),
    Mp4 {
        file: BufReader<File>,
        samples: SampleWalk,
        length_bytes: usize,
        sample: Vec<u8>,
    },
}

impl Coded {
    fn next_frame(&mut self) -> Result<Option<Frame>> {
        let picture = self.next_picture()?;
        Ok(picture.map(|picture| picture.to_frame(self.decoder.color())))
    }

    fn next_picture(&mut self) -> Result<Option<Yuv420>> {
        loop {
            if let Some(picture) = self.decoder.pop() {
                return Ok(Some(picture));
            }
            if self.ended {
                return Ok(None);
            }
            if !self.feed()? {
                self.ended = true;
                self.decoder.flush()?;
            }
        }
    }

    /// Gives the decoder one picture; false at the end.
    fn feed(&mut self) -> Result<bool> {
        let damaged = |why: String| MediaError::damaged(&self.what, why);
        match &mut self.units {
            Units::Stream(pictures) => {
                match pictures
                    .next_picture()
                    .map_err(|error| damaged(error.to_string()))?
                {
                    Some(units) => self.decoder.feed(units.iter().map(Vec::as_slice))?,
                    None => return Ok(false),
                }
            }
            Units::Mp4 {
                file,
                samples,
                length_bytes,
                sample,
            } => {
                let Some(place) = samples.next() else {
                    return Ok(false);
                };
                sample.clear();
                let at = file
                    .stream_position()
                    .map_err(|error| damaged(error.to_string()))?;
                // A relative seek keeps the buffer when samples lie side by side.
                let step = place.offset as i64 - at as i64;
                file.seek_relative(step)
                    .map_err(|error| damaged(error.to_string()))?;
                let read = file.by_ref().take(place.size.into()).read_to_end(sample);
                if read.map_err(|error| damaged(error.to_string()))? < place.size as usize {
                    return Err(damaged("it ends inside a frame".to_owned()));
                }
                let units = split_sample(sample, *length_bytes)
                    .ok_or_else(|| damaged("a frame's parts do not fill it".to_owned()))?;
                self.decoder.feed(units)?;
            }
        }
        Ok(true)
    }
}

/// NAL units of a sample, each behind its length; `None` when the lengths do not add up.
fn split_sample(mut sample: &[u8], length_bytes: usize) -> Option<Vec<&[u8]>> {
    let mut units = Vec::new();
    while !sample.is_empty() {
        let (length, rest) = sample.split_at_checked(length_bytes)?;
        let length = length
            .iter()
            .fold(0usize, |value, &byte| value << 8 | usize::from(byte));
        let (nal, rest) = rest.split_at_checked(length)?;
        units.push(nal);
        sample = rest;
    }
    Some(units)
}
