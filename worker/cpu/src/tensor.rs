//! Activations and prepared weights in host memory.

use longtake_tensor::{Shape, Tensor};
use std::fmt;
use std::sync::{Arc, Mutex};

/// Buffers that are not in use, to be used again: fresh pages cost more than most operations
/// that fill them.
#[derive(Default)]
pub(crate) struct Recycler {
    free: Mutex<Vec<Vec<f32>>>,
}

/// Buffers kept for reuse at most.
const FREE_BUFFERS_MAX: usize = 8;

impl Recycler {
    /// A buffer of `count` values with arbitrary contents.
    pub(crate) fn take(self: &Arc<Self>, count: usize) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(|e| e.into_inner());
        // The smallest that is large enough and not mostly waste.
        let fitting = (0..free.len())
            .filter(|&i| free[i].capacity() >= count && free[i].capacity() / 2 <= count)
            .min_by_key(|&i| free[i].capacity());
        let values = match fitting.map(|i| free.swap_remove(i)) {
            Some(mut values) => {
                drop(free);
                values.resize(count, 0.0);
                values
            }
            None => {
                drop(free);
                vec![0.0; count]
            }
        };
        Buffer {
            values,
            recycler: Arc::clone(self),
        }
    }

    fn give_back(&self, values: Vec<f32>) {
        // Small ones are the allocator's business.
        if values.capacity() < 4096 {
            return;
        }
        let mut free = self.free.lock().unwrap_or_else(|e| e.into_inner());
        free.push(values);
        if free.len() > FREE_BUFFERS_MAX {
            free.remove(0);
        }
    }

    /// Frees all buffers that are not in use.
    pub(crate) fn clear(&self) {
        self.free.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }
}

/// Values that go back to their [`Recycler`] when dropped.
pub(crate) struct Buffer {
    values: Vec<f32>,
    recycler: Arc<Recycler>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.recycler.give_back(std::mem::take(&mut self.values));
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

/// A dense row-major activation; clones share the values.
#[derive(Clone)]
pub struct CpuTensor {
    shape: Shape,
    buffer: Arc<Buffer>,
}

impl CpuTensor {
    /// Wraps a buffer that `shape` fits.
    pub(crate) fn new(shape: Shape, buffer: Buffer) -> Self {
        debug_assert_eq!(shape.count(), buffer.len());
        Self {
            shape,
            buffer: Arc::new(buffer),
        }
    }

    /// The same values in another shape of as many elements.
    pub(crate) fn reshaped(&self, shape: Shape) -> Self {
        debug_assert_eq!(shape.count(), self.buffer.len());
        Self {
            shape,
            buffer: Arc::clone(&self.buffer),
        }
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.buffer
    }

    /// The values to write to, if no clone shares them.
    pub(crate) fn unique_mut(&mut self) -> Option<&mut [f32]> {
        Arc::get_mut(&mut self.buffer).map(|buffer| &mut **buffer)
    }
}

impl Tensor for CpuTensor {
    fn shape(&self) -> Shape {
        self.shape
    }
}

impl fmt::Debug for CpuTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuTensor{}", self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_only_when_they_fit() {
        let recycler = Arc::new(Recycler::default());
        let first = recycler.take(10_000);
        let address = first.as_ptr();
        drop(first);
        assert_ne!(recycler.take(100).as_ptr(), address, "too large");
        let again = recycler.take(9_000);
        assert_eq!((again.as_ptr(), again.len()), (address, 9_000));
        drop(again);
        recycler.clear();
        assert!(recycler.free.lock().unwrap().is_empty());
    }
}
