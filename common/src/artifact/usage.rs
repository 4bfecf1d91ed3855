//! How much a store holds.

use super::{ArtifactError, ArtifactStore};
use futures::TryStreamExt;

impl ArtifactStore {
    /// Bytes of all artifacts, and how many they are. Lists the whole store: for now and then.
    pub async fn usage(&self) -> Result<(u64, u64), ArtifactError> {
        let list = self.store.list(None);
        let sum = |(bytes, count), object: object_store::ObjectMeta| async move {
            Ok((bytes + object.size, count + 1))
        };
        list.try_fold((0, 0), sum)
            .await
            .map_err(|source| ArtifactError::List {
                url: self.url.clone(),
                source: Box::new(source),
            })
    }
}
