//! How fast an installation renders: measured on jobs that are done, or assumed. What `plan` says
//! about time and memory rests on this.

use crate::client::Client;
use anyhow::Result;
use longtake_common::sampling::{Pass, Schedule};
use longtake_common::spec::{Continuity, JobSpec, PIXELS_PER_LATENT};
use longtake_core::{Plan, TaskKind, plan};
use longtake_proto::v1;
use longtake_server::convert::spec_from_proto;
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

/// Done jobs of a farm that are looked at, latest first.
const JOBS_MAX: usize = 5;
/// What was measured is joined with what is assumed of so much work, about a window of 25 small frames:
/// otherwise what a worker takes whatever it renders would pass for the price of a few pixels.
const PRIOR: Amounts = Amounts {
    text: 0.5,
    pass1: 1e3,
    decode: 1e6,
    encode: 1e6,
    seam: 3e5,
    mux: 1e6,
};
/// See [`PRIOR`], of a window's memory.
const PRIOR_PIXELS: f64 = 1e6;
/// Frames that are decoded before a tail.
const TAIL_HALO_FRAMES: u32 = 32;

/// What is assumed of one thread where nothing was measured: ltxv-tiny on a server processor of
/// 2023 with AVX-512, as `nice -n -10 longtake render PROMPT --seconds 12 --workers 1 --threads 1`
/// leaves it in [`FILE`] (the median of three runs, beside other work). A larger model's figures are
/// these times its bytes over ltxv-tiny's.
const ASSUMED: Amounts = Amounts {
    text: 0.002,
    pass1: 3.4e-4,
    decode: 7.5e-7,
    encode: 1.2e-7,
    seam: 8.7e-7,
    mux: 8e-8,
};
/// Peak memory of a worker over the pixels of all frames of a window, with ltxv-tiny; from the same
/// runs, less the model's files.
const ASSUMED_BYTES_PER_PIXEL: f64 = 81.0;
/// Bytes of ltxv-tiny's files.
const TINY_BYTES: f64 = 1.6e7;

/// How far a forecast is stretched to either side.
const SPREAD_MEASURED: f64 = 1.5;
const SPREAD_ASSUMED: f64 = 4.0;

/// Where an installation keeps what it has measured.
const FILE: &str = "longtake/pace.json";

/// One figure for each sort of work: amounts of it, seconds that it took, or seconds for each unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Amounts {
    /// Prompts.
    text: f64,
    /// Tokens times steps times rows of guidance.
    pass1: f64,
    /// Pixels of decoded frames.
    decode: f64,
    /// Pixels of packed and encoded frames.
    encode: f64,
    /// Pixels of the frames of seams.
    seam: f64,
    /// Pixels of the film's frames, which are put together and looked at once more.
    mux: f64,
}

impl Amounts {
    /// What a task consists of.
    fn of(spec: &JobSpec, plan: &Plan, kind: TaskKind) -> Self {
        let pixels = f64::from(spec.padded_width()) * f64::from(spec.padded_height());
        let mut amounts = Self::default();
        match kind {
            TaskKind::Text | TaskKind::ShotText(_) | TaskKind::OwnText(_) => amounts.text = 1.0,
            TaskKind::Denoise(index) | TaskKind::Refine(index) => {
                let window = &plan.windows[index as usize];
                let cell = f64::from(PIXELS_PER_LATENT * PIXELS_PER_LATENT);
                let is_second = kind == TaskKind::Refine(index);
                let [first, last] = pass_shares(spec);
                let share = if is_second { last } else { first };
                let tokens = f64::from(window.latents()) * pixels * share / cell;
                let pass = spec.sampling.passes().nth(usize::from(is_second));
                amounts.pass1 = tokens * pass.map_or(0.0, row_steps);
                let is_last = is_second == plan.refines;
                if is_last && spec.continuity == Continuity::Chain && plan.is_joined(index) {
                    let decoded = (plan.overlap_frames + TAIL_HALO_FRAMES).min(window.frames);
                    amounts.decode = pixels * share * f64::from(decoded);
                    amounts.encode = pixels * share * f64::from(plan.overlap_frames);
                }
            }
            TaskKind::Preview(index) | TaskKind::Decode(index) => {
                let window = &plan.windows[index as usize];
                let is_preview = kind == TaskKind::Preview(index);
                let [first, last] = pass_shares(spec);
                let share = if is_preview { first } else { last };
                amounts.decode = pixels * share * f64::from(window.frames);
                let encoded = if is_preview { first } else { 1.0 };
                amounts.encode = pixels * encoded * f64::from(window.visible_frames);
            }
            TaskKind::Seam(index) => {
                amounts.seam = pixels * f64::from(plan.seam_frames(index));
                amounts.encode = amounts.seam;
            }
            TaskKind::Mux => amounts.mux = pixels * f64::from(spec.frames),
        }
        amounts
    }

