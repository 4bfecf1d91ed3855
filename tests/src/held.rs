//! Films that are held to pictures of the moving-shapes world: do they show them, and go on as they do?

use crate::detect::{Scene, Track, continuity, look};
use crate::product::render;
use crate::prompts::Wanted;
use longtake_common::Frame;
use longtake_common::media::{encode_png, open_video};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Pixels of the films.
const SIZE: (u32, u32) = (256, 160);
/// Frame at which a film is held to a second picture.
const KEY_FRAME: u32 = 56;
/// Frames of the clips that films go on from, or lead up to.
const CLIP_FRAMES: u32 = 49;
/// Frames of a film.
const FILM_FRAMES: u32 = 121;
/// Frames around the end of a clip in which the motion has to be that of the clip.
const JOIN_FRAMES: u32 = 17;

/// How near a film is to what it was given.
#[derive(Clone, Debug)]
pub struct Held {
    /// The first frame to the picture that it was given as, PSNR.
    pub first_db: f64,
    /// Frame 56 to the picture that was given for it beside the first one, PSNR.
    pub keyframe_db: f64,
    /// The frames of a clip that is gone on from.
    pub forward: Kept,
    /// The frames of a clip that is led up to.
    pub backward: Kept,
}

/// What became of a clip.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Its frames in the film, PSNR.
    pub psnr_db: f64,
    /// Colour, shape, direction and speed are those of the clip.
    pub same: bool,
    /// Colour and shape are so in every frame, and nothing jumps where clip and film meet.
    pub holds: bool,
}

/// Renders what `want` asks for four times, from pictures and clips of its world as it is from `at` on.
///
/// # Errors
/// What the product said when it failed, and files that cannot be written or read.
pub fn held(
    folder: &Path,
    want: &Wanted,
    at: (f64, f64),
    seed: usize,
    flags: &[&str],
) -> Result<Held, String> {
    let work = Work {
        folder,
        want,
        flags,
        seed: seed.to_string(),
        scene: want.scene(SIZE, at),
    };
    let (first, key) = (work.picture(0)?, work.picture(KEY_FRAME)?);
    let key = format!("{key}@{KEY_FRAME}");
    let clip = work.clip()?;
    let film = work.film("first", &["--image", &first])?;
    let keyed = work.film("keyed", &["--image", &first, "--image", &key])?;
    let after = FILM_FRAMES - CLIP_FRAMES;
    Ok(Held {
        first_db: work.psnr_db(&film, 0..1, 0),
        keyframe_db: work.psnr_db(&keyed, KEY_FRAME..KEY_FRAME + 1, KEY_FRAME),
        forward: work.kept("forward", &clip, 0, CLIP_FRAMES - JOIN_FRAMES / 2)?,
        backward: work.kept("backward", &format!("{clip}@end"), after, after)?,
    })
}

struct Work<'a> {
    folder: &'a Path,
    want: &'a Wanted,
    flags: &'a [&'a str],
    seed: String,
    scene: Scene,
}

impl Work<'_> {
    /// Writes one picture of the world; its path.
    fn picture(&self, frame: u32) -> Result<String, String> {
        let path = self.folder.join(format!("{}-{frame}.png", self.seed));
        self.write(&path, frame)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Writes the first pictures of the world into a folder; its path.
    fn clip(&self) -> Result<String, String> {
        let folder = self.folder.join(format!("{}-clip", self.seed));
        fs::create_dir_all(&folder).map_err(|e| format!("make {}: {e}", folder.display()))?;
        for frame in 0..CLIP_FRAMES {
            self.write(&folder.join(format!("{frame:06}.png")), frame)?;
        }
        Ok(folder.to_string_lossy().into_owned())
    }

    fn write(&self, path: &Path, frame: u32) -> Result<(), String> {
        let png = encode_png(&self.scene.draw(frame)).map_err(|e| e.to_string())?;
        fs::write(path, png).map_err(|e| format!("write {}: {e}", path.display()))
    }

    /// Renders a film; its frames.
    fn film(&self, name: &str, flags: &[&str]) -> Result<Vec<Frame>, String> {
        let output = self.folder.join(format!("{}-{name}.mp4", self.seed));
        let (size, frames) = (format!("{}x{}", SIZE.0, SIZE.1), FILM_FRAMES.to_string());
        let mut all = vec!["--size", &size, "--frames", &frames, "--seed", &self.seed];
        all.extend_from_slice(flags);
        all.extend_from_slice(self.flags);
        render(&self.want.prompt, &output, &all)?;
        let reader = open_video(&output).map_err(|e| e.to_string())?;
        reader.map(|f| f.map_err(|e| e.to_string())).collect()
    }

    /// `frames` of a film against the world from its frame `drawn` on: PSNR over R, G and B in 8 bits.
    fn psnr_db(&self, film: &[Frame], frames: std::ops::Range<u32>, drawn: u32) -> f64 {
        let (mut squares, mut count) = (0.0, 0);
        for frame in frames.clone() {
            let ideal = self.scene.draw(drawn + frame - frames.start);
            let pairs = film[frame as usize].data().iter().zip(ideal.data());
            squares += pairs
                .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2))
                .sum::<f64>();
            count += ideal.data().len();
        }
        -10.0 * (squares / count as f64 / 255f64.powi(2)).log10()
    }

    /// A film with `clip`, which begins at frame `first` of it, and is joined to the rest from `join` on.
    fn kept(&self, name: &str, clip: &str, first: u32, join: u32) -> Result<Kept, String> {
        let film = self.film(name, &["--video", clip])?;
        let mut track = Track::new(SIZE.0, SIZE.1, 24.0);
        film.iter().for_each(|frame| track.push(look(frame)));
        let found = continuity(&track, &[(join, JOIN_FRAMES)]);
        let same = found.colour == self.want.colour
            && found.shape == self.want.shape
            && track.direction() == Some(self.want.direction.as_str())
            && track.speed() == Some(self.want.speed.as_str());
        Ok(Kept {
            psnr_db: self.psnr_db(&film, first..first + CLIP_FRAMES, 0),
            same,
            holds: same && found.holds(),
        })
    }
}

/// One line of a report.
pub fn row(want: &Wanted, held: &Held) -> Value {
    let round = |value: f64| (value * 10.0).round() / 10.0;
    let kept = |k: &Kept| json!({"psnr_db": round(k.psnr_db), "same": k.same, "holds": k.holds});
    json!({
        "prompt": want.prompt,
        "first_db": round(held.first_db),
        "keyframe_db": round(held.keyframe_db),
        "forward": kept(&held.forward),
        "backward": kept(&held.backward),
    })
}
