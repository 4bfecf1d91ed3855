//! The folder for work in progress: database, artifacts, logs of the workers.
//!
//! The user may name any folder, or have one of ours by chance, so nothing is taken for granted:
//! only names that we make are ever removed, and a folder with anything else is not used.

use super::{Order, RenderArgs};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The database that the coordinator makes; a folder with it is a state folder.
const DATABASE: &str = "longtake.redb";
const ARTIFACTS: &str = "artifacts";
const SCRATCH: &str = ".longtake-scratch";

/// The folder for work in progress.
pub struct State {
    folder: PathBuf,
    /// Whether it goes when the film is there.
    temporary: bool,
}

impl State {
    /// Finds or makes the folder that the user named, or the one beside the film.
    pub(super) fn prepare(args: &RenderArgs, order: &Order) -> Result<Self> {
        let (folder, temporary) = match &args.local.state {
            Some(folder) => (folder.clone(), false),
            None => (order.target.default_state(), true),
        };
        Self::open(folder, temporary)
    }

    /// Finds or makes a folder; one that is `temporary` goes when the film is there.
    pub fn open(folder: PathBuf, temporary: bool) -> Result<Self> {
        let unusable = |why: &dyn std::fmt::Display| {
            format!(
                "cannot use {} for work in progress ({why}); choose another with --state",
                folder.display()
            )
        };
        // Before anything is made: the database and the artifacts are found through URLs.
        match std::path::absolute(&folder) {
            Ok(path) if path.to_str().is_none() => bail!(unusable(&"its path is not UTF-8")),
            Ok(_) => {}
            Err(error) => bail!(unusable(&error)),
        }
        let made = fs::create_dir_all(&folder).and_then(|()| folder.canonicalize());
        let folder = match made {
            Ok(folder) => folder,
            Err(error) => bail!(unusable(&error)),
        };
        match foreign_entry(&folder) {
            Ok(None) => {}
            Ok(Some(name)) => bail!(unusable(&format!("it holds {name}, which is not ours"))),
            Err(error) => bail!(unusable(&error)),
        }
        Ok(Self { folder, temporary })
    }

    /// A folder that a render has left, as it is.
    pub fn existing(folder: &Path) -> Result<Self> {
        let found = folder.canonicalize();
        let found = found.with_context(|| format!("look at {}", folder.display()))?;
        if !found.join(DATABASE).is_file() {
            bail!(
                "{} holds no render: it has no {DATABASE}; give the folder that was given to render as --state",
                folder.display()
            );
        }
        Ok(Self {
            folder: found,
            temporary: false,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where results are kept.
    pub fn artifacts(&self) -> PathBuf {
        self.folder.join(ARTIFACTS)
    }

    /// Where workers put files that only they need.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join(SCRATCH)
    }

    /// Empties the scratch folder: workers that were killed leave unfinished files behind. Only for
    /// whoever has locked the state, or it would be another render's that is taken away.
    pub fn clear_scratch(&self) -> Result<()> {
        let cleared = match fs::remove_dir_all(self.scratch()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::create_dir(self.scratch()),
        };
        cleared.with_context(|| format!("clear {}", self.scratch().display()))
    }

    /// Removes a folder that the user did not ask for: what is ours in it, and itself if nothing
    /// else is there.
    pub fn clear(&self) -> Result<()> {
        if !self.temporary {
            return Ok(());
        }
        remove_ours(&self.folder).with_context(|| {
            format!(
                "the film is there, but {} cannot be removed",
                self.folder.display()
            )
        })
    }
}

/// Whether a render has worked in `folder`.
pub fn has_database(folder: &Path) -> bool {
    folder.join(DATABASE).is_file()
}

/// Whether a file of that name in a state folder is one that we made.
fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let is_log = || {
        let number = name
            .strip_prefix("worker-")
            .and_then(|n| n.strip_suffix(".log"));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    [DATABASE, ARTIFACTS, SCRATCH].contains(&name) || is_log()
}

/// Something in `folder` that shows it to be somebody else's; a folder with our database is ours,
/// whatever was put beside it.
fn foreign_entry(folder: &Path) -> std::io::Result<Option<String>> {
    if has_database(folder) {
        return Ok(None);
    }
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !is_ours(&name) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

fn remove_ours(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !is_ours(&entry.file_name()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_used_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        assert_eq!(foreign_entry(folder.path()).expect("read"), None);
        for ours in ["worker-1.log", "worker-12.log"] {
            fs::write(path(ours), b"").expect("a file");
        }
        fs::create_dir_all(path("artifacts/ab")).expect("a folder");
        fs::create_dir(path(SCRATCH)).expect("a folder");
        assert_eq!(foreign_entry(folder.path()).expect("read"), None);
        for theirs in ["scratch", "worker-x.log", "worker-.log", "notes"] {
            fs::write(path(theirs), b"").expect("a file");
            let found = foreign_entry(folder.path()).expect("read");
            assert_eq!(found.as_deref(), Some(theirs));
            fs::remove_file(path(theirs)).expect("removed");
        }
        fs::write(path(DATABASE), b"").expect("a file");
        fs::write(path("notes"), b"theirs").expect("a file");
        assert_eq!(foreign_entry(folder.path()).expect("read"), None);

        remove_ours(folder.path()).expect("removed");
        let left: Vec<_> = fs::read_dir(folder.path()).expect("still there").collect();
        assert_eq!(left.len(), 1);
        assert_eq!(fs::read(path("notes")).expect("a file"), b"theirs");
        fs::remove_file(path("notes")).expect("removed");
        remove_ours(folder.path()).expect("removed");
        assert!(!folder.path().exists());
    }
}