    fn each(self) -> [f64; 6] {
        [
            self.text,
            self.pass1,
            self.decode,
            self.encode,
            self.seam,
            self.mux,
        ]
    }

    fn from_each([text, pass1, decode, encode, seam, mux]: [f64; 6]) -> Self {
        Self {
            text,
            pass1,
            decode,
            encode,
            seam,
            mux,
        }
    }

    /// Combines two figures of each sort.
    fn with(self, other: Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        let (a, b) = (self.each(), other.each());
        Self::from_each(std::array::from_fn(|sort| combine(a[sort], b[sort])))
    }
}

impl AddAssign for Amounts {
    fn add_assign(&mut self, other: Self) {
        *self = self.with(other, |a, b| a + b);
    }
}

/// Pixels of the first and of the last pass over those of the film.
fn pass_shares(spec: &JobSpec) -> [f64; 2] {
    let pixels = |[height, width]: [u32; 2]| f64::from(height) * f64::from(width);
    let padded = spec.padded();
    let sizes = [
        spec.sampling.first_size(padded),
        spec.sampling.last_size(padded),
    ];
    sizes.map(|size| pixels(size) / pixels(padded))
}

/// Rows that a pass predicts, over all steps.
fn row_steps(pass: &Pass) -> f64 {
    steps(pass) * rows(pass)
}

fn steps(pass: &Pass) -> f64 {
    let all = match &pass.schedule {
        Schedule::Timesteps(timesteps) => timesteps.len() as f64,
        Schedule::Steps(steps) => f64::from(*steps),
    };
    all - f64::from(pass.skip_initial_steps) - f64::from(pass.skip_final_steps)
}

/// Predictions for each step: with the prompt, without it, perturbed.
fn rows(pass: &Pass) -> f64 {
    let steps = || pass.guidance.steps.iter();
    let negative = f64::from(u8::from(pass.guidance.uses_negative()));
    let perturbed = f64::from(u8::from(steps().any(|step| step.stg_scale != 0.0)));
    1.0 + negative + perturbed
}

/// Pixels of all frames of the largest window.
fn window_pixels(spec: &JobSpec, plan: &Plan) -> f64 {
    let frames = plan.windows.iter().map(|window| window.frames).max();
    let pixels = f64::from(spec.padded_width()) * f64::from(spec.padded_height());
    pixels * f64::from(frames.unwrap_or(0))
}

/// What jobs that are done have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    amounts: Amounts,
    seconds: Amounts,
    bytes_per_pixel: f64,
    jobs: u32,
}

