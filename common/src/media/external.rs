//! Whatever ffmpeg can read and write, through pipes, where `ffmpeg` and `ffprobe` are on the PATH.
//! Nothing here is needed to render; it opens the door to foreign clips, other codecs and sound.
//!
//! Frames pass as RGB of 8 or 16 bits. Inputs are local files only: playlists that name other protocols are
//! refused by ffmpeg's protocol whitelist.

use super::{MediaError, Rate, Result};
use crate::{Frame, Sample};
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Sample rate of joined sound, in hertz.
const SOUND_HZ: f64 = 48_000.0;

/// Largest picture taken from a pipe, in pixels, as for PNG.
const PIXELS_MAX: u64 = 1 << 28;

/// The two programs, known to answer.
#[derive(Clone, Copy, Debug)]
pub struct Ffmpeg(());

/// What ffmpeg encodes that longtake does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalCodec {
    /// H.264 by x264, 4:2:0, 10 bits.
    X264,
    /// ProRes 422 HQ, 10 bits.
    ProRes,
    /// FFV1, lossless RGB.
    Ffv1,
}

/// What ffprobe says about a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExternalInfo {
    /// Pixels across, as displayed.
    pub width: u32,
    /// Pixels down, as displayed.
    pub height: u32,
    /// Frames a second, on average.
    pub rate: Rate,
    /// Whether there is sound.
    pub has_sound: bool,
    /// Whether there are more than 8 bits a channel.
    pub is_deep: bool,
}

/// The sound of one clip, for [`Ffmpeg::add_sound`].
#[derive(Clone, Copy, Debug)]
pub struct SoundPart<'a> {
    /// Where it comes from; silence if nowhere.
    pub path: Option<&'a Path>,
    /// Frames of the clip.
    pub frame_count: u64,
    /// Frames that it shares with the next clip, 0 for the last.
    pub overlap_frames: u64,
}

