//! `--image`, `--video` and the keyframes of film files: pictures that the film is held to.

use crate::client::Client;
use anyhow::{Context, Result, bail};
use longtake_common::conditioning::{Conditioning, Place, Role};
use longtake_common::film::Keyframe;
use longtake_common::media::{PackWriter, open_video};
use longtake_common::model::CHUNK_BYTES;
use longtake_common::sampling::Pass;
use longtake_common::spec::FRAMES_PER_LATENT;
use longtake_common::{Frame, Hash};
use std::path::{Path, PathBuf};

/// Highest noise level of a film that begins as a video, unless the user says otherwise.
const START_STRENGTH: f32 = 0.9;

/// A picture or clip as it is named on the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct MediaArg {
    path: PathBuf,
    at: Place,
    strength: f32,
}

impl std::str::FromStr for MediaArg {
    type Err = String;

    /// `PATH[@FRAME[:STRENGTH]]`; a path may have an @ of its own where no number follows it.
    fn from_str(text: &str) -> Result<Self, String> {
        let whole = |path: &str| Self {
            path: path.into(),
            at: Place::Frame(0),
            strength: 1.0,
        };
        let Some((path, place)) = text.rsplit_once('@') else {
            return Ok(whole(text));
        };
        let (frame, strength) = match place.split_once(':') {
            None => (place, None),
            Some((frame, strength)) => (frame, Some(strength)),
        };
        let at = match frame {
            "end" => Place::End,
            frame => match frame.parse() {
                Ok(frame) => Place::Frame(frame),
                Err(_) => return Ok(whole(text)),
            },
        };
        let strength = match strength.map(str::parse::<f32>) {
            None => 1.0,
            Some(Ok(strength)) if (0.0..=1.0).contains(&strength) => strength,
            Some(_) => {
                return Err(format!(
                    "'{place}' has no strength from 0 to 1 after its ':'"
                ));
            }
        };
        Ok(Self {
            at,
            strength,
            ..whole(path)
        })
    }
}

/// What has to be in the artifact store before the job is submitted.
#[derive(Clone, Debug, Default)]
pub struct Uploads(Vec<Vec<u8>>);

impl Uploads {
    /// Stores everything.
    pub async fn send(&self, client: &mut Client) -> Result<()> {
        for bytes in &self.0 {
            client.store(bytes).await?;
        }
        Ok(())
    }
}

/// Pictures that the film is held to.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct HeldArgs {
    /// Picture that the film is held to, at a frame [default: 0] and with a strength from 0 to 1
    /// [default: 1]; may be given several times
    #[arg(long = "image", value_name = "PATH[@FRAME[:STRENGTH]]")]
    images: Vec<MediaArg>,
    /// Clip that the film is held to: it goes on from the clip, or with @end leads up to it. Its
    /// first 8k+1 frames that fit are used; otherwise as --image
    #[arg(long = "video", value_name = "PATH[@FRAME[:STRENGTH]]")]
    videos: Vec<MediaArg>,
    /// Video that an IC-LoRA takes the film's course from, as long as the film, with a strength from
    /// 0 to 1 [default: 1]; it is not seen itself
    #[arg(long, value_name = "PATH[:STRENGTH]", value_parser = reference_video, requires = "loras")]
    reference_video: Option<(PathBuf, f32)>,
    /// Video that all of the film begins as, as long as the film, with the highest noise level from
    /// which it is sampled anew, above 0 and up to 1 [default: what the pipeline file leaves of its
    /// steps, 0.9 when it leaves all]
    #[arg(long, value_name = "PATH[:STRENGTH]", value_parser = start_video)]
    start_video: Option<(PathBuf, Option<f32>)>,
    /// Blur pictures and clips and take them through H.264 first, as the official program does:
    /// what is sharper than any frame of a film makes the film stand still
    #[arg(long)]
    soften: bool,
}

impl HeldArgs {
    /// Highest noise level of a film that begins as a video, whose first pass is `pass`.
    pub fn start_strength(&self, pass: &Pass) -> Option<f32> {
        let (_, given) = self.start_video.as_ref()?;
        let begins_late = pass.skip_initial_steps > 0 || pass.strength < 1.0;
        let usual = if begins_late { 1.0 } else { START_STRENGTH };
        Some(given.unwrap_or(usual).min(pass.strength))
    }

    /// Whether a reference video is given.
    pub fn has_reference(&self) -> bool {
        self.reference_video.is_some()
    }

