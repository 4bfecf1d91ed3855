//! What every part of longtake shares: ids, the job a user asks for and its validation, the work a
//! worker is given, frames, the artifact store, video files in and out, telemetry.
//!
//! Knows no model, no scheduler, no socket. Start with [`spec::JobSpec`] and [`task::Work`].

#[cfg(feature = "artifacts")]
pub mod artifact;
pub mod conditioning;
pub mod film;
pub mod frame;
pub mod ids;
pub mod keys;
#[cfg(feature = "media")]
pub mod media;
pub mod model;
pub mod pipeline;
pub mod request;
pub mod sampling;
pub mod shots;
pub mod spec;
pub mod task;
#[cfg(feature = "telemetry")]
pub mod telemetry;

pub use frame::{Frame, Sample};
pub use ids::{Epoch, FencingToken, Hash, JobId, TaskId, WorkerId};
pub use spec::{Continuity, JobSpec};
