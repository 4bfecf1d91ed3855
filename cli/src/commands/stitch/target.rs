//! Where a stitched film goes, and in which codec. It is written into a hidden folder beside its
//! place and renamed when complete.

use crate::output::{check_sequence_folder, check_writable, folder_of, replace_folder};
use anyhow::{Context, Result, bail};
use longtake_common::media::{
    self, ChunkEncoder, ExternalCodec, Ffmpeg, MediaError, Muxer, Rate, SoundPart, is_sequence,
    write_png_sequence,
};
use longtake_common::spec::Codec;
use longtake_common::task::Picture;
use longtake_common::{Frame, Sample};
use longtake_stitch::Part;
use serde::Serialize;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Frames after which an encoder of our own starts a new chunk, where no seam is near.
const CHUNK_FRAMES: u64 = 240;

/// How a stitched film is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StitchCodec {
    /// longtake's own H.264, 8 bits; needs nothing else
    H264,
    /// H.264 by x264, 10 bits; needs ffmpeg
    X264,
    /// ProRes 422 HQ; needs ffmpeg
    Prores,
    /// FFV1, lossless; needs ffmpeg
    Ffv1,
    /// A sequence of PNG files
    Png,
}

impl StitchCodec {
    fn name(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::X264 => "x264",
            Self::Prores => "prores",
            Self::Ffv1 => "ffv1",
            Self::Png => "png",
        }
    }

    fn external(self) -> Option<ExternalCodec> {
        match self {
            Self::X264 => Some(ExternalCodec::X264),
            Self::Prores => Some(ExternalCodec::ProRes),
            Self::Ffv1 => Some(ExternalCodec::Ffv1),
            Self::H264 | Self::Png => None,
        }
    }

    /// Bits of a channel that it keeps.
    pub fn bits(self) -> u32 {
        match self {
            Self::H264 => 8,
            Self::X264 | Self::Prores => 10,
            Self::Ffv1 | Self::Png => 16,
        }
    }

    /// Endings of files that hold it.
    fn endings(self) -> &'static [&'static str] {
        match self {
            Self::H264 => &["mp4"],
            Self::X264 => &["mp4", "mov", "mkv"],
            Self::Prores => &["mov", "mkv"],
            Self::Ffv1 => &["mkv"],
            Self::Png => &["png"],
        }
    }

    /// What the ending of a file means unless the user says otherwise.
    fn by_ending(ending: &str) -> Option<Self> {
        [Self::H264, Self::Prores, Self::Ffv1, Self::Png]
            .into_iter()
            .find(|codec| codec.endings()[0] == ending)
    }
}

/// Frames of a film in order, each with what an encoder should know about it.
pub type Pictures<'a, S> = dyn Iterator<Item = Result<(Frame<S>, Part)>> + 'a;

/// The output, checked as far as it can be before any work.
pub struct Target {
    path: PathBuf,
    ending: String,
    codec: StitchCodec,
}