    /// What a film of `frames` with these keyframes is held to, and what to upload for that.
    /// `reference_factor` finds how many times smaller than the film its reference video is.
    pub fn read(
        &self,
        frames: u32,
        keyframes: &[Keyframe],
        reference_factor: impl FnOnce() -> Result<u32>,
    ) -> Result<(Vec<Conditioning>, Uploads)> {
        let film = Stretch { start: 0, frames };
        let flags = (self.images.iter().map(|arg| (arg, true)))
            .chain(self.videos.iter().map(|arg| (arg, false)))
            .map(|(arg, is_image)| (arg.clone(), is_image, film));
        let of_shots = keyframes.iter().map(|keyframe| {
            let arg = MediaArg {
                path: keyframe.path.clone(),
                at: keyframe.place,
                strength: keyframe.strength,
            };
            let shot = Stretch {
                start: keyframe.shot_start,
                frames: keyframe.shot_frames,
            };
            (arg, keyframe.is_image, shot)
        });
        let (mut items, mut uploads) = (Vec::new(), Uploads::default());
        for (arg, is_image, stretch) in flags.chain(of_shots) {
            let item = arg.read(is_image, stretch, &mut uploads);
            items.push(item.with_context(|| arg.context())?);
        }
        if let Some((path, strength)) = &self.reference_video {
            let factor = reference_factor()?;
            let item = read_whole(path, *strength, Role::Reference { factor }, &mut uploads);
            items.push(item.with_context(|| format!("use {}", path.display()))?);
        }
        if let Some((path, _)) = &self.start_video {
            let item = read_whole(path, 1.0, Role::Start, &mut uploads);
            items.push(item.with_context(|| format!("use {}", path.display()))?);
        }
        for item in &mut items {
            item.softened = self.soften;
        }
        Ok((items, uploads))
    }
}

/// Reads `--reference-video`.
fn reference_video(text: &str) -> Result<(PathBuf, f32), String> {
    with_strength(text).map(|(path, strength)| (path, strength.unwrap_or(1.0)))
}

/// Reads `--start-video`.
fn start_video(text: &str) -> Result<(PathBuf, Option<f32>), String> {
    match with_strength(text)? {
        (_, Some(0.0)) => Err("a strength of 0 leaves nothing to sample".to_owned()),
        found => Ok(found),
    }
}

/// A path; only a number behind the last colon is a strength.
fn with_strength(text: &str) -> Result<(PathBuf, Option<f32>), String> {
    let split = text.rsplit_once(':');
    let strength = split.and_then(|(path, strength)| Some((path, strength.parse::<f32>().ok()?)));
    match strength {
        None => Ok((text.into(), None)),
        Some((path, strength)) if (0.0..=1.0).contains(&strength) => {
            Ok((path.into(), Some(strength)))
        }
        Some((_, strength)) => Err(format!("the strength {strength} is not from 0 to 1")),
    }
}

/// Reads a video that is as long as the film.
fn read_whole(
    path: &Path,
    strength: f32,
    role: Role,
    uploads: &mut Uploads,
) -> Result<Conditioning> {
    let mut pictures = open_video(path)?;
    let frames = u32::try_from(pictures.info().frame_count).unwrap_or(u32::MAX);
    if frames == 0 {
        bail!("it has no picture");
    }
    Ok(Conditioning {
        packs: packs(pictures.by_ref(), uploads)?,
        frames,
        first_frame: 0,
        strength,
        softened: false,
        role,
    })
}

/// What a place is counted in: the film, or a shot of it.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    /// Its first frame in the film.
    start: u32,
    /// Its length.
    frames: u32,
}

impl MediaArg {
    /// What was tried, and where the path seems to have a place behind it that is none, that.
    fn context(&self) -> String {
        let path = self.path.display();
        let meant = self.path.to_str().and_then(|path| path.rsplit_once('@'));
        match meant.filter(|(before, _)| !self.path.exists() && Path::new(before).exists()) {
            Some((before, place)) => format!(
                "use {before} at '{place}', which is neither the number of a frame nor 'end' (so it was \
                 taken for a part of the name)"
            ),
            None => format!("use {path}"),
        }
    }

