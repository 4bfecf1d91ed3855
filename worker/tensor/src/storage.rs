//! Weights that outlive the reading of their file.

use crate::dtype::{DType, WeightView};
use crate::error::{Error, Result};
use crate::shape::Shape;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that stay where they are as long as anybody holds them: a mapped file, or a buffer.
pub type Storage = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A weight that is kept as it is stored: it costs no memory beside its mapped file.
#[derive(Clone)]
pub struct KeptWeight {
    shape: Shape,
    dtype: DType,
    storage: Storage,
    range: Range<usize>,
    scale: Option<Arc<[f32]>>,
}

impl KeptWeight {
    /// Weight of `shape` in bytes `range` of `storage`; scales as for [`WeightView::new`].
    ///
    /// # Errors
    /// When the bytes are not there, or do not fill the shape.
    pub fn new(
        shape: Shape,
        dtype: DType,
        storage: Storage,
        range: Range<usize>,
        scale: Option<Arc<[f32]>>,
    ) -> Result<Self> {
        if (*storage).as_ref().get(range.clone()).is_none() {
            let (count, found) = (shape.count(), (*storage).as_ref().len());
            return Err(Error::Storage {
                count,
                dtype,
                found,
            });
        }
        let kept = Self {
            shape,
            dtype,
            storage,
            range,
            scale,
        };
        WeightView::new(shape, dtype, kept.bytes(), kept.scale.as_deref())?;
        Ok(kept)
    }

    fn bytes(&self) -> &[u8] {
        &(*self.storage).as_ref()[self.range.clone()]
    }

    /// The weight as it is stored.
    pub fn view(&self) -> WeightView<'_> {
        WeightView::of_kept(
            self,
            self.shape,
            self.dtype,
            self.bytes(),
            self.scale.as_deref(),
        )
    }
}

impl fmt::Debug for KeptWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptWeight{} {}", self.shape, self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_weight_reads_its_part_of_the_storage() {
        let storage: Storage = Arc::new(vec![0u8, 0, 1, 2, 3, 4]);
        let scale: Option<Arc<[f32]>> = Some(Arc::from([2.0f32]));
        let shape = Shape::from([2, 2]);
        let kept = KeptWeight::new(shape, DType::I8, storage.clone(), 2..6, scale).expect("fits");
        assert_eq!(kept.view().to_f32(), [2.0, 4.0, 6.0, 8.0]);
        let again = kept.view().keep().expect("it can be kept").clone();
        assert_eq!(again.view().to_f32(), [2.0, 4.0, 6.0, 8.0]);
        for range in [4..8, 2..5] {
            let storage = storage.clone();
            assert!(KeptWeight::new(shape, DType::I8, storage, range, None).is_err());
        }
    }
}
