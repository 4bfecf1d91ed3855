//! What each kind of work means in terms of the model, the joining and the media code.

mod decode;
mod denoise;
mod held;
mod mux;
mod sampling;
mod seam;
mod soften;
mod text;

pub(crate) use denoise::decode_request;
pub use sampling::check as check_sampling;
pub(crate) use sampling::pass as model_pass;

use crate::artifacts::Artifacts;
use crate::control::Control;
use crate::error::{AgentError, TaskError};
use crate::gang::GangSettings;
use crate::host;
use crate::lane::Executor;
use crate::models::{ModelCache, Shelf};
use crate::serve::OrderContext;
use longtake_common::task::{Assignment, TaskOutput, Work};
use longtake_common::telemetry;
use longtake_common::{Frame, Hash};
use longtake_ltx::Video;
use longtake_tensor::Backend;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::Level;

/// Lost ranks in one try of a task before it counts as failed: what comes back as often is not bad
/// luck.
const GANG_LOSSES_MAX: u32 = 8;

/// What a task may touch.
pub struct Desk<'a> {
    /// The artifact store.
    pub artifacts: &'a Artifacts,
    /// Cancellation and progress.
    pub control: &'a Control,
    /// Seconds by phase, so far.
    pub clock: &'a mut Clock,
    /// Artifact of a worker that had to leave in the middle of this task.
    pub halfway: Option<Hash>,
}

impl Desk<'_> {
    /// Fails when the task was taken back, or the worker has to leave: then with what another can go
    /// on with.
    pub fn check(&self) -> Result<(), TaskError> {
        match (self.control.is_cancelled(), self.control.is_leaving()) {
            (true, _) => Err(TaskError::Cancelled),
            (_, true) => Err(TaskError::Left(self.control.kept())),
            _ => Ok(()),
        }
    }
}

/// Seconds by phase, for the report. Nothing that is rendered depends on it.
#[derive(Default)]
pub struct Clock {
    seconds: BTreeMap<String, f64>,
}

impl Clock {
    /// Adds what another worker took for a part of `phase`.
    pub fn add(&mut self, phase: &str, seconds: f64) {
        *self.seconds.entry(phase.to_owned()).or_default() += seconds;
    }

    /// What `phase` took so far.
    pub fn seconds(&self, phase: &str) -> f64 {
        self.seconds.get(phase).copied().unwrap_or_default()
    }

    /// Runs `body` on the account of `phase`.
    pub fn time<T>(&mut self, phase: &str, body: impl FnOnce() -> T) -> T {
        let _span = tracing::info_span!("phase", otel.name = phase).entered();
        let started = Instant::now();
        let result = body();
        self.add(phase, started.elapsed().as_secs_f64());
        result
    }
}

/// The lane that has the model.
pub struct DeviceExecutor<B: Backend> {
    backend: B,
    models: ModelCache<B>,
    runtime: Handle,
    lost: Arc<LostDevice>,
}

/// Told when the device has failed for good: the worker then leaves, for only a new process can use
/// the device again.
#[derive(Default)]
pub struct LostDevice {
    story: Mutex<Option<String>>,
    told: Notify,
}

impl LostDevice {
    fn tell(&self, story: &str) {
        *self.story.lock().unwrap_or_else(PoisonError::into_inner) = Some(story.to_owned());
        self.told.notify_one();
    }

    /// Resolves when the device is lost.
    pub async fn told(&self) {
        self.told.notified().await;
    }

