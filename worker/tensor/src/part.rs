//! Parts of a model that need not be on the device all the time.

use crate::error::Result;
use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Where the weights of a part are. A backend that is short of memory may move them elsewhere while
/// nobody uses them.
pub trait Place: Send + Sync {
    /// Brings the weights to the device, where they stay at least until the result is dropped.
    ///
    /// # Errors
    /// When there is no room for them.
    fn bring(self: Arc<Self>) -> Result<Box<dyn Any + Send + Sync>>;
}

/// Weights that are needed together: an encoder, a transformer.
pub struct Part<T> {
    weights: T,
    place: Option<Arc<dyn Place>>,
}

impl<T> Part<T> {
    /// A part that is always on the device.
    pub fn fixed(weights: T) -> Self {
        Self {
            weights,
            place: None,
        }
    }

    /// A part that is where `place` says.
    pub fn at(weights: T, place: Arc<dyn Place>) -> Self {
        Self {
            weights,
            place: Some(place),
        }
    }

    /// The part for use. What is computed with it has to be done before the result is dropped.
    ///
    /// # Errors
    /// When there is no room for it on the device.
    pub fn in_use(&self) -> Result<InUse<'_, T>> {
        let stay = self.place.clone().map(Place::bring).transpose()?;
        Ok(InUse {
            weights: &self.weights,
            _stay: stay,
        })
    }
}

impl<T> fmt::Debug for Part<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Part")
    }
}

/// A part that is on the device.
pub struct InUse<'a, T> {
    weights: &'a T,
    _stay: Option<Box<dyn Any + Send + Sync>>,
}

impl<T> Deref for InUse<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.weights
    }
}

impl<T> fmt::Debug for InUse<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InUse")
    }
}
