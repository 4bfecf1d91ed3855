//! The tasks of a job, what each waits for, and the work it is once its inputs are there.

use crate::plan::{Plan, Source};
use longtake_common::conditioning::HeldPictures;
use longtake_common::ids::{Hash, TaskId};
use longtake_common::spec::{Codec, Continuity, JobSpec};
use longtake_common::task::{FilmMetadata, Lane, Picture, TaskOutput, Window, Work};
use std::fmt;

/// A task inside a job. The order is the one in which users think of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskKind {
    /// Encodes the prompts.
    Text,
    /// Encodes the prompts of this shot, from 1: the first one's are the job's.
    ShotText(u32),
    /// Encodes the prompt of a window that has one of its own.
    OwnText(u32),
    /// Denoises this window: the only pass, or the first of two.
    Denoise(u32),
    /// Decodes the first of two passes for whoever wants to see it early.
    Preview(u32),
    /// The second pass of this window.
    Refine(u32),
    /// Decodes this window.
    Decode(u32),
    /// Joins this window and the next.
    Seam(u32),
    /// Puts the film together.
    Mux,
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::ShotText(shot) => write!(f, "shot/{shot}"),
            Self::OwnText(index) => write!(f, "text/{index}"),
            Self::Denoise(index) => write!(f, "denoise/{index}"),
            Self::Preview(index) => write!(f, "preview/{index}"),
            Self::Refine(index) => write!(f, "refine/{index}"),
            Self::Decode(index) => write!(f, "decode/{index}"),
            Self::Seam(index) => write!(f, "seam/{index}"),
            Self::Mux => f.write_str("mux"),
        }
    }
}

impl TaskKind {
    /// The task's id on the wire.
    pub fn id(self) -> TaskId {
        TaskId(self.to_string())
    }

    /// The task that an id names, if there can be one.
    pub fn parse(text: &str) -> Option<Self> {
        let kind = match text.split_once('/') {
            None => match text {
                "text" => Self::Text,
                "mux" => Self::Mux,
                _ => return None,
            },
            Some((kind, index)) => {
                let index = index.parse().ok()?;
                match kind {
                    "shot" => Self::ShotText(index),
                    "text" => Self::OwnText(index),
                    "denoise" => Self::Denoise(index),
                    "preview" => Self::Preview(index),
                    "refine" => Self::Refine(index),
                    "decode" => Self::Decode(index),
                    "seam" => Self::Seam(index),
                    _ => return None,
                }
            }
        };
        // `denoise/+3` and `denoise/03` are other spellings, and only one is the id.
        (kind.to_string() == text).then_some(kind)
    }

    /// What is given out first among the tasks of one job: smaller is sooner. Windows are finished
    /// one after the other, so that seams need not wait for the last of them, and the beginning of
    /// the film can be watched early. Where that would hold up a chain, the scheduler makes an
    /// exception.
    pub fn priority(self) -> (u32, u32) {
        match self {
            Self::Text => (0, 0),
            Self::ShotText(index) | Self::OwnText(index) => (index, 0),
            Self::Denoise(index) => (index, 1),
            Self::Preview(index) => (index, 2),
            Self::Refine(index) => (index, 3),
            Self::Decode(index) => (index, 4),
            Self::Seam(index) => (index, 5),
            Self::Mux => (u32::MAX, 6),
        }
    }

    /// Whether it is a link of a chain of windows: what the next window is held to comes of it.
    pub fn is_link(self) -> bool {
        matches!(self, Self::Denoise(_) | Self::Refine(_))
    }
}

/// All tasks of a plan.
pub fn tasks(plan: &Plan) -> impl Iterator<Item = TaskKind> {
    let windows = plan.window_count();
    let own_texts = plan.prompts.keys().copied().map(TaskKind::OwnText);
    std::iter::once(TaskKind::Text)
        .chain(plan.text_shots().map(TaskKind::ShotText))
        .chain(own_texts)
        .chain((0..windows).map(TaskKind::Denoise))
        .chain((0..when(plan.previews, windows)).map(TaskKind::Preview))
        .chain((0..when(plan.refines, windows)).map(TaskKind::Refine))
        .chain((0..windows).map(TaskKind::Decode))
        .chain(plan.joined().map(TaskKind::Seam))
        .chain(std::iter::once(TaskKind::Mux))
}

fn when(wanted: bool, windows: u32) -> u32 {
    if wanted { windows } else { 0 }
}