impl Measured {
    /// Looks at a job; what was there before it is not counted. `None` when that was all.
    fn of(job: &v1::Job) -> Option<Self> {
        let spec = spec_from_proto(job.spec.clone()?).ok()?;
        let plan = plan(&spec);
        let mut measured = Self {
            jobs: 1,
            ..Self::default()
        };
        let fresh = job.segments.iter().filter(|segment| !segment.reused);
        for segment in fresh.filter(|segment| segment.index < plan.window_count()) {
            let index = segment.index;
            let passes = [TaskKind::Denoise(index), TaskKind::Decode(index)].into_iter();
            let second = plan.refines.then_some(TaskKind::Refine(index));
            let own = passes
                .chain(second)
                .chain(plan.previews.then_some(TaskKind::Preview(index)));
            let seam = plan.continues(index).then(|| TaskKind::Seam(index - 1));
            for kind in own.chain(seam) {
                measured.amounts += Amounts::of(&spec, &plan, kind);
            }
            let took = |phase: &str| segment.seconds.get(phase).copied().unwrap_or(0.0);
            let text = took("text");
            measured.amounts.text += f64::from(u8::from(text > 0.0));
            measured.seconds += Amounts {
                text,
                pass1: took("pass1") + took("pass2") + took("upsample"),
                decode: took("decode"),
                encode: took("encode"),
                seam: took("seam"),
                mux: 0.0,
            };
        }
        if measured.amounts.pass1 == 0.0 {
            return None;
        }
        if let Some(mux_seconds) = job.mux_seconds {
            measured.amounts += Amounts::of(&spec, &plan, TaskKind::Mux);
            measured.seconds.mux = mux_seconds;
        }
        let mut workers: Vec<_> = job.segments.iter().map(|s| s.worker.as_str()).collect();
        workers.sort_unstable();
        workers.dedup();
        let peak = job.workers_peak_rss_bytes as f64 / workers.len().max(1) as f64;
        measured.bytes_per_pixel = (peak + ASSUMED_BYTES_PER_PIXEL * PRIOR_PIXELS)
            / (window_pixels(&spec, &plan) + PRIOR_PIXELS);
        Some(measured)
    }

    fn add(&mut self, other: Self) {
        self.amounts += other.amounts;
        self.seconds += other.seconds;
        self.bytes_per_pixel = self.bytes_per_pixel.max(other.bytes_per_pixel);
        self.jobs += other.jobs;
    }
}

/// What a forecast rests on.
#[derive(Clone, Debug)]
pub struct Basis {
    /// Seconds for a unit of each sort.
    pace: Amounts,
    bytes_per_pixel: f64,
    /// Bytes of the model's files, where the figures above do not include them.
    model_bytes: u64,
    /// A forecast may be off by so much to either side.
    pub spread: f64,
    /// Whether anything of it was measured.
    pub is_measured: bool,
    /// A sentence for the user.
    pub source: String,
}

impl Basis {
    /// Rests on what was measured; the less there is of a sort of work, the more on what is assumed.
    fn measured(measured: &Measured, source: String, assumed: &Amounts) -> Self {
        let prior_seconds = PRIOR.with(*assumed, |n, s| n * s);
        let seconds = measured
            .seconds
            .with(prior_seconds, |own, prior| own + prior);
        let amounts = measured.amounts.with(PRIOR, |own, prior| own + prior);
        Self {
            pace: seconds.with(amounts, |s, n| s / n),
            bytes_per_pixel: measured.bytes_per_pixel,
            model_bytes: 0,
            spread: SPREAD_MEASURED,
            is_measured: true,
            source,
        }
    }

    /// Rests on assumptions about the model in this file or folder.
    pub fn assumed_of(model: &Path, threads: usize) -> Self {
        Self::assumed(bytes_of(model), threads)
    }

    /// Rests on assumptions about a model of so many bytes.
    fn assumed(model_bytes: u64, threads: usize) -> Self {
        let scale = (model_bytes as f64 / TINY_BYTES).max(0.1);
        Self {
            pace: assumed(scale, threads),
            bytes_per_pixel: ASSUMED_BYTES_PER_PIXEL,
            model_bytes,
            spread: SPREAD_ASSUMED,
            is_measured: false,
            source: format!(
                "nothing was measured here yet: assumed from the size of the model ({:.0} MB) and \
                 {threads} threads a worker of a processor of 2023, so it may be far off",
                model_bytes as f64 / 1e6
            ),
        }
    }

    /// Seconds of a task.
    pub fn cost(&self, spec: &JobSpec, plan: &Plan, kind: TaskKind) -> f64 {
        let amounts = Amounts::of(spec, plan, kind);
        amounts.with(self.pace, |n, s| n * s).each().iter().sum()
    }

