//! Working memory that a thread keeps between tasks, so that no kernel allocates in its loops.

use std::cell::Cell;

thread_local! {
    static KEPT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` on `len` floats of unspecified content. A call from within `work` gets memory of
/// its own.
pub fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut memory = KEPT.take();
    if memory.len() < len {
        memory.resize(len, 0.0);
    }
    let result = work(&mut memory[..len]);
    KEPT.set(memory);
    result
}