/// The last pass of a window.
pub(crate) fn last_pass(plan: &Plan, window: u32) -> TaskKind {
    if plan.refines {
        TaskKind::Refine(window)
    } else {
        TaskKind::Denoise(window)
    }
}

/// What encodes the prompt of a window.
fn text(plan: &Plan, window: u32) -> TaskKind {
    if plan.prompts.contains_key(&window) {
        return TaskKind::OwnText(window);
    }
    match plan.text_shot(window) {
        0 => TaskKind::Text,
        shot => TaskKind::ShotText(shot),
    }
}

/// The window that holds `index` to its tail, if one does.
fn held_to(spec: &JobSpec, plan: &Plan, index: u32) -> Option<u32> {
    let before = index.checked_sub(1)?;
    conditions_next(spec, plan, before).then_some(before)
}

/// What has to be done before `kind`.
pub fn inputs(spec: &JobSpec, plan: &Plan, kind: TaskKind) -> Vec<TaskKind> {
    match kind {
        TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => vec![],
        TaskKind::Denoise(index) | TaskKind::Refine(index) => {
            let before = held_to(spec, plan, index).map(|before| last_pass(plan, before));
            let first = (kind == TaskKind::Refine(index)).then_some(TaskKind::Denoise(index));
            let own = [text(plan, index)].into_iter().chain(first);
            own.chain(before).collect()
        }
        TaskKind::Preview(index) => vec![TaskKind::Denoise(index)],
        TaskKind::Decode(index) => vec![last_pass(plan, index)],
        TaskKind::Seam(index) => vec![TaskKind::Decode(index), TaskKind::Decode(index + 1)],
        TaskKind::Mux => {
            let seams = plan.joined().map(TaskKind::Seam);
            (0..plan.window_count())
                .map(TaskKind::Decode)
                .chain(seams)
                .collect()
        }
    }
}

/// What may have waited for `kind`: every task that has it among its [`inputs`].
pub fn dependents(spec: &JobSpec, plan: &Plan, kind: TaskKind) -> Vec<TaskKind> {
    match kind {
        TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => (0..plan.window_count())
            .filter(|window| text(plan, *window) == kind)
            .flat_map(|window| passes(plan, window))
            .collect(),
        TaskKind::Denoise(index) | TaskKind::Refine(index) => {
            let mut tasks = Vec::new();
            if kind != last_pass(plan, index) {
                tasks.push(TaskKind::Refine(index));
                tasks.extend(plan.previews.then_some(TaskKind::Preview(index)));
                return tasks;
            }
            tasks.push(TaskKind::Decode(index));
            if conditions_next(spec, plan, index) {
                tasks.extend(passes(plan, index + 1));
            }
            tasks
        }
        TaskKind::Preview(_) => vec![],
        TaskKind::Decode(index) => {
            let mut tasks = vec![TaskKind::Mux];
            if plan.continues(index) {
                tasks.push(TaskKind::Seam(index - 1));
            }
            if plan.is_joined(index) {
                tasks.push(TaskKind::Seam(index));
            }
            tasks
        }
        TaskKind::Seam(_) => vec![TaskKind::Mux],
        TaskKind::Mux => vec![],
    }
}

/// The passes of a window, in order.
fn passes(plan: &Plan, window: u32) -> impl Iterator<Item = TaskKind> {
    let second = plan.refines.then_some(TaskKind::Refine(window));
    [TaskKind::Denoise(window)].into_iter().chain(second)
}

/// Names of the artifacts that a result of `kind` must have.
pub fn outputs(spec: &JobSpec, plan: &Plan, kind: TaskKind) -> Vec<&'static str> {
    let wanted = |name, frames| (frames > 0).then_some(name);
    match kind {
        TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => vec!["text"],
        TaskKind::Denoise(index) | TaskKind::Refine(index) => {
            let held = kind == last_pass(plan, index) && conditions_next(spec, plan, index);
            let tail = held.then_some("tail");
            let first = (held && plan.refines).then_some("tail_first");
            ["latents"].into_iter().chain(tail).chain(first).collect()
        }
        // What the next window shows as well belongs to its own preview.
        TaskKind::Preview(_) => vec!["interior"],
        TaskKind::Decode(index) => {
            let shares = plan.shares(index);
            let names = [
                wanted("head", shares.head_frames),
                wanted("interior", shares.interior_frames),
                wanted("tail", shares.tail_frames),
            ];
            names.into_iter().flatten().collect()
        }
        TaskKind::Seam(_) => vec!["chunk"],
        // A sequence of pictures is fetched chunk by chunk; there is no one file of it.
        TaskKind::Mux => wanted("video", u32::from(spec.codec == Codec::H264))
            .into_iter()
            .collect(),
    }
}