impl Target {
    /// Reads `-o` and `--codec`.
    pub fn new(path: &Path, codec: Option<StitchCodec>, ffmpeg: Option<Ffmpeg>) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        let ending = ending.to_ascii_lowercase();
        let Some(codec) = codec.or_else(|| StitchCodec::by_ending(&ending)) else {
            bail!(
                "'{}' names no kind of output that longtake writes; give FILE.mp4, FILE.mov, FILE.mkv or DIR/%06d.png",
                path.display()
            );
        };
        if !codec.endings().contains(&ending.as_str()) {
            bail!(
                "'{}' cannot hold {}; let its name end in .{}",
                path.display(),
                codec.name(),
                codec.endings().join(" or .")
            );
        }
        if codec == StitchCodec::Png && (!is_sequence(path) || folder_of(path) == Path::new(".")) {
            bail!(
                "'{}' is no PNG sequence in a folder of its own; give DIR/%06d.png",
                path.display()
            );
        }
        if codec.external().is_some() && ffmpeg.is_none() {
            bail!(
                "{} needs ffmpeg and ffprobe on the PATH; install them, or write FILE.mp4 or DIR/%06d.png",
                codec.name()
            );
        }
        Ok(Self {
            path: path.to_owned(),
            ending,
            codec,
        })
    }

    /// How the film is stored.
    pub fn codec(&self) -> StitchCodec {
        self.codec
    }

    /// The file, or the folder of a sequence.
    fn unit(&self) -> &Path {
        match self.codec {
            StitchCodec::Png => folder_of(&self.path),
            _ => &self.path,
        }
    }

    /// Fails when a film of this size, made of these files, could not be written in the end.
    pub fn check(&self, clips: &[&Path], (width, height): (u32, u32)) -> Result<()> {
        let unit = self.unit();
        check_writable(folder_of(unit))?;
        if self.codec == StitchCodec::Png {
            check_sequence_folder(&self.path)?;
        } else if unit.is_dir() {
            bail!(
                "{} is a folder; give the name of a file in it",
                unit.display()
            );
        }
        let same = |clip: &&&Path| {
            // A sequence's pattern is no file; its folder is what would be replaced.
            let clip = match is_sequence(clip) && self.codec == StitchCodec::Png {
                true => folder_of(clip),
                false => clip,
            };
            let (a, b) = (clip.canonicalize(), unit.canonicalize());
            matches!((a, b), (Ok(a), Ok(b)) if a == b)
        };
        if clips.iter().any(|clip| same(&clip)) {
            bail!(
                "{} is one of the clips; choose another output",
                unit.display()
            );
        }
        match self.codec {
            StitchCodec::H264 => media::check_size(Codec::H264, width, height)?,
            StitchCodec::X264 if width % 2 == 1 || height % 2 == 1 => {
                return Err(MediaError::OddSize { width, height }.into());
            }
            _ => {}
        }
        Ok(())
    }

    /// A place for the film beside its own, for whoever writes it himself.
    pub fn stage(&self) -> Result<Stage<'_>> {
        Stage::new(self)
    }

    /// Writes the film into a stage beside its place.
    pub fn write<S: Sample>(
        &self,
        film: &mut Pictures<'_, S>,
        rate: Rate,
        ffmpeg: Option<Ffmpeg>,
    ) -> Result<Stage<'_>> {
        let stage = Stage::new(self)?;
        match (self.codec, self.codec.external(), ffmpeg) {
            (StitchCodec::Png, ..) => {
                let frames = film.map(|item| Ok::<_, anyhow::Error>(item?.0));
                write_png_sequence(&stage.film(), frames)?;
            }
            (_, Some(codec), Some(ffmpeg)) => external(film, &stage.film(), codec, rate, ffmpeg)?,
            _ => own_h264(film, &stage.film(), rate)?,
        }
        Ok(stage)
    }
}

fn external<S: Sample>(
    film: &mut Pictures<'_, S>,
    path: &Path,
    codec: ExternalCodec,
    rate: Rate,
    ffmpeg: Ffmpeg,
) -> Result<()> {
    let mut writer = None;
    for item in film {
        let (frame, _) = item?;
        if writer.is_none() {
            let (width, height) = (frame.width(), frame.height());
            writer = Some(ffmpeg.write(path, codec, width, height, rate)?);
        }
        if let Some(writer) = &mut writer {
            writer.push(&frame)?;
        }
    }
    writer.context("the clips have no frames")?.finish()?;
    Ok(())
}

/// Chunks of our own, so that memory stays small; none begins near a seam.
fn own_h264<S: Sample>(film: &mut Pictures<'_, S>, path: &Path, rate: Rate) -> Result<()> {
    let mut muxer: Option<Muxer> = None;
    let mut encoder: Option<ChunkEncoder> = None;
    for item in film {
        let (frame, part) = item?;
        let frame = frame.rounded();
        let (width, height) = (frame.width(), frame.height());
        let full = |e: &ChunkEncoder| part == Part::Interior && e.frame_count() >= CHUNK_FRAMES;
        if encoder.as_ref().is_some_and(full)
            && let (Some(muxer), Some(done)) = (&mut muxer, encoder.take())
        {
            muxer.push(&done.finish()?)?;
        }
        if muxer.is_none() {
            let picture = Picture {
                width,
                height,
                fps: rate.fps(),
                codec: Codec::H264,
            };
            muxer = Some(Muxer::new(path, &picture, None)?);
        }
        match &mut encoder {
            Some(encoder) => encoder.push(&frame)?,
            none => {
                let fresh = none.insert(ChunkEncoder::new(width, height, rate.fps())?);
                fresh.push(&frame)?;
            }
        }
    }
    let (mut muxer, last) = muxer.zip(encoder).context("the clips have no frames")?;
    muxer.push(&last.finish()?)?;
    muxer.finish()?;
    Ok(())
}

