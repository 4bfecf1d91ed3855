//! Plans jobs and decides who does what, when and again.
//!
//! Everything here is a function of what comes in: no clock (`now_ms` is an argument), no socket,
//! no randomness, no async, no disk. [`Core::handle`] takes an [`Event`] and leaves [`Effects`]:
//! records to store first, then messages to send. Start with [`plan::plan`], then [`Core`].

mod census;
mod commands;
mod dag;
mod effects;
mod estimate;
mod explain;
mod forecast;
mod gang;
mod gather;
mod handle;
mod levels;
mod logs;
mod loss;
mod memory;
mod models;
pub mod plan;
mod record;
pub mod scaling;
mod schedule;
mod state;
mod view;
mod workers;

pub use census::Census;
pub use dag::TaskKind;
pub use effects::{Blame, Effect, Effects, Event, Running, Write};
pub use explain::Explanation;
pub use forecast::{Forecast, forecast};
pub use levels::unknown_level;
pub use logs::{LogView, windows_of};
pub use models::{Fault, Fetching, ModelView, StoredModel, StoredPart};
pub use plan::{Plan, plan};
pub use record::RestoreError;
pub use schedule::result_key;
pub use state::{Core, Limits};
pub use view::{ChunkView, JobState, JobView, PartsView, SegmentView};
pub use workers::{WorkerInfo, WorkerState, WorkerTask, WorkerView};
