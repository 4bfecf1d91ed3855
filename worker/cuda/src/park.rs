//! Weights that leave the device while nobody uses them and their room is needed.
//!
//! A part of a model has a pool of its own. Putting it away copies the pool to host memory and takes
//! the memory from behind its addresses; bringing it back puts new memory there. The addresses stay
//! what they are, so nothing that holds one has to know. Weights do not change, so the copy on the
//! host is made once.

use crate::arena::{Account, Arena};
use crate::error::{InOp, Result};
use crate::memory::HostCopy;
use longtake_tensor::Place;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A pool that can be put away.
pub(crate) struct Parking {
    arena: Arena,
    /// When somebody last began or ended to use it.
    used_at: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    users: usize,
    away: bool,
    /// By address, once there are any.
    copies: BTreeMap<u64, HostCopy>,
}

/// Keeps a pool on the device.
pub(crate) struct Stay(Arc<Parking>);

impl Parking {
    /// A pool beside `arena`, in use until the second result is dropped.
    pub fn beside(arena: &Arena) -> (Arc<Self>, Stay) {
        let parking = Arc::new(Self {
            arena: arena.sibling_of_exact_size(),
            used_at: AtomicU64::default(),
            state: Mutex::new(State {
                users: 1,
                ..State::default()
            }),
        });
        arena.account().parked.register(&parking);
        (parking.clone(), Stay(parking))
    }

    /// The pool.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    pub fn used_at(&self) -> u64 {
        self.used_at.load(Ordering::Relaxed)
    }

    fn account(&self) -> &Account {
        self.arena.account()
    }

    fn touch(&self) {
        self.used_at
            .store(self.account().parked.tick(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Puts it away. False where it is in use, away already, or the host has no room either.
    pub fn put_away(&self) -> bool {
        // Whoever holds the lock is bringing it back, or putting it away.
        let Ok(mut state) = self.state.try_lock() else {
            return false;
        };
        if state.users > 0 || state.away {
            return false;
        }
        if state.copies.is_empty() {
            match self.arena.copied_out() {
                Ok(copies) => state.copies = copies,
                Err(error) => {
                    tracing::warn!(%error, "weights that are not in use stay on the device");
                    return false;
                }
            }
        }
        let bytes = self.arena.unmap();
        state.away = true;
        self.account().parked.count(bytes);
        tracing::debug!(bytes, "weights that are not in use wait in host memory");
        bytes > 0
    }

    /// Keeps it on the device, and brings it there first where it is away.
    pub fn stay(self: &Arc<Self>) -> Result<Stay> {
        self.touch();
        let mut state = self.lock();
        if state.away {
            self.arena.map_again(&state.copies)?;
            state.away = false;
        }
        state.users += 1;
        Ok(Stay(self.clone()))
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.touch();
        self.0.lock().users -= 1;
    }
}

impl Place for Parking {
    fn bring(self: Arc<Self>) -> longtake_tensor::Result<Box<dyn Any + Send + Sync>> {
        Ok(Box::new(self.stay().in_op("bring weights back")?))
    }
}