/// A film that is not yet under its name; gone when dropped.
pub struct Stage<'a> {
    target: &'a Target,
    folder: TempDir,
}

impl<'a> Stage<'a> {
    fn new(target: &'a Target) -> Result<Self> {
        let unit = target.unit();
        let mut prefix = OsString::from(".");
        prefix.push(unit.file_name().unwrap_or_default());
        prefix.push(".partial-");
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(folder_of(unit))
            .with_context(|| format!("write beside {}", unit.display()))?;
        Ok(Self { target, folder })
    }

    /// The film: a file, or a sequence in a folder of its own.
    pub fn film(&self) -> PathBuf {
        match self.target.codec {
            StitchCodec::Png => {
                let name = self.target.path.file_name().unwrap_or_default();
                self.folder.path().join("frames").join(name)
            }
            _ => self
                .folder
                .path()
                .join(format!("film.{}", self.target.ending)),
        }
    }

    /// Adds the clips' sound where there is some and it can be; whether it was.
    pub fn add_sound(
        &self,
        parts: &[SoundPart<'_>],
        rate: Rate,
        ffmpeg: Option<Ffmpeg>,
    ) -> Result<bool> {
        let Some(ffmpeg) = ffmpeg else {
            return Ok(false);
        };
        let silent = parts.iter().all(|part| part.path.is_none());
        if silent || self.target.codec == StitchCodec::Png {
            return Ok(false);
        }
        let (film, out) = (
            self.film(),
            self.folder
                .path()
                .join(format!("sound.{}", self.target.ending)),
        );
        ffmpeg.add_sound(&film, parts, rate, self.target.codec.external(), &out)?;
        fs::rename(&out, &film).with_context(|| format!("rename {}", out.display()))?;
        Ok(true)
    }

    /// Gives the film its name.
    pub fn publish(self) -> Result<()> {
        let unit = self.target.unit();
        let film = self.film();
        let from = match self.target.codec {
            StitchCodec::Png => folder_of(&film).to_owned(),
            _ => film,
        };
        let named = match self.target.codec {
            StitchCodec::Png => {
                check_sequence_folder(&self.target.path)?;
                replace_folder(&from, unit, self.folder.path())
            }
            _ => fs::rename(&from, unit),
        };
        named.with_context(|| format!("write {}", unit.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_chooses_the_codec_and_must_fit_it() {
        let ffmpeg = Ffmpeg::find();
        let codec =
            |name: &str, codec| Target::new(Path::new(name), codec, ffmpeg).map(|t| t.codec);
        assert_eq!(codec("a/b.mp4", None).ok(), Some(StitchCodec::H264));
        assert_eq!(codec("a/%06d.png", None).ok(), Some(StitchCodec::Png));
        for (name, asked) in [
            ("a/b.avi", None),
            ("b", None),
            ("%06d.png", None),
            ("a/b.png", None),
            ("b.mp4", Some(StitchCodec::Ffv1)),
            ("b.mkv", Some(StitchCodec::H264)),
            ("b.mp4", Some(StitchCodec::Png)),
        ] {
            assert!(codec(name, asked).is_err(), "{name} {asked:?}");
        }
        let without = |name: &str| Target::new(Path::new(name), None, None).map(|t| t.codec);
        assert!(without("b.mov").unwrap_err().to_string().contains("ffmpeg"));
        assert_eq!(without("b.mp4").ok(), Some(StitchCodec::H264));
    }
}
