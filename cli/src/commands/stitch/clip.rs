//! One input of `stitch`.

use anyhow::{Context, Result};
use longtake_common::media::{
    ExternalInfo, Ffmpeg, MediaError, Rate, VideoInfo, is_sequence, open_video,
};
use longtake_common::{Frame, Sample};
use std::path::{Path, PathBuf};

/// Frames of a clip, one at a time.
pub type Frames<S> = Box<dyn Iterator<Item = Result<Frame<S>, MediaError>>>;

/// A clip that can be read as often as wanted.
pub struct Clip {
    path: PathBuf,
    source: Source,
    has_sound: bool,
    is_deep: bool,
}

enum Source {
    /// longtake's own readers: reproducible everywhere.
    Own(Box<VideoInfo>),
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
        let has_sound = match (external, &own) {
            (Some((_, info)), _) => info.has_sound,
            // Known, though nobody is there to keep it.
            (None, Ok(info)) => info.has_sound && ffmpeg.is_none(),
            (None, Err(_)) => false,
        };
        let read = || match ffmpeg {
            None if path.is_file() && !pictures => format!(
                "read {} without ffmpeg (with ffmpeg and ffprobe on the PATH, whatever they read is read)",
                path.display()
            ),
            _ => format!("read {}", path.display()),
        };
        let (source, is_deep) = match external {
            Some((ffmpeg, info)) if !ours => (Source::External(ffmpeg, info), info.is_deep),
            _ => {
                let info = own.with_context(read)?;
                let is_deep = pictures && open_video(path)?.is_deep().with_context(read)?;
                (Source::Own(Box::new(info)), is_deep)
            }
        };
        Ok(Self {
            path: path.to_owned(),
            source,
            has_sound,
            is_deep,
        })
    }

    /// Its frames, from the first.
    pub fn frames<S: Sample>(&self) -> Result<Frames<S>> {
        Ok(match &self.source {
            Source::Own(_) => {
                let mut reader = open_video(&self.path)?;
                Box::new(std::iter::from_fn(move || reader.next_as()))
            }
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

    /// Whether it has more than 8 bits a channel.
    pub fn is_deep(&self) -> bool {
        self.is_deep
    }

    /// Whether it has sound: such that ffmpeg can read, if it is there.
    pub fn has_sound(&self) -> bool {
        self.has_sound
    }
}
