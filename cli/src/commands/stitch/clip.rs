//! One input of `stitch`.

use anyhow::{Context, Result};
use longtake_common::Frame;
use longtake_common::media::{
    ExternalInfo, Ffmpeg, MediaError, Rate, VideoInfo, is_sequence, open_video,
};
use std::path::{Path, PathBuf};

/// Frames of a clip, one at a time.
pub type Frames = Box<dyn Iterator<Item = Result<Frame, MediaError>>>;

/// A clip that can be read as often as wanted.
pub struct Clip {
    path: PathBuf,
    source: Source,
    has_sound: bool,
}

enum Source {
    /// longtake's own readers: reproducible everywhere.
    Own(VideoInfo),
    /// Through ffmpeg.
    External(Ffmpeg, ExternalInfo),
}

impl Clip {
    /// Looks at a clip. Pictures and films that longtake rendered are read by longtake itself, all
    /// else by ffmpeg where there is one.
    pub fn open(path: &Path, ffmpeg: Option<Ffmpeg>) -> Result<Self> {
        let own = open_video(path).map(|reader| reader.info().clone());
        let pictures = is_sequence(path) || path.is_dir();
        let ours = match &own {
            Ok(info) => info.fps.is_none() || info.metadata.is_some(),
            Err(MediaError::NotFound(_)) => true,
            Err(_) => pictures,
        };
        let external = match ffmpeg {
            Some(ffmpeg) if !pictures && path.is_file() => {
                ffmpeg.probe(path).map(|i| (ffmpeg, i)).ok()
            }
            _ => None,
        };
        let has_sound = external.is_some_and(|(_, info)| info.has_sound);
        let source = match external {
            Some((ffmpeg, info)) if !ours => Source::External(ffmpeg, info),
            _ => Source::Own(own.with_context(|| format!("read {}", path.display()))?),
        };
        Ok(Self {
            path: path.to_owned(),
            source,
            has_sound,
        })
    }

    /// Its frames, from the first.
    pub fn frames(&self) -> Result<Frames> {
        Ok(match &self.source {
            Source::Own(_) => Box::new(open_video(&self.path)?),
            Source::External(ffmpeg, info) => Box::new(ffmpeg.read(&self.path, info)?),
        })
    }

    /// As the user named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As the user named it, for messages.
    pub fn name(&self) -> impl std::fmt::Display + '_ {
        self.path.display()
    }

    /// Pixels across.
    pub fn width(&self) -> u32 {
        match &self.source {
            Source::Own(info) => info.width,
            Source::External(_, info) => info.width,
        }
    }

    /// Pixels down.
    pub fn height(&self) -> u32 {
        match &self.source {
            Source::Own(info) => info.height,
            Source::External(_, info) => info.height,
        }
    }

    /// Frames a second, where the format says.
    pub fn rate(&self) -> Option<Rate> {
        match &self.source {
            Source::Own(info) => info.fps.and_then(|fps| Rate::from_fps(fps).ok()),
            Source::External(_, info) => Some(info.rate),
        }
    }

    /// Frames in all, where that is known before they are read.
    pub fn frame_count(&self) -> Option<u64> {
        match &self.source {
            Source::Own(info) => Some(info.frame_count),
            Source::External(..) => None,
        }
    }

    /// Whether it has sound that ffmpeg can read.
    pub fn has_sound(&self) -> bool {
        self.has_sound
    }

    /// Whether it is a sequence of pictures, which has neither rate nor sound.
    pub fn is_pictures(&self) -> bool {
        self.rate().is_none()
    }
}
