//! Device time: between two points of the stream, and by part of what was launched.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::{During, Result};
use cudarc::driver::{CudaEvent, sys};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// A point in the stream.
pub struct Mark(CudaEvent);

/// What a launch does, to judge its time by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Floating-point operations.
    Flops(f64),
    /// Bytes read and written, each once.
    Bytes(f64),
    Unknown,
}

/// Launches of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// How many.
    pub count: usize,
    /// Device time of all, waits for the host among it.
    pub ms: f64,
    /// Floating-point operations of all, where they count.
    pub flops: f64,
    /// Bytes that all have to move, where they count.
    pub bytes: f64,
}

struct Seen {
    label: String,
    work: Work,
    after: Mark,
}

/// Looks at launches while [`CudaBackend::watched`] runs.
#[derive(Default)]
pub(crate) struct Watch(Mutex<Option<Vec<Seen>>>);

impl Watch {
    fn set(&self, to: Option<Vec<Seen>>) -> Option<Vec<Seen>> {
        let mut seen = self.0.lock().unwrap_or_else(|e| e.into_inner());
        std::mem::replace(&mut *seen, to)
    }

    /// Something was launched.
    pub fn saw(&self, device: &Device, what: impl FnOnce() -> (String, Work)) -> Result<()> {
        let mut seen = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(seen) = &mut *seen {
            let (label, work) = what();
            let after = device.mark()?;
            seen.push(Seen { label, work, after });
        }
        Ok(())
    }
}

impl Device {
    fn mark(&self) -> Result<Mark> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = self.context.new_event(flags).during("create an event")?;
        event.record(&self.stream).during("record an event")?;
        Ok(Mark(event))
    }
}

impl CudaBackend {
    /// Marks where the stream is now.
    pub fn mark(&self) -> Result<Mark> {
        self.device().mark()
    }

    /// Milliseconds of device time from one mark to a later one; waits for the later one.
    pub fn elapsed_ms(&self, from: &Mark, to: &Mark) -> Result<f32> {
        to.0.synchronize().during("wait for an event")?;
        from.0.elapsed_ms(&to.0).during("read an event")
    }

    /// Runs `f`, which replays no graph, and tells the device time of what it launched by kind.
    pub fn watched<E: From<crate::CudaError>>(
        &self,
        f: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<BTreeMap<String, Part>, E> {
        let watch = &self.device().watch;
        let mut last = self.mark()?;
        watch.set(Some(Vec::new()));
        let outcome = f();
        let seen = watch.set(None).unwrap_or_default();
        outcome?;
        let mut parts = BTreeMap::<String, Part>::new();
        for Seen { label, work, after } in seen {
            let part = parts.entry(label).or_default();
            part.count += 1;
            part.ms += f64::from(self.elapsed_ms(&last, &after)?);
            match work {
                Work::Flops(flops) => part.flops += flops,
                Work::Bytes(bytes) => part.bytes += bytes,
                Work::Unknown => {}
            }
            last = after;
        }
        Ok(parts)
    }
}