    /// What happened to it, if anything did.
    pub fn story(&self) -> Option<String> {
        let story = self.story.lock();
        story.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<B: Backend + 'static> DeviceExecutor<B> {
    /// A lane on `backend` with the models of `shelf`; artifacts are read through `runtime`.
    /// With `gang`, windows are shared with other ranks.
    pub fn new(
        backend: B,
        shelf: Arc<Shelf>,
        gang: Option<GangSettings>,
        runtime: Handle,
        lost: Arc<LostDevice>,
    ) -> Self {
        Self {
            models: ModelCache::new(backend.clone(), shelf, gang),
            backend,
            runtime,
            lost,
        }
    }

    /// Says so when an error is the device's end.
    fn judge(&self, error: TaskError) -> TaskError {
        let Err(death) = self.backend.check_alive() else {
            return error;
        };
        let story = format!("{error} ({death}: the device has failed, and this worker leaves)");
        self.lost.tell(&story);
        TaskError::Retryable(story)
    }
}

impl<B: Backend + 'static> Executor for DeviceExecutor<B>
where
    longtake_ltx::Model<B>: Send,
{
    type Context = OrderContext;

    fn execute(
        &mut self,
        assignment: &Assignment,
        context: &OrderContext,
        control: &Control,
    ) -> Result<TaskOutput, TaskError> {
        // Between one block of the model and the next, not only between steps of a minute each.
        self.backend.interrupt_by(control.flag());
        let runtime = self.runtime.clone();
        let share = assignment.share;
        self.models.set_share(share);
        let done = run(assignment, context, control, &runtime, |desk| match share {
            Some(share) if share.follows() => self.follow(assignment, desk),
            Some(share) if !share.is_whole() => self.lead(assignment, desk),
            _ => self.until_a_gang_lasts(assignment, desk),
        });
        match done {
            Ok(mut output) => {
                output.peak_rss_bytes += self.models.ranks_peak_bytes();
                output.notices.extend(self.backend.memory_notices());
                Ok(output)
            }
            Err(error @ (TaskError::Cancelled | TaskError::Followed)) => Err(error),
            Err(error) => Err(self.judge(error)),
        }
    }

    fn reset(&mut self) {
        self.models.clear();
    }
}

impl<B: Backend + 'static> DeviceExecutor<B>
where
    longtake_ltx::Model<B>: Send,
{
    /// Does the work. A rank that is lost costs the work in hand, not a try of the task: it is done again
    /// with another.
    fn until_a_gang_lasts(
        &mut self,
        assignment: &Assignment,
        desk: &mut Desk<'_>,
    ) -> Result<TaskOutput, TaskError> {
        for losses in 1.. {
            let done = self.work(assignment, desk);
            let Err(error) = &done else {
                return done;
            };
            let is_lost = self.models.disband() | matches!(error, TaskError::Gang(_));
            if !is_lost || desk.control.is_cancelled() {
                return done;
            }
            if losses > GANG_LOSSES_MAX {
                return Err(TaskError::Retryable(error.to_string()));
            }
            tracing::warn!("the gang has failed ({error}); going on with another");
        }
        unreachable!("the loop has no other end")
    }

    /// Does the work as the first rank of a gang with other workers. When that loses a rank, the
    /// coordinator forms another.
    fn lead(
        &mut self,
        assignment: &Assignment,
        desk: &mut Desk<'_>,
    ) -> Result<TaskOutput, TaskError> {
        let done = self.work(assignment, desk);
        match done {
            Ok(output) => {
                self.models.part();
                Ok(output)
            }
            Err(error) if self.models.disband() => Err(TaskError::Gang(error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Follows the first rank of a gang.
    fn follow(
        &mut self,
        assignment: &Assignment,
        desk: &mut Desk<'_>,
    ) -> Result<TaskOutput, TaskError> {
        let (model, refining) = match &assignment.work {
            Work::Text { model, .. } => (model, None),
            Work::Denoise {
                model,
                sampling,
                first_pass: None,
                ..
            } => (sampling.first_pass.model.as_ref().unwrap_or(model), None),
            Work::Denoise {
                model, sampling, ..
            } => (sampling.last_model(model), Some(sampling)),
            Work::Decode {
                model, sampling, ..
            } => (sampling.last_model(model), None),
            Work::Seam { .. } | Work::Mux { .. } => return Err(wrong_lane(assignment)),
        };
        self.models.follow(model, refining, desk)?;
        Err(TaskError::Followed)
    }

    fn work(
        &mut self,
        assignment: &Assignment,
        desk: &mut Desk<'_>,
    ) -> Result<TaskOutput, TaskError> {
        match &assignment.work {
            Work::Text { model, .. } => {
                text::run(self.models.get(model, desk)?, &assignment.work, desk)
            }
            Work::Denoise {
                model,
                sampling,
                first_pass: None,
                ..
            } => {
                let own = sampling.first_pass.model.as_ref().unwrap_or(model);
                let model = self.models.get(own, desk)?;
                denoise::run(model, None, &assignment.work, desk)
            }
            Work::Denoise {
                model, sampling, ..
            } => {
                let own = sampling.last_model(model);
                let (model, upscaler) = self.models.refining(own, sampling, desk)?;
                denoise::run(model, upscaler, &assignment.work, desk)
            }
            Work::Decode {
                model, sampling, ..
            } => {
                let model = self.models.get(sampling.last_model(model), desk)?;
                decode::run(model, &assignment.work, desk)
            }
            Work::Seam { .. } | Work::Mux { .. } => Err(wrong_lane(assignment)),
        }
    }
}

/// The lane for pictures and files.
pub struct HostExecutor {
    runtime: Handle,
    pool: rayon::ThreadPool,
    scratch: PathBuf,
}

impl HostExecutor {
    /// A lane that reads artifacts through `runtime`, compares pictures on `threads` threads and
    /// puts films together in `scratch`.
    pub fn new(runtime: Handle, threads: usize, scratch: PathBuf) -> Result<Self, AgentError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("host-{index}"))
            .build();
        let pool = pool.map_err(|error| AgentError::Device(error.to_string()))?;
        Ok(Self {
            runtime,
            pool,
            scratch,
        })
    }
}

impl Executor for HostExecutor {
    type Context = OrderContext;

    fn execute(
        &mut self,
        assignment: &Assignment,
        context: &OrderContext,
        control: &Control,
    ) -> Result<TaskOutput, TaskError> {
        run(
            assignment,
            context,
            control,
            &self.runtime,
            |desk| match &assignment.work {
                Work::Seam { .. } => seam::run(&assignment.work, &self.pool, desk),
                Work::Mux { .. } => mux::run(&assignment.work, &self.pool, &self.scratch, desk),
                Work::Text { .. } | Work::Denoise { .. } | Work::Decode { .. } => {
                    Err(wrong_lane(assignment))
                }
            },
        )
    }

    fn reset(&mut self) {}
}

fn wrong_lane(assignment: &Assignment) -> TaskError {
    TaskError::Retryable(format!("{} was given to the wrong lane", assignment.task))
}

/// Everything around a task that is the same for all kinds.
fn run(
    assignment: &Assignment,
    context: &OrderContext,
    control: &Control,
    runtime: &Handle,
    body: impl FnOnce(&mut Desk<'_>) -> Result<TaskOutput, TaskError>,
) -> Result<TaskOutput, TaskError> {
    let (job, task) = (&assignment.job, &assignment.task);
    let name = task.0.as_str();
    let span =
        tracing::info_span!("task", otel.name = name, %job, %task, attempt = assignment.attempt);
    telemetry::continue_trace(&span, Some(&context.traceparent));
    let _span = span.entered();
    let log = control.log();
    log.set_context([
        ("job", job.0.as_str().into()),
        ("task", task.0.as_str().into()),
        ("worker", context.worker.as_str().into()),
        ("attempt", assignment.attempt.into()),
    ]);
    let _log = log.enter();
    tracing::debug!(inputs = assignment.work.inputs().len(), "begun");
    let started = Instant::now();
    let artifacts = Artifacts::open(&context.artifacts, runtime.clone())?;
    let mut clock = Clock::default();
    let done = body(&mut Desk {
        artifacts: &artifacts,
        control,
        clock: &mut clock,
        halfway: assignment.halfway,
    });
    let done = match done {
        // Whatever it stumbled over, it was to stop.
        Err(_) if control.is_cancelled() => Err(TaskError::Cancelled),
        Err(error) => Err(all_lost(error, &assignment.work, &artifacts)),
        done => done,
    };
    let mut seconds = clock.seconds;
    seconds.insert("total".to_owned(), started.elapsed().as_secs_f64());
    if matches!(done, Err(TaskError::Followed)) {
        tracing::debug!("done following");
        return done; // the log of the one that led tells the story
    }
    end_log(control, &done, &seconds, &artifacts);
    let mut output = done?;
    output.seconds = seconds;
    output.log = control.stored_log();
    output.peak_rss_bytes = host::peak_rss_bytes();
    Ok(output)
}

/// Says in the log how the task ended and how long its phases took, and stores it. That this fails
/// is no reason to give up a result.
fn end_log(
    control: &Control,
    done: &Result<TaskOutput, TaskError>,
    seconds: &BTreeMap<String, f64>,
    artifacts: &Artifacts,
) {
    let mut fields = serde_json::Map::new();
    fields.insert("seconds".to_owned(), serde_json::json!(seconds));
    let log = control.log();
    match done {
        Ok(output) => {
            let made = serde_json::json!(output.artifacts);
            fields.insert("artifacts".to_owned(), made);
            log.end(Level::INFO, "done", fields);
        }
        Err(TaskError::Cancelled) => log.end(Level::INFO, "stopped: it was taken back", fields),
        Err(error @ TaskError::Left(left)) => {
            fields.insert("halfway".to_owned(), serde_json::json!(left));
            log.end(Level::INFO, &error.to_string(), fields);
        }
        Err(error) => log.end(Level::ERROR, &error.to_string(), fields),
    }
    match artifacts.put(log.text().into_bytes()) {
        Ok(hash) => control.set_stored_log(hash),
        Err(error) => tracing::warn!("the log of a task cannot be stored: {error}"),
    }
}

/// Names all inputs that are missing when one is, so that they can be made again at the same time.
fn all_lost(error: TaskError, work: &Work, artifacts: &Artifacts) -> TaskError {
    let TaskError::Inputs { mut lost, story } = error else {
        return error;
    };
    lost.extend(artifacts.missing(&work.inputs()));
    lost.sort_unstable();
    lost.dedup();
    TaskError::Inputs { lost, story }
}

/// Pictures `range` of `video`.
fn frames(video: &Video, range: std::ops::Range<usize>) -> impl Iterator<Item = Frame> {
    let (width, height) = (video.width as u32, video.height as u32);
    let pictures = video.pictures().skip(range.start).take(range.len());
    pictures.map(move |rgb| {
        Frame::from_rgb8(width, height, rgb.to_vec()).expect("a video's pictures are of its size")
    })
}