impl Ffmpeg {
    /// Looks for both programs on the PATH.
    pub fn find() -> Option<Self> {
        let answers = |program: &str| {
            let mut command = Command::new(program);
            command.arg("-version").stdin(Stdio::null());
            let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        (answers("ffmpeg") && answers("ffprobe")).then_some(Self(()))
    }

    /// Size, rate and whether there is sound.
    pub fn probe(self, path: &Path) -> Result<ExternalInfo> {
        if !path.exists() {
            return Err(MediaError::NotFound(path.to_owned()));
        }
        let out = Command::new("ffprobe")
            .args(["-v", "error", "-protocol_whitelist", "file,pipe"])
            .args(["-show_streams", "-of", "json", "-i"])
            .arg(local(path))
            .stdin(Stdio::null())
            .output()
            .map_err(MediaError::io("run ffprobe on", path))?;
        let not_video = || MediaError::NotAVideo(path.to_owned());
        if !out.status.success() {
            return Err(not_video());
        }
        let probe: Probe = serde_json::from_slice(&out.stdout).map_err(|_| not_video())?;
        let of_kind = |kind: &str| probe.streams.iter().find(|s| s.codec_type == kind);
        let video = of_kind("video").ok_or_else(not_video)?;
        let (mut width, mut height) = (video.width, video.height);
        if width == 0 || height == 0 || u64::from(width) * u64::from(height) > PIXELS_MAX {
            return Err(not_video());
        }
        let turned = |side: &SideData| side.rotation.rem_euclid(180.0) == 90.0;
        if video.side_data_list.iter().any(turned) {
            (width, height) = (height, width);
        }
        let rate = fraction(&video.avg_frame_rate).or_else(|| fraction(&video.r_frame_rate));
        Ok(ExternalInfo {
            width,
            height,
            rate: rate.ok_or_else(not_video)?,
            has_sound: of_kind("audio").is_some(),
            is_deep: video.is_deep(),
        })
    }

    /// The frames of a file.
    pub fn read<S: Sample>(self, path: &Path, info: &ExternalInfo) -> Result<ExternalReader<S>> {
        let mut command = quiet_ffmpeg();
        command
            .args(["-protocol_whitelist", "file,pipe", "-i"])
            .arg(local(path))
            .args(["-map", "0:v:0", "-fps_mode", "passthrough"])
            .args(["-sws_flags", "accurate_rnd+full_chroma_int+bicubic"])
            .args(["-f", "rawvideo", "-pix_fmt", pixel_format::<S>(), "pipe:1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::start(command, "read", path)?;
        let pixels = process.child.stdout.take();
        Ok(ExternalReader {
            process,
            pixels,
            width: info.width,
            height: info.height,
            read_count: 0,
            samples: PhantomData,
        })
    }

    /// Starts to encode a film into `path`, whose name must end like a container of the codec.
    pub fn write<S: Sample>(
        self,
        path: &Path,
        codec: ExternalCodec,
        width: u32,
        height: u32,
        rate: Rate,
    ) -> Result<ExternalWriter<S>> {
        if codec == ExternalCodec::X264 && (width % 2 == 1 || height % 2 == 1) {
            return Err(MediaError::OddSize { width, height });
        }
        let mut command = quiet_ffmpeg();
        command
            .args(["-f", "rawvideo", "-pix_fmt", pixel_format::<S>()])
            .args(["-s", &format!("{width}x{height}")])
            .args(["-r", &format!("{}/{}", rate.num(), rate.den())])
            .args(["-i", "pipe:0"])
            .args(codec.flags(S::BITS))
            .args(["-fflags", "+bitexact", "-flags:v", "+bitexact"])
            .args(["-movflags", "+faststart", "-y"])
            .arg(local(path))
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let mut process = Process::start(command, "write", path)?;
        let pixels = process.child.stdin.take();
        Ok(ExternalWriter {
            process,
            pixels,
            size: (width, height),
            frame_count: 0,
            samples: PhantomData,
        })
    }

    /// Copies the pictures of `film` to `out` and adds the sound of its clips, cross-faded linearly
    /// where they overlap. `codec` is None for longtake's own H.264.
    pub fn add_sound(
        self,
        film: &Path,
        parts: &[SoundPart<'_>],
        rate: Rate,
        codec: Option<ExternalCodec>,
        out: &Path,
    ) -> Result<()> {
        let mut command = quiet_ffmpeg();
        command.arg("-i").arg(local(film));
        for path in parts.iter().filter_map(|part| part.path) {
            command
                .args(["-protocol_whitelist", "file,pipe", "-i"])
                .arg(local(path));
        }
        let sound: &[&str] = match codec {
            None | Some(ExternalCodec::X264) => &["-c:a", "aac", "-b:a", "192k"],
            Some(ExternalCodec::ProRes) => &["-c:a", "pcm_s16le"],
            Some(ExternalCodec::Ffv1) => &["-c:a", "flac"],
        };
        command
            .args(["-filter_complex", &sound_graph(parts, rate)])
            .args(["-map", "0:v:0", "-map", "[sound]", "-c:v", "copy"])
            .args(sound)
            .args(["-fflags", "+bitexact", "-flags:a", "+bitexact"])
            .args(["-movflags", "+faststart", "-y"])
            .arg(local(out))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Process::start(command, "add the sound to", out)?.finish()
    }
}

impl ExternalCodec {
    /// For pictures of so many bits a channel.
    fn flags(self, bits: u32) -> Vec<&'static str> {
        // Some encoders take the tags from the pictures, some from the flags.
        const BT709: &str = "scale=out_color_matrix=bt709:out_range=tv:\
             flags=accurate_rnd+full_chroma_int+bicubic,\
             setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709";
        let tags = "-color_primaries bt709 -color_trc bt709 -colorspace bt709 -color_range tv";
        let (codec, limited) = match self {
            Self::X264 => (
                "-c:v libx264 -preset medium -crf 14 -pix_fmt yuv420p10le",
                true,
            ),
            Self::ProRes => (
                "-c:v prores_ks -profile:v 3 -vendor apl0 -pix_fmt yuv422p10le",
                true,
            ),
            Self::Ffv1 if bits > 8 => (
                "-c:v ffv1 -level 3 -g 1 -slicecrc 1 -pix_fmt gbrp16le",
                false,
            ),
            Self::Ffv1 => ("-c:v ffv1 -level 3 -g 1 -slicecrc 1 -pix_fmt bgr0", false),
        };
        let mut flags: Vec<&str> = codec.split(' ').collect();
        if limited {
            flags.extend(["-vf", BT709]);
            flags.extend(tags.split(' '));
        }
        flags
    }
}

/// The filter graph whose output `[sound]` is the film's sound; input 0 is the film itself.
fn sound_graph(parts: &[SoundPart<'_>], rate: Rate) -> String {
    let samples = |frames: u64| (frames as f64 * SOUND_HZ / rate.fps()).round() as u64;
    let mut graph = String::new();
    let mut input = 0;
    for (index, part) in parts.iter().enumerate() {
        let source = match part.path {
            Some(_) => {
                input += 1;
                format!(
                    "[{input}:a:0]aresample={SOUND_HZ}:async=1:first_pts=0,\
                     aformat=sample_fmts=fltp:channel_layouts=stereo,apad"
                )
            }
            None => format!("anullsrc=r={SOUND_HZ}:cl=stereo"),
        };
        let length = samples(part.frame_count);
        graph += &format!("{source},atrim=end_sample={length},asetpts=N/SR/TB[clip{index}];");
    }
    let mut joined = "clip0".to_owned();
    for (index, part) in parts.iter().enumerate().take(parts.len().saturating_sub(1)) {
        let (next, out) = (index + 1, format!("join{index}"));
        let overlap = samples(part.overlap_frames);
        graph += &format!("[{joined}][clip{next}]acrossfade=ns={overlap}:c1=tri:c2=tri[{out}];");
        joined = out;
    }
    graph + &format!("[{joined}]anull[sound]")
}

/// Frames that ffmpeg decodes; holds one. After an error it ends.
pub struct ExternalReader<S = u8> {
    process: Process,
    pixels: Option<ChildStdout>,
    width: u32,
    height: u32,
    read_count: u64,
    samples: PhantomData<S>,
}

impl<S: Sample> ExternalReader<S> {
    fn next_frame(&mut self) -> Result<Option<Frame<S>>> {
        let Some(pixels) = &mut self.pixels else {
            return Ok(None);
        };
        let samples = 3 * self.width as usize * self.height as usize;
        let wanted = samples * S::BITS as usize / 8;
        let mut data = Vec::with_capacity(wanted);
        let read = pixels.by_ref().take(wanted as u64).read_to_end(&mut data);
        read.map_err(|error| self.process.failed(error.to_string()))?;
        if data.len() == wanted {
            self.read_count += 1;
            let samples = S::from_big_endian(data);
            return Ok(Frame::from_samples(self.width, self.height, samples));
        }
        self.pixels = None;
        self.process.finish()?;
        if !data.is_empty() || self.read_count == 0 {
            return Err(self.process.failed("it ends inside a frame".to_owned()));
        }
        Ok(None)
    }
}

impl<S: Sample> Iterator for ExternalReader<S> {
    type Item = Result<Frame<S>>;

    fn next(&mut self) -> Option<Result<Frame<S>>> {
        let next = self.next_frame();
        if next.is_err() {
            self.pixels = None;
        }
        next.transpose()
    }
}

/// Takes frames for ffmpeg to encode.
pub struct ExternalWriter<S = u8> {
    process: Process,
    pixels: Option<ChildStdin>,
    size: (u32, u32),
    frame_count: u64,
    samples: PhantomData<S>,
}

impl<S: Sample> ExternalWriter<S> {
    /// Appends a frame.
    pub fn push(&mut self, frame: &Frame<S>) -> Result<()> {
        let found = (frame.width(), frame.height());
        if found != self.size {
            return Err(MediaError::SizeChanged {
                what: self.process.what.clone(),
                frame: self.frame_count,
                width: found.0,
                height: found.1,
                expected_width: self.size.0,
                expected_height: self.size.1,
            });
        }
        self.frame_count += 1;
        let written = self
            .pixels
            .as_mut()
            .map_or(Ok(()), |p| p.write_all(&S::big_endian(frame.data())));
        if let Err(error) = written {
            // ffmpeg hung up: its own last words say more than "broken pipe".
            self.pixels = None;
            self.process.finish()?;
            return Err(self.process.failed(error.to_string()));
        }
        Ok(())
    }

    /// Waits until the file is complete.
    pub fn finish(mut self) -> Result<()> {
        self.pixels = None;
        self.process.finish()
    }
}

/// A running ffmpeg, stopped when dropped.
struct Process {
    child: Child,
    complaints: File,
    action: &'static str,
    what: String,
}

impl Process {
    fn start(mut command: Command, action: &'static str, path: &Path) -> Result<Self> {
        let fail = |source| MediaError::Io {
            action: "run ffmpeg on",
            path: path.to_owned(),
            source,
        };
        let complaints = tempfile::tempfile().map_err(fail)?;
        command.stderr(complaints.try_clone().map_err(fail)?);
        Ok(Self {
            child: command.spawn().map_err(fail)?,
            complaints,
            action,
            what: path.display().to_string(),
        })
    }

    fn finish(&mut self) -> Result<()> {
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(self.failed(status.to_string())),
            Err(error) => Err(self.failed(error.to_string())),
        }
    }

    /// An error with the last line that ffmpeg wrote, or else `why`.
    fn failed(&mut self, why: String) -> MediaError {
        let mut text = Vec::new();
        let read = self.complaints.seek(SeekFrom::Start(0));
        let read = read.and_then(|_| {
            Read::by_ref(&mut self.complaints)
                .take(1 << 16)
                .read_to_end(&mut text)
        });
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rfind(|line| !line.trim().is_empty());
        MediaError::External {
            action: self.action,
            what: self.what.clone(),
            why: match (read, last) {
                (Ok(_), Some(line)) => line.trim().to_owned(),
                _ => why,
            },
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn quiet_ffmpeg() -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-nostdin"]);
    command
}

/// ffmpeg's name of what frames with these samples are.
fn pixel_format<S: Sample>() -> &'static str {
    match S::BITS {
        8 => "rgb24",
        _ => "rgb48be",
    }
}

/// A path that ffmpeg cannot take for a flag or an address.
fn local(path: &Path) -> OsString {
    let mut name = OsString::from("file:");
    name.push(path);
    name
}

#[derive(Deserialize)]
struct Probe {
    #[serde(default)]
    streams: Vec<Stream>,
}

#[derive(Deserialize)]
struct Stream {
    #[serde(default)]
    codec_type: String,
    #[serde(default)]
    width: u32,
    #[serde(default)]
    height: u32,
    #[serde(default)]
    pix_fmt: String,
    #[serde(default)]
    avg_frame_rate: String,
    #[serde(default)]
    r_frame_rate: String,
    #[serde(default)]
    side_data_list: Vec<SideData>,
}

impl Stream {
    /// ffmpeg's formats of more than a byte a channel have an order of bytes, and of the others only
    /// those that pack a pixel into two bytes.
    fn is_deep(&self) -> bool {
        let name = self.pix_fmt.strip_suffix("le");
        let Some(name) = name.or_else(|| self.pix_fmt.strip_suffix("be")) else {
            return false;
        };
        !["565", "555", "444"]
            .iter()
            .any(|packed| name == format!("rgb{packed}") || name == format!("bgr{packed}"))
    }
}

#[derive(Deserialize)]
struct SideData {
    /// Degrees, counted either way.
    #[serde(default)]
    rotation: f64,
}

fn fraction(text: &str) -> Option<Rate> {
    let (num, den) = text.split_once('/')?;
    Rate::new(num.parse().ok()?, den.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sound_of_clips_is_cut_to_their_frames_and_faded_over_their_overlaps() {
        let path = Path::new("a.mp4");
        let parts = [(Some(path), 48, 12), (None, 36, 6), (Some(path), 24, 0)].map(
            |(path, frame_count, overlap_frames)| SoundPart {
                path,
                frame_count,
                overlap_frames,
            },
        );
        let rate = Rate::from_fps(24.0).unwrap();
        let graph = sound_graph(&parts, rate);
        for step in [
            "[1:a:0]aresample",
            "atrim=end_sample=96000,asetpts=N/SR/TB[clip0]",
            "anullsrc=r=48000:cl=stereo,atrim=end_sample=72000",
            "[2:a:0]aresample",
            "[clip0][clip1]acrossfade=ns=24000:c1=tri:c2=tri[join0]",
            "[join0][clip2]acrossfade=ns=12000:c1=tri:c2=tri[join1]",
            "[join1]anull[sound]",
        ] {
            assert!(graph.contains(step), "{step} in {graph}");
        }
    }

    #[test]
    fn formats_tell_their_depth() {
        let is_deep = |name: &str| {
            let json = format!(r#"{{"pix_fmt": "{name}"}}"#);
            serde_json::from_str::<Stream>(&json)
                .expect("JSON")
                .is_deep()
        };
        for name in [
            "yuv420p10le",
            "yuv422p12be",
            "gbrp16le",
            "gray10le",
            "p010le",
            "x2rgb10le",
        ] {
            assert!(is_deep(name), "{name}");
        }
        for name in [
            "yuv420p", "yuvj420p", "rgb24", "bgr0", "rgb565le", "bgr444be", "pal8", "",
        ] {
            assert!(!is_deep(name), "{name}");
        }
    }

    #[test]
    fn rates_are_fractions() {
        assert_eq!(fraction("30000/1001"), Rate::new(30_000, 1001));
        assert_eq!(fraction("0/0"), None);
        assert_eq!(fraction("25"), None);
    }
}