fn conditions_next(spec: &JobSpec, plan: &Plan, index: u32) -> bool {
    spec.continuity == Continuity::Chain && plan.is_joined(index)
}

/// An input that should be there is not: the stored state does not fit the plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the result of {task} has no '{name}': the stored state is damaged, submit the job again")]
pub struct MissingInput {
    task: TaskKind,
    name: &'static str,
}

/// Builds the work of a task from the results of its inputs, which `output` finds.
pub fn work<'a>(
    spec: &JobSpec,
    plan: &Plan,
    kind: TaskKind,
    output: impl Fn(TaskKind) -> Option<&'a TaskOutput>,
) -> Result<Work, MissingInput> {
    let artifact = |task: TaskKind, name: &'static str| -> Result<Hash, MissingInput> {
        let found = output(task).and_then(|output| output.artifacts.get(name).copied());
        found.ok_or(MissingInput { task, name })
    };
    let picture = || Picture {
        width: spec.width,
        height: spec.height,
        fps: spec.fps,
        codec: spec.codec,
    };
    Ok(match kind {
        TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => {
            let (prompt, negative) = words(spec, plan, kind);
            Work::Text {
                model: spec.model.clone(),
                prompt: prompt.to_owned(),
                negative: (spec.sampling.uses_negative()).then(|| negative.to_owned()),
                text_tokens: spec.sampling.text_tokens,
                reference: spec.sampling.reference,
            }
        }
        TaskKind::Denoise(index) | TaskKind::Refine(index) => Work::Denoise {
            model: spec.model.clone(),
            window: plan.windows[index as usize].clone(),
            padded_width: spec.padded_width(),
            padded_height: spec.padded_height(),
            fps: spec.fps,
            sampling: spec.sampling.clone(),
            text: artifact(text(plan, index), "text")?,
            conditioning: (held_to(spec, plan, index))
                .map(|before| artifact(last_pass(plan, before), tail_name(plan, kind)))
                .transpose()?,
            tail_frames: (kind == last_pass(plan, index) && conditions_next(spec, plan, index))
                .then_some(plan.overlap_frames),
            held: held(spec, plan, index),
            shown: (spec.width, spec.height),
            first_pass: (kind == TaskKind::Refine(index))
                .then(|| artifact(TaskKind::Denoise(index), "latents"))
                .transpose()?,
        },
        TaskKind::Preview(index) => preview(
            spec,
            plan,
            index,
            artifact(TaskKind::Denoise(index), "latents")?,
        ),
        TaskKind::Decode(index) => {
            let shares = plan.shares(index);
            Work::Decode {
                model: spec.model.clone(),
                window: plan.windows[index as usize].clone(),
                latents: artifact(last_pass(plan, index), "latents")?,
                sampling: spec.sampling.clone(),
                picture: picture(),
                head_frames: shares.head_frames,
                relax_frames: shares.relax_frames,
                lead_frames: shares.lead_frames,
                tail_frames: shares.tail_frames,
            }
        }
        TaskKind::Seam(index) => Work::Seam {
            left: artifact(TaskKind::Decode(index), "tail")?,
            right: artifact(TaskKind::Decode(index + 1), "head")?,
            lead_frames: plan.shares(index).lead_frames,
            overlap_frames: plan.overlap_frames,
            relax_frames: plan.shares(index + 1).relax_frames,
            picture: picture(),
        },
        TaskKind::Mux => Work::Mux {
            chunks: chunks(plan, artifact)?,
            picture: picture(),
            metadata: FilmMetadata {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                prompt: spec.prompt.clone(),
                negative: spec.negative.clone(),
                model: spec.model.hash,
                continuity: spec.continuity,
                windows: plan.windows.clone(),
                prompts: plan.prompts.clone(),
                shots: spec.shots.clone(),
            },
            seams: plan.overlaps(),
            cuts: plan.cut_frames(),
        },
    })
}

/// The tail of a window that is of the size of pass `kind` of the next.
fn tail_name(plan: &Plan, kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Denoise(_) if plan.refines => "tail_first",
        _ => "tail",
    }
}