    fn read(
        &self,
        is_image: bool,
        stretch: Stretch,
        uploads: &mut Uploads,
    ) -> Result<Conditioning> {
        let mut pictures = open_video(&self.path)?;
        let available = u32::try_from(pictures.info().frame_count).unwrap_or(u32::MAX);
        if available == 0 {
            bail!("it has no picture");
        }
        let wanted = if is_image {
            1
        } else {
            self.clip_frames(available, stretch.frames)
        };
        if !is_image && wanted == 1 && available > 1 {
            bail!(
                "it has {available} pictures, and of a clip at least 9 are used, which must fit the film \
                 from its place on: put it elsewhere, or use one picture of it with --image"
            );
        }
        let first_frame = match self.at {
            Place::Frame(frame) => frame,
            Place::End if is_image => stretch.frames - 1,
            // A clip begins with a latent, and is no longer than its stretch.
            Place::End => (stretch.frames - wanted) / FRAMES_PER_LATENT * FRAMES_PER_LATENT,
        };
        if first_frame >= stretch.frames {
            bail!(
                "frame {first_frame} is beyond the film, which has {} frames: use 0 to {}",
                stretch.frames,
                stretch.frames - 1
            );
        }
        let pictures = pictures.by_ref().take(wanted as usize);
        Ok(Conditioning {
            packs: packs(pictures, uploads)?,
            frames: wanted,
            first_frame: stretch.start + first_frame,
            strength: self.strength,
            softened: false,
            role: Role::Shown,
        })
    }

    /// Frames of a clip that are used: as many as fit a stretch of `frames` from its place on, 8k+1.
    fn clip_frames(&self, available: u32, frames: u32) -> u32 {
        let room = match self.at {
            Place::Frame(frame) => frames.saturating_sub(frame).max(1),
            Place::End => frames,
        };
        (available.min(room) - 1) / FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    }
}

/// Packs that are small enough to upload, by their hashes.
fn packs(
    pictures: impl Iterator<Item = longtake_common::media::Result<Frame>>,
    uploads: &mut Uploads,
) -> Result<Vec<Hash>> {
    let mut hashes = Vec::new();
    let mut finish = |pack: PackWriter| -> Result<()> {
        let bytes = pack.finish()?;
        if bytes.len() as u64 > CHUNK_BYTES {
            bail!("one picture alone takes more than {CHUNK_BYTES} bytes: make it smaller");
        }
        hashes.push(Hash::of(&bytes));
        uploads.0.push(bytes);
        Ok(())
    };
    let (mut pack, mut raw) = (PackWriter::new(), 0u64);
    for frame in pictures {
        let frame = frame?;
        // Compressed, a picture is hardly larger than its samples.
        let size = frame.data().len() as u64 + frame.data().len() as u64 / 64 + 4096;
        if raw + size > CHUNK_BYTES && pack.frame_count() > 0 {
            finish(std::mem::take(&mut pack))?;
            raw = 0;
        }
        pack.push(&frame)?;
        raw += size;
    }
    finish(pack)?;
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_video_keeps_what_the_pipeline_file_leaves_out() {
        let args = |text| HeldArgs {
            start_video: Some(start_video(text).expect("a path")),
            ..HeldArgs::default()
        };
        let whole = Pass::plain(longtake_common::sampling::Schedule::Steps(8), 1.0);
        let cut = Pass {
            skip_initial_steps: 2,
            ..whole.clone()
        };
        let weak = Pass {
            strength: 0.95,
            ..whole.clone()
        };
        for (text, pass, expected) in [
            ("a.mp4", &whole, START_STRENGTH),
            ("a.mp4", &cut, 1.0),
            ("a.mp4", &weak, 0.95),
            ("a.mp4:0.5", &whole, 0.5),
            ("a.mp4:0.5", &cut, 0.5),
            ("a.mp4:0.97", &weak, 0.95),
        ] {
            assert_eq!(args(text).start_strength(pass), Some(expected), "{text}");
        }
        assert_eq!(HeldArgs::default().start_strength(&whole), None);
    }

    #[test]
    fn places_and_strengths_are_read() {
        let arg = |path: &str, at, strength| MediaArg {
            path: path.into(),
            at,
            strength,
        };
        for (text, expected) in [
            ("a.png", arg("a.png", Place::Frame(0), 1.0)),
            ("a.png@40", arg("a.png", Place::Frame(40), 1.0)),
            ("a.png@40:0.5", arg("a.png", Place::Frame(40), 0.5)),
            ("a@b.mp4", arg("a@b.mp4", Place::Frame(0), 1.0)),
            ("a@b.mp4@end", arg("a@b.mp4", Place::End, 1.0)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["a.png@4:x", "a.png@4:2", "a.png@4:-1"] {
            assert!(text.parse::<MediaArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn clips_are_cut_to_what_fits() {
        let frames = |at, available, film| {
            let arg = MediaArg {
                path: "a.mp4".into(),
                at,
                strength: 1.0,
            };
            arg.clip_frames(available, film)
        };
        assert_eq!(frames(Place::Frame(0), 30, 120), 25);
        assert_eq!(frames(Place::Frame(104), 30, 120), 9);
        assert_eq!(frames(Place::Frame(200), 30, 120), 1);
        assert_eq!(frames(Place::End, 200, 120), 113);
    }
}
