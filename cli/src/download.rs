//! A file that comes from the farm in parts. It counts only when all of its bytes are on the disk
//! and are the ones that were asked for.

use anyhow::{Context, Result, bail};
use longtake_common::Hash;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// A file on its way.
pub struct Download {
    file: File,
    path: PathBuf,
    hasher: blake3::Hasher,
}

impl Download {
    /// Makes the file, or empties the one that is there.
    pub async fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).await;
        Ok(Self {
            file: file.with_context(|| format!("write {}", path.display()))?,
            path: path.to_owned(),
            hasher: blake3::Hasher::new(),
        })
    }

    /// Adds the next part.
    pub async fn push(&mut self, part: &[u8]) -> Result<()> {
        self.hasher.update(part);
        let written = self.file.write_all(part).await;
        written.with_context(|| self.writing())
    }

    /// Brings the file to the disk and compares it with `wanted`.
    pub async fn finish(mut self, wanted: Hash) -> Result<()> {
        // tokio only queues a write. How the last one went is what `flush` says; `sync_all` waits
        // for it too, but drops its error.
        let stored = async {
            self.file.flush().await?;
            self.file.sync_all().await?;
            self.file.metadata().await
        };
        let on_disk = stored.await.with_context(|| self.writing())?.len();
        let (received, found) = (self.hasher.count(), Hash::from(self.hasher.finalize()));
        if found != wanted {
            bail!(
                "{received} bytes arrived for {}, but they are not the ones that were asked for (hash {}, not {}); run the command again",
                self.path.display(),
                found.short(),
                wanted.short()
            );
        }
        if on_disk != received {
            bail!(
                "{} has {on_disk} bytes on the disk instead of {received}; another program writes to it: choose another output",
                self.path.display()
            );
        }
        Ok(())
    }

    fn writing(&self) -> String {
        format!("write {}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_written_is_an_error_however_little_it_is() {
        // One part, so that the only write is still queued when the file is finished.
        let mut download = Download::create(Path::new("/dev/full"))
            .await
            .expect("opened");
        let pushed = download.push(b"film").await;
        let error = match pushed {
            Ok(()) => download.finish(Hash::of(b"film")).await.expect_err("full"),
            Err(error) => error,
        };
        assert!(format!("{error:#}").contains("/dev/full"), "{error:#}");
    }

    #[tokio::test]
    async fn only_what_was_asked_for_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("film");
        for (parts, good) in [
            (&[&b"fi"[..], b"lm"][..], true),
            (&[b"film", b"s"], false),
            (&[b"fil"], false),
            (&[], false),
        ] {
            let mut download = Download::create(&path).await.expect("opened");
            for part in parts {
                download.push(part).await.expect("written");
            }
            let done = download.finish(Hash::of(b"film")).await;
            assert_eq!(done.is_ok(), good, "{parts:?}: {done:?}");
        }
    }
}