/// Decodes the first pass of a window as one chunk, without what the next window shows as well: so
/// the chunks of all windows make one film.
fn preview(spec: &JobSpec, plan: &Plan, index: u32, latents: Hash) -> Work {
    let window = plan.windows[index as usize].clone();
    let (width, height) = spec.preview_size();
    Work::Decode {
        model: spec.model.clone(),
        window: Window {
            visible_frames: window.visible_frames - plan.shares(index).tail_frames,
            ..window
        },
        latents,
        sampling: spec.sampling.first_only(),
        picture: Picture {
            width,
            height,
            fps: spec.fps,
            codec: Codec::H264,
        },
        head_frames: 0,
        relax_frames: 0,
        lead_frames: 0,
        tail_frames: 0,
    }
}

/// The pictures that a window is held to, besides the tail of the one before.
fn held(spec: &JobSpec, plan: &Plan, index: u32) -> Vec<HeldPictures> {
    let before = index.checked_sub(1);
    let continues = before.is_some_and(|before| conditions_next(spec, plan, before));
    let continued = if continues { plan.overlap_frames } else { 0 };
    let window = &plan.windows[index as usize];
    let items = spec.conditioning.iter();
    items
        .filter_map(|item| item.in_window(window, continued))
        .collect()
}

/// Prompt and negative prompt that a text task encodes.
fn words<'a>(spec: &'a JobSpec, plan: &'a Plan, kind: TaskKind) -> (&'a str, &'a str) {
    match kind {
        TaskKind::OwnText(index) => (plan.prompt(spec, index), plan.negative(spec, index)),
        TaskKind::ShotText(shot) => {
            let shot = &spec.shots[shot as usize - 1];
            let negative = shot.negative.as_ref().unwrap_or(&spec.negative);
            (&shot.prompt, negative)
        }
        _ => (&spec.prompt, &spec.negative),
    }
}

/// The tasks whose results change when window `index` is rendered anew. The window after it keeps
/// what it was held to, or a change of one window would change all that follow.
pub fn retaken(plan: &Plan, index: u32) -> Vec<TaskKind> {
    let own_text = plan.prompts.contains_key(&index);
    let seams = [
        index
            .checked_sub(1)
            .filter(|before| plan.is_joined(*before)),
        Some(index).filter(|index| plan.is_joined(*index)),
    ];
    let preview = plan.previews.then_some(TaskKind::Preview(index));
    (own_text.then_some(TaskKind::OwnText(index)).into_iter())
        .chain(passes(plan, index))
        .chain(preview)
        .chain([TaskKind::Decode(index)])
        .chain(seams.into_iter().flatten().map(TaskKind::Seam))
        .chain([TaskKind::Mux])
        .collect()
}

/// The film's chunks in order.
pub fn chunks<E>(
    plan: &Plan,
    artifact: impl Fn(TaskKind, &'static str) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    let spans = plan.spans();
    let chunk = |source| match source {
        Source::Interior(index) => artifact(TaskKind::Decode(index), "interior"),
        Source::Seam(index) => artifact(TaskKind::Seam(index), "chunk"),
    };
    spans.iter().map(|span| chunk(span.source)).collect()
}

/// Which of a worker's lanes does it.
pub fn lane(kind: TaskKind) -> Lane {
    match kind {
        TaskKind::Text
        | TaskKind::ShotText(_)
        | TaskKind::OwnText(_)
        | TaskKind::Denoise(_)
        | TaskKind::Preview(_)
        | TaskKind::Refine(_)
        | TaskKind::Decode(_) => Lane::Device,
        TaskKind::Seam(_) | TaskKind::Mux => Lane::Host,
    }
}

/// How much there is to do, in frames.
pub fn units(plan: &Plan, kind: TaskKind) -> f64 {
    f64::from(match kind {
        TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => 1,
        TaskKind::Denoise(index)
        | TaskKind::Preview(index)
        | TaskKind::Refine(index)
        | TaskKind::Decode(index) => plan.windows[index as usize].frames,
        TaskKind::Seam(index) => plan.seam_frames(index),
        TaskKind::Mux => plan
            .spans()
            .last()
            .map_or(0, |span| span.first_frame + span.frames),
    })
}

/// Work of one unit relative to denoising a frame, before anything was measured. Rough on purpose:
/// it only has to keep a progress bar from jumping.
pub fn unit_weight(kind: TaskKind) -> f64 {
    match kind {
        TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => 5.0,
        TaskKind::Denoise(_) => 1.0,
        TaskKind::Preview(_) => 0.3,
        // With the official files, the second pass takes three quarters of both.
        TaskKind::Refine(_) => 3.0,
        TaskKind::Decode(_) => 0.6,
        TaskKind::Seam(_) => 0.3,
        TaskKind::Mux => 0.02,
    }
}

#[cfg(test)]
pub(crate) mod tests;
