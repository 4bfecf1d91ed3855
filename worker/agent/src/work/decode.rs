//! Decodes a window and takes it apart: what its neighbours need, and the interior, encoded.

use super::denoise::{decode_request, failure};
use super::{Desk, frames};
use crate::error::TaskError;
use longtake_common::media::{ChunkWriter, MediaError, PackWriter};
use longtake_common::spec::PIXELS_PER_LATENT;
use longtake_common::task::{Picture, TaskOutput, Window, Work};
use longtake_ltx::config::PipelineClass;
use longtake_ltx::{Denoised, Model, Video};
use longtake_tensor::Backend;
use std::ops::Range;

/// Which of a window's visible frames go where.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    /// Overlap with the window before and what the seam relaxes over; empty in the first window.
    head: Range<usize>,
    /// Encoded here.
    interior: Range<usize>,
    /// Lead and overlap with the window after; empty in the last.
    tail: Range<usize>,
}

/// Outputs `head`, `interior` and `tail`, as far as the window has them.
pub fn run<B: Backend>(
    model: &Model<B>,
    work: &Work,
    desk: &mut Desk<'_>,
) -> Result<TaskOutput, TaskError> {
    let Work::Decode {
        window,
        latents,
        sampling,
        picture,
        ..
    } = work
    else {
        return Err(TaskError::Fatal("this is no window to decode".to_owned()));
    };
    let parts = parts(work, window)?;
    let bytes = desk.artifacts.get(*latents)?;
    let (latents, drawn) = Denoised::from_safetensors(&bytes).map_err(TaskError::retryable)?;
    drop(bytes);
    desk.check()?;
    let request = decode_request(model, window, sampling, drawn);
    let video = desk
        .clock
        .time("decode", || model.decode(&latents, &request))
        .map_err(failure)?;
    desk.control.set_progress(0.8);
    desk.check()?;
    if video.frames < window.visible_frames as usize {
        return Err(TaskError::Fatal(format!(
            "window {} decodes to {} frames, the film needs {} of it",
            window.index, video.frames, window.visible_frames
        )));
    }
    let video = shown(video, request.class, picture);
    store(&video, &parts, picture, desk)
}

/// What the film shows of what was decoded: of a second pass, which is larger, scaled. The official
/// code has the film in the middle of what is rendered, diffusers takes whole cells only.
fn shown(video: Video, class: PipelineClass, picture: &Picture) -> Video {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let cell = PIXELS_PER_LATENT as usize;
    let (rows, columns) = (height.next_multiple_of(cell), width.next_multiple_of(cell));
    let video = match (video.height, video.width) == (rows, columns) {
        true => video,
        false => video.resized(rows, columns),
    };
    if (rows, columns) == (height, width) {
        return video;
    }
    let corner = match class {
        PipelineClass::Official => [(rows - height) / 2, (columns - width) / 2],
        _ => [0, 0],
    };
    video.cropped(video.frames, corner, height, width)
}

/// Cuts the visible frames into head, interior and tail.
fn parts(work: &Work, window: &Window) -> Result<Parts, TaskError> {
    let Work::Decode {
        head_frames,
        relax_frames,
        lead_frames,
        tail_frames,
        ..
    } = work
    else {
        return Err(TaskError::Fatal("this is no window to decode".to_owned()));
    };
    let visible = u64::from(window.visible_frames);
    let head = match *head_frames {
        0 => 0,
        head => u64::from(head) + u64::from(*relax_frames),
    };
    let tail = match *tail_frames {
        0 => 0,
        tail => u64::from(*lead_frames) + u64::from(tail),
    };
    if head + tail > visible {
        return Err(TaskError::Fatal(format!(
            "window {} shows {visible} frames, too few for a head of {head} and a tail of {tail}",
            window.index
        )));
    }
    let (head, visible) = (head as usize, visible as usize);
    let tail = visible - tail as usize;
    Ok(Parts {
        head: 0..head,
        interior: head..tail,
        tail: tail..visible,
    })
}

fn store(
    video: &Video,
    parts: &Parts,
    picture: &Picture,
    desk: &mut Desk<'_>,
) -> Result<TaskOutput, TaskError> {
    let mut output = TaskOutput::default();
    for (name, range) in [("head", &parts.head), ("tail", &parts.tail)] {
        if !range.is_empty() {
            let bytes = desk
                .clock
                .time("encode", || pack(video, range))
                .map_err(TaskError::retryable)?;
            output
                .artifacts
                .insert(name.to_owned(), desk.artifacts.put(bytes)?);
        }
    }
    if !parts.interior.is_empty() {
        let bytes = encode(video, &parts.interior, picture, desk)?;
        output
            .artifacts
            .insert("interior".to_owned(), desk.artifacts.put(bytes)?);
    }
    Ok(output)
}

fn pack(video: &Video, range: &Range<usize>) -> Result<Vec<u8>, MediaError> {
    let mut pack = PackWriter::new();
    for frame in frames(video, range.clone()) {
        pack.push(&frame)?;
    }
    pack.finish()
}

fn encode(
    video: &Video,
    range: &Range<usize>,
    picture: &Picture,
    desk: &mut Desk<'_>,
) -> Result<Vec<u8>, TaskError> {
    let mut chunk = ChunkWriter::new(picture).map_err(TaskError::fatal)?;
    for frame in frames(video, range.clone()) {
        desk.check()?;
        desk.clock
            .time("encode", || chunk.push(&frame))
            .map_err(TaskError::retryable)?;
    }
    desk.clock
        .time("encode", || chunk.finish())
        .map_err(TaskError::retryable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use longtake_common::Hash;
    use longtake_common::spec::{Codec, ModelRef, Sampling, Schedule};

    fn work(visible: u32, head: u32, relax: u32, lead: u32, tail: u32) -> Work {
        Work::Decode {
            model: ModelRef::new(String::new(), Hash::of(b"")),
            window: Window {
                index: 1,
                first_frame: 0,
                frames: visible,
                visible_frames: visible,
                seed: 0,
            },
            latents: Hash::of(b""),
            sampling: Sampling::plain(Schedule::Steps(1), 1.0, 1),
            picture: Picture {
                width: 32,
                height: 32,
                fps: 24.0,
                codec: Codec::H264,
            },
            head_frames: head,
            relax_frames: relax,
            lead_frames: lead,
            tail_frames: tail,
        }
    }

    #[test]
    fn every_visible_frame_goes_to_exactly_one_place() {
        // visible, head, relax, lead, tail -> end of the head, start of lead and tail
        let cases = [
            ((121, 0, 0, 8, 17), (0, 96)),
            ((121, 17, 48, 8, 17), (65, 96)),
            ((121, 17, 48, 0, 0), (65, 121)),
            ((34, 17, 0, 0, 17), (17, 17)),
            ((60, 0, 0, 0, 0), (0, 60)),
        ];
        for ((visible, head, relax, lead, tail), (head_end, tail_start)) in cases {
            let work = work(visible, head, relax, lead, tail);
            let Work::Decode { window, .. } = &work else {
                unreachable!("made above")
            };
            let parts = parts(&work, window).expect("they fit");
            let visible = visible as usize;
            let expected = Parts {
                head: 0..head_end,
                interior: head_end..tail_start,
                tail: tail_start..visible,
            };
            assert_eq!(parts, expected);
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let work = work(30, 17, 0, 0, 17);
        let Work::Decode { window, .. } = &work else {
            unreachable!("made above")
        };
        assert!(matches!(parts(&work, window), Err(TaskError::Fatal(_))));
    }
}
