//! Device time between two points of the stream.

use crate::backend::CudaBackend;
use crate::error::{During, Result};
use cudarc::driver::{CudaEvent, sys};

/// A point in the stream.
pub struct Mark(CudaEvent);

impl CudaBackend {
    /// Marks where the stream is now.
    pub fn mark(&self) -> Result<Mark> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = self
            .device()
            .context
            .new_event(flags)
            .during("create an event")?;
        event
            .record(&self.device().stream)
            .during("record an event")?;
        Ok(Mark(event))
    }

    /// Milliseconds of device time from one mark to a later one; waits for the later one.
    pub fn elapsed_ms(&self, from: &Mark, to: &Mark) -> Result<f32> {
        to.0.synchronize().during("wait for an event")?;
        from.0.elapsed_ms(&to.0).during("read an event")
    }
}
