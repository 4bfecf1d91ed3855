//! A user's images and clips as a window is held to them.

use super::denoise::failure;
use super::{Desk, soften};
use crate::error::TaskError;
use longtake_common::conditioning::{HeldPictures, Role};
use longtake_common::media::read_pack;
use longtake_ltx::config::PipelineClass;
use longtake_ltx::{Encoded, Model, Pictures, Video};
use longtake_tensor::Backend;

/// Where a film lies in what is rendered.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Frames of the window.
    pub frames: u32,
    /// Whose conventions hold.
    pub class: PipelineClass,
    /// Width and height that the film shows.
    pub shown: (u32, u32),
    /// Rows and columns that the film is cut from.
    pub padded: [u32; 2],
    /// Rows and columns of the pass.
    pub size: [u32; 2],
}

/// Encodes each of `items` for a pass over a window.
pub fn encode<B: Backend>(
    model: &Model<B>,
    items: &[&HeldPictures],
    room: &Room,
    desk: &mut Desk<'_>,
) -> Result<Vec<Encoded>, TaskError> {
    let mut encoded = Vec::with_capacity(items.len());
    for item in items {
        desk.check()?;
        let video = room.fitted(&read(item, desk)?);
        let video = match item.softened {
            true => soften::soften(video).map_err(TaskError::fatal)?,
            false => video,
        };
        let pictures = match item.role {
            Role::Shown => room.filled(&video, 1),
            Role::Start => room.filled(&lengthened(video, room.frames), 1),
            Role::Reference { factor } => room.filled(&lengthened(video, room.frames), factor),
        };
        let done = desk.clock.time("encode", || model.encode(&pictures));
        encoded.push(done.map_err(failure)?);
    }
    Ok(encoded)
}

impl Room {
    /// Pictures of any size as the film shows them.
    fn fitted(&self, video: &Video) -> Video {
        fitted(video, self.shown.1 as usize, self.shown.0 as usize)
    }

    /// Pictures as the film shows them as those of the pass, so many times smaller.
    fn filled(&self, video: &Video, factor: u32) -> Pictures {
        let whole = |[rows, columns]: [u32; 2]| (rows as usize, columns as usize);
        let pictures = Pictures::from(video);
        let (rows, columns) = whole(self.padded);
        let pictures = match self.class {
            PipelineClass::Official => pictures.padded(rows, columns),
            _ => pictures.extended(rows, columns),
        };
        let (rows, columns) = whole(self.size.map(|side| side / factor.max(1)));
        pictures.resized(rows, columns)
    }
}

/// `frames` pictures, the last repeated as often as it takes.
fn lengthened(mut video: Video, frames: u32) -> Video {
    let last = video.clone().last(1).rgb;
    while video.frames < frames as usize {
        video.rgb.extend_from_slice(&last);
        video.frames += 1;
    }
    video
}

/// The pictures that count.
fn read(item: &HeldPictures, desk: &Desk<'_>) -> Result<Video, TaskError> {
    let (skip, count) = (item.skip as usize, item.frames as usize);
    let mut video: Option<Video> = None;
    let mut before = 0;
    for &hash in &item.packs {
        let bytes = desk.artifacts.get(hash)?;
        for frame in read_pack(&bytes).map_err(TaskError::retryable)? {
            let frame = frame.map_err(TaskError::retryable)?;
            before += 1;
            let video = video.get_or_insert_with(|| Video {
                frames: 0,
                height: frame.height() as usize,
                width: frame.width() as usize,
                rgb: Vec::new(),
            });
            let size = (frame.height() as usize, frame.width() as usize);
            if before > skip && video.frames < count && size == (video.height, video.width) {
                video.rgb.extend_from_slice(frame.data());
                video.frames += 1;
            }
        }
    }
    let found = video.as_ref().map_or(0, |video| video.frames);
    video.filter(|video| video.frames == count).ok_or_else(|| {
        TaskError::Fatal(format!(
            "the film is held to {count} pictures of one size, and {found} were stored"
        ))
    })
}

/// Cut in the middle to the shape of `height` x `width`, then scaled to it, as the official
/// program does.
fn fitted(video: &Video, height: usize, width: usize) -> Video {
    let (rows, columns) = (video.height, video.width);
    let (rows, columns) = if columns * height > rows * width {
        (rows, (rows * width / height).max(1))
    } else {
        ((columns * height / width).max(1), columns)
    };
    let corner = [(video.height - rows) / 2, (video.width - columns) / 2];
    let cut = video.cropped(video.frames, corner, rows, columns);
    cut.resized(height, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_cut_to_the_shape_of_the_film() {
        let video = Video {
            frames: 1,
            height: 2,
            width: 8,
            rgb: (0..16).flat_map(|i| [i % 8 * 10; 3]).collect(),
        };
        let fitted = fitted(&video, 2, 4);
        assert_eq!((fitted.height, fitted.width), (2, 4));
        let row: Vec<u8> = fitted.rgb.iter().step_by(3).take(4).copied().collect();
        assert_eq!(row, [20, 30, 40, 50]);
    }
}
