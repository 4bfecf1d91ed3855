//! Between the wire types of `longtake.v1` and ours.

mod sampling;

use longtake_common::conditioning::{Conditioning, Role};
use longtake_common::ids::{BadHash, Hash};
use longtake_common::request::SpecError;
use longtake_common::spec::{Codec, Continuity, JobSpec, LoraRef, ModelRef, Shot, Transition};
use longtake_common::task::SeamScore;
use longtake_core::{
    ChunkView, Fetching, JobState, JobView, PartsView, SegmentView, WorkerTask, WorkerView,
};
use longtake_proto::v1;
use sampling::{sampling_from_proto, sampling_to_proto};

/// A message that does not say a job.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A part is missing or has a value that this version does not know.
    #[error("the request has no usable {0}: client and coordinator may be of different versions")]
    Field(&'static str),
    /// Not a hash.
    #[error(transparent)]
    Hash(#[from] BadHash),
    /// Against the rules for jobs.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

fn model_to_proto(model: &ModelRef) -> v1::ModelRef {
    v1::ModelRef {
        location: model.location.clone(),
        hash: model.hash.to_string(),
        text_encoder: model
            .text_encoder
            .as_deref()
            .map(|text| Box::new(model_to_proto(text))),
        eight_bit: model.eight_bit,
        loras: model.loras.iter().map(lora_to_proto).collect(),
        fuse_loras: model.fuse_loras,
    }
}

fn lora_to_proto(lora: &LoraRef) -> v1::Lora {
    v1::Lora {
        location: lora.location.clone(),
        hash: lora.hash.to_string(),
        strength: lora.strength,
    }
}

fn lora_from_proto(lora: v1::Lora) -> Result<LoraRef, ConvertError> {
    Ok(LoraRef {
        location: lora.location,
        hash: lora.hash.parse()?,
        strength: lora.strength,
    })
}

/// Text encoders of text encoders at most: the wire may say anything.
const NESTED_MAX: usize = 1;

fn model_from_proto(model: v1::ModelRef) -> Result<ModelRef, ConvertError> {
    nested_model(model, NESTED_MAX)
}

fn nested_model(model: v1::ModelRef, depth: usize) -> Result<ModelRef, ConvertError> {
    let text_encoder = match (model.text_encoder, depth.checked_sub(1)) {
        (None, _) => None,
        (Some(_), None) => return Err(ConvertError::Field("text encoder")),
        (Some(text), Some(depth)) => Some(Box::new(nested_model(*text, depth)?)),
    };
    let loras = model.loras.into_iter().map(lora_from_proto);
    Ok(ModelRef {
        location: model.location,
        hash: model.hash.parse()?,
        text_encoder,
        eight_bit: model.eight_bit,
        loras: loras.collect::<Result<_, _>>()?,
        fuse_loras: model.fuse_loras,
    })
}

/// A job for the wire.
pub fn spec_to_proto(spec: &JobSpec) -> v1::JobSpec {
    v1::JobSpec {
        prompt: spec.prompt.clone(),
        negative: spec.negative.clone(),
        frames: spec.frames,
        width: spec.width,
        height: spec.height,
        fps: spec.fps,
        seed: spec.seed,
        model: Some(model_to_proto(&spec.model)),
        continuity: match spec.continuity {
            Continuity::Chain => v1::Continuity::Chain,
            Continuity::None => v1::Continuity::None,
        }
        .into(),
        segment_frames: spec.segment_frames,
        overlap_frames: spec.overlap_frames,
        sampling: Some(sampling_to_proto(&spec.sampling)),
        codec: match spec.codec {
            Codec::H264 => v1::Codec::H264,
            Codec::Png => v1::Codec::Png,
        }
        .into(),
        shots: spec.shots.iter().map(shot_to_proto).collect(),
        conditioning: spec
            .conditioning
            .iter()
            .map(conditioning_to_proto)
            .collect(),
        previews: spec.previews,
    }
}

fn shot_to_proto(shot: &Shot) -> v1::Shot {
    v1::Shot {
        first_frame: shot.first_frame,
        transition: match shot.transition {
            Transition::Continuous => v1::Transition::Continuous,
            Transition::Cut => v1::Transition::Cut,
        }
        .into(),
        prompt: shot.prompt.clone(),
        negative: shot.negative.clone(),
        seed: shot.seed,
    }
}

fn shot_from_proto(shot: v1::Shot) -> Result<Shot, ConvertError> {
    Ok(Shot {
        first_frame: shot.first_frame,
        transition: match shot.transition() {
            v1::Transition::Continuous => Transition::Continuous,
            v1::Transition::Cut => Transition::Cut,
            v1::Transition::Unspecified => return Err(ConvertError::Field("transition")),
        },
        prompt: shot.prompt,
        negative: shot.negative,
        seed: shot.seed,
    })
}

fn conditioning_to_proto(item: &Conditioning) -> v1::Conditioning {
    v1::Conditioning {
        packs: item.packs.iter().map(Hash::to_string).collect(),
        frames: item.frames,
        first_frame: item.first_frame,
        strength: item.strength,
        softened: item.softened,
        reference_factor: item.role.reference_factor(),
        start: item.role == Role::Start,
    }
}

fn conditioning_from_proto(item: v1::Conditioning) -> Result<Conditioning, ConvertError> {
    let packs = item.packs.iter().map(|text| text.parse());
    Ok(Conditioning {
        packs: packs.collect::<Result<_, BadHash>>()?,
        frames: item.frames,
        first_frame: item.first_frame,
        strength: item.strength,
        softened: item.softened,
        role: match (item.reference_factor, item.start) {
            (None, false) => Role::Shown,
            (None, true) => Role::Start,
            (Some(factor), false) => Role::Reference { factor },
            (Some(_), true) => return Err(ConvertError::Field("role of pictures")),
        },
    })
}

/// A job from the wire, checked.
pub fn spec_from_proto(spec: v1::JobSpec) -> Result<JobSpec, ConvertError> {
    let (continuity, codec) = (spec.continuity(), spec.codec());
    let model = spec.model.ok_or(ConvertError::Field("model"))?;
    let sampling = spec.sampling.ok_or(ConvertError::Field("sampling"))?;
    let spec = JobSpec {
        prompt: spec.prompt,
        negative: spec.negative,
        frames: spec.frames,
        width: spec.width,
        height: spec.height,
        fps: spec.fps,
        seed: spec.seed,
        model: model_from_proto(model)?,
        continuity: match continuity {
            v1::Continuity::Chain => Continuity::Chain,
            v1::Continuity::None => Continuity::None,
            v1::Continuity::Unspecified => return Err(ConvertError::Field("continuity")),
        },
        segment_frames: spec.segment_frames,
        overlap_frames: spec.overlap_frames,
        sampling: sampling_from_proto(sampling)?,
        codec: match codec {
            v1::Codec::H264 => Codec::H264,
            v1::Codec::Png => Codec::Png,
            v1::Codec::Unspecified => return Err(ConvertError::Field("codec")),
        },
        shots: (spec.shots.into_iter())
            .map(shot_from_proto)
            .collect::<Result<_, _>>()?,
        conditioning: (spec.conditioning.into_iter())
            .map(conditioning_from_proto)
            .collect::<Result<_, _>>()?,
        previews: spec.previews,
    };
    spec.check()?;
    Ok(spec)
}

/// A job's state for the wire.
pub fn view_to_proto(view: &JobView) -> v1::Job {
    v1::Job {
        segments: view.segments.iter().map(segment_to_proto).collect(),
        seams: view.seams.iter().map(seam_to_proto).collect(),
        chunks: view.chunks.iter().map(Hash::to_string).collect(),
        ..outline_to_proto(view)
    }
}

/// A job's state without what grows with the length of the film: many jobs fit in one message.
pub fn outline_to_proto(view: &JobView) -> v1::Job {
    let done = view.segments.iter().filter(|segment| segment.done);
    v1::Job {
        job: view.job.to_string(),
        spec: Some(spec_to_proto(&view.spec)),
        state: match view.state {
            JobState::Queued => v1::JobState::Queued,
            JobState::Running => v1::JobState::Running,
            JobState::Paused => v1::JobState::Paused,
            JobState::Done => v1::JobState::Done,
            JobState::Failed => v1::JobState::Failed,
            JobState::Cancelled => v1::JobState::Cancelled,
        }
        .into(),
        error: view.error.clone(),
        segments: Vec::new(),
        seams: Vec::new(),
        eta_s: view.eta_s,
        progress: view.progress,
        mux_seconds: view.mux_seconds,
        video: view.video.as_ref().map(Hash::to_string),
        notices: view.notices.clone(),
        chunks: Vec::new(),
        workers_peak_rss_bytes: view.workers_peak_rss_bytes,
        segments_done: done.count() as u32,
        segments_total: view.segments.len() as u32,
        isa: view.isa.clone(),
        engine: view.engine.clone(),
    }
}

/// A worker for the wire.
pub fn worker_to_proto(view: &WorkerView) -> v1::Worker {
    let task = |task: &WorkerTask| v1::WorkerTask {
        job: task.job.to_string(),
        task: task.task.to_string(),
        progress: task.progress,
        share: task.share.map(|share| v1::Share {
            ranks: share.ranks,
            first: share.first,
            own: share.own,
        }),
    };
    v1::Worker {
        worker: view.worker.to_string(),
        name: view.info.name.clone(),
        device: view.info.device.clone(),
        isa: view.info.isa.clone(),
        threads: view.info.threads,
        ranks: view.info.ranks,
        memory_bytes: view.info.memory_bytes,
        peak_rss_bytes: view.peak_rss_bytes,
        state: view.state.name().to_owned(),
        tasks: view.tasks.iter().map(task).collect(),
        models: view.info.models.iter().map(Hash::to_string).collect(),
        fetching: view.fetching.map(
            |Fetching {
                 hash,
                 done_bytes,
                 total_bytes,
             }| v1::Fetching {
                model: hash.to_string(),
                done_bytes,
                total_bytes,
            },
        ),
    }
}

fn segment_to_proto(segment: &SegmentView) -> v1::Segment {
    v1::Segment {
        index: segment.index,
        first_frame: segment.first_frame,
        frames: segment.frames,
        seed: segment.seed,
        done: segment.done,
        worker: segment.worker.clone(),
        attempts: segment.attempts,
        reused: segment.reused,
        seconds: segment.seconds.clone().into_iter().collect(),
        latents: segment.latents.map(|hash| hash.to_string()),
        chunks: segment.chunks.iter().map(chunk_to_proto).collect(),
        take: segment.take,
        prompt: segment.prompt.clone(),
        parts: segment.parts.as_ref().map(parts_to_proto),
        preview: segment.preview.map(|hash| hash.to_string()),
    }
}

fn parts_to_proto(parts: &PartsView) -> v1::SegmentParts {
    let shares = &parts.shares;
    let text = |hash: &Option<Hash>| hash.as_ref().map(Hash::to_string);
    v1::SegmentParts {
        head_frames: shares.head_frames,
        relax_frames: shares.relax_frames,
        interior_frames: shares.interior_frames,
        lead_frames: shares.lead_frames,
        tail_frames: shares.tail_frames,
        head: text(&parts.head),
        interior: text(&parts.interior),
        tail: text(&parts.tail),
    }
}

fn chunk_to_proto(chunk: &ChunkView) -> v1::Chunk {
    v1::Chunk {
        first_frame: chunk.first_frame,
        frames: chunk.frames,
        artifact: chunk.chunk.to_string(),
    }
}

fn seam_to_proto(seam: &SeamScore) -> v1::Seam {
    v1::Seam {
        frame: seam.frame,
        method: seam.method.clone(),
        seam_ratio: seam.seam_ratio,
        warp_ratio: seam.warp_ratio,
        sharpness: seam.sharpness,
    }
}