    /// Peak memory of one worker.
    pub fn worker_bytes(&self, spec: &JobSpec, plan: &Plan) -> u64 {
        (self.bytes_per_pixel * window_pixels(spec, plan)) as u64 + self.model_bytes
    }
}

/// Sorts of work that only pictures matter for do not grow with the model.
fn assumed(scale: f64, threads: usize) -> Amounts {
    let threads = threads.max(1) as f64;
    let model = |seconds: f64| seconds * scale / threads;
    Amounts {
        text: model(ASSUMED.text),
        pass1: model(ASSUMED.pass1),
        decode: model(ASSUMED.decode),
        ..ASSUMED
    }
}

/// Workers of one kind with one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// Name or path of the model.
    pub model: String,
    /// As in `--device`.
    pub device: String,
    /// Instruction-set level.
    pub isa: String,
    /// Threads of each worker.
    pub threads: usize,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    of: Installation,
    measured: Measured,
}

/// `$XDG_STATE_HOME/longtake/pace.json`, `~/.local/state` where that is not set.
fn file() -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let state = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
    let folder = state.or_else(|| Some(variable("HOME")?.join(".local/state")))?;
    Some(folder.join(FILE))
}

fn entries() -> Vec<Entry> {
    let text = file().and_then(|path| std::fs::read_to_string(path).ok());
    // A file that cannot be read is as good as none: it holds nothing that cannot be measured again.
    text.and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// Notes how a job of our own went. Nothing depends on it, so failing to is no failure.
pub fn note(of: Installation, job: &v1::Job) {
    let Some((measured, path)) = Measured::of(job).zip(file()) else {
        return;
    };
    let mut entries = entries();
    // The latest job counts: machine and build change.
    entries.retain(|entry| entry.of != of);
    entries.push(Entry { of, measured });
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    let text = serde_json::to_string(&entries).unwrap_or_default();
    let written = written
        .map_err(anyhow::Error::from)
        .and_then(|()| crate::output::write_whole(&path, text.as_bytes()));
    if let Err(error) = written {
        tracing::debug!("the pace of this render is not noted: {error:#}");
    }
}

/// What is known about workers of our own.
pub fn here(of: &Installation, model: Option<&Path>) -> Option<Basis> {
    let model_bytes = model.map(bytes_of);
    let noted = entries().into_iter().find(|entry| entry.of == *of);
    if let Some(entry) = noted {
        let source = format!(
            "the last render with {} on this machine ({}, {}, {} threads a worker)",
            of.model, of.device, of.isa, of.threads
        );
        let scale = model_bytes.map_or(1.0, |bytes| bytes as f64 / TINY_BYTES);
        let fallback = assumed(scale, of.threads);
        return Some(Basis::measured(&entry.measured, source, &fallback));
    }
    model_bytes.map(|bytes| Basis::assumed(bytes, of.threads))
}

/// What a farm has shown with `model`, if it has done a job with it.
pub async fn on_farm(client: &mut Client, model: &str) -> Result<Option<Basis>> {
    let jobs = client.list().await?;
    let is_like = |job: &&v1::Job| {
        let spec = job.spec.as_ref().and_then(|spec| spec.model.as_ref());
        job.state() == v1::JobState::Done && spec.is_some_and(|of| of.location == model)
    };
    let mut all = Measured::default();
    for job in jobs.iter().filter(is_like).rev().take(JOBS_MAX) {
        let job = client.get(&job.job).await?;
        all.add(Measured::of(&job).unwrap_or_default());
    }
    let plural = if all.jobs == 1 { "" } else { "s" };
    let source = format!(
        "{} job{plural} that this farm has done with {model}",
        all.jobs
    );
    Ok((all.amounts.pass1 > 0.0).then(|| Basis::measured(&all, source, &assumed(1.0, 1))))
}

/// Bytes of a file, or of the files in a folder and those below it.
fn bytes_of(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return path.metadata().map_or(0, |data| data.len());
    };
    entries.flatten().map(|entry| bytes_of(&entry.path())).sum()
}
