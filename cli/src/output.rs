//! Where a film goes: an MP4 file or a numbered sequence of PNG files. It appears under its name
//! only when it is complete.

use anyhow::{Context, Result, anyhow, bail};
use longtake_common::spec::Codec;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// A film's place, checked as far as it can be before anything is rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As the user gave it.
    given: PathBuf,
    /// What must not be there half-written: the MP4 file, or the sequence's folder.
    unit: PathBuf,
    codec: Codec,
}

impl Target {
    /// Reads `-o`: `FILE.mp4` or `DIR/%06d.png`.
    pub fn parse(given: &Path) -> Result<Self> {
        let ending = given
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or("")
            .to_ascii_lowercase();
        let (unit, codec) = match ending.as_str() {
            "mp4" => (given.to_owned(), Codec::H264),
            "png" if longtake_common::media::is_sequence(given) => match given.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => (folder.to_owned(), Codec::Png),
                _ => bail!(
                    "'{}' would fill the current folder with pictures; give a folder, like frames/%06d.png",
                    given.display()
                ),
            },
            _ => bail!(
                "'{}' names no kind of output that longtake writes; give FILE.mp4, or DIR/%06d.png for a PNG sequence",
                given.display()
            ),
        };
        Ok(Self {
            given: given.to_owned(),
            unit,
            codec,
        })
    }

    /// How the film is stored.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// As the user gave it.
    pub fn given(&self) -> &Path {
        &self.given
    }

    /// The folder for the state of the render, unless the user names one: `OUT.longtake`.
    pub fn default_state(&self) -> PathBuf {
        with_suffix(&self.unit, ".longtake")
    }

    /// Where the report goes: `OUT.mp4.json`, `DIR.json`.
    pub fn report(&self) -> PathBuf {
        with_suffix(&self.unit, ".json")
    }

    /// Where the film is while it is incomplete: beside its final place, so that it can be renamed.
    pub fn partial(&self) -> PathBuf {
        hidden_beside(&self.unit, ".partial")
    }

    /// Where a chunk of a sequence is while its pictures are unpacked.
    pub fn chunk(&self) -> PathBuf {
        hidden_beside(&self.unit, ".chunk")
    }

    /// Fails when the film could not be written in the end.
    pub fn check(&self) -> Result<()> {
        match self.codec {
            Codec::H264 if self.unit.is_dir() => {
                bail!(
                    "{} is a folder; give the name of a file in it",
                    self.unit.display()
                )
            }
            Codec::H264 => {}
            Codec::Png => check_sequence_folder(&self.unit)?,
        }
        check_writable(folder_of(&self.unit))
    }

    /// Gives the complete film its name.
    pub fn publish(&self) -> Result<()> {
        let partial = self.partial();
        fs::rename(&partial, &self.unit)
            .with_context(|| format!("rename {} to {}", partial.display(), self.unit.display()))
    }

    /// Removes what this or an earlier run left of an incomplete film.
    pub fn clear_partial(&self) -> Result<()> {
        for path in [self.partial(), self.chunk()] {
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Writes a file so that it is there whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = hidden_beside(path, ".partial");
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    written.with_context(|| format!("write {}", path.display()))
}

/// Fails unless a file can be made in `folder`.
pub fn check_writable(folder: &Path) -> Result<()> {
    if !folder.exists() {
        bail!(
            "the output folder {} does not exist; create it or choose another",
            folder.display()
        );
    }
    if !folder.is_dir() {
        bail!(
            "{} is not a folder; choose another output",
            folder.display()
        );
    }
    // Permission bits do not tell (read-only mounts, quotas, root): only trying does.
    tempfile::tempfile_in(folder).map(drop).map_err(|error| {
        anyhow!(
            "cannot write to the output folder {} ({error}); choose another",
            folder.display()
        )
    })
}

fn check_sequence_folder(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let mut entries =
        fs::read_dir(folder).with_context(|| format!("read the folder {}", folder.display()))?;
    if entries.next().is_some() {
        bail!(
            "{} is not empty; empty it or choose another folder, so that old and new pictures do not mix",
            folder.display()
        );
    }
    Ok(())
}

/// The folder that `path` lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.components().as_path());
    name.push(suffix);
    PathBuf::from(name)
}

fn hidden_beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(suffix);
    folder_of(path).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_chooses_the_kind_of_output() {
        let film = Target::parse(Path::new("a/film.mp4")).expect("a film");
        assert_eq!(film.codec(), Codec::H264);
        assert_eq!(film.default_state(), Path::new("a/film.mp4.longtake"));
        assert_eq!(film.report(), Path::new("a/film.mp4.json"));
        assert_eq!(film.partial(), Path::new("a/.film.mp4.partial"));
        let frames = Target::parse(Path::new("a/frames/%06d.png")).expect("a sequence");
        assert_eq!(frames.codec(), Codec::Png);
        assert_eq!(frames.default_state(), Path::new("a/frames.longtake"));
        for bad in [
            "film.avi",
            "film",
            "%06d.png",
            "frames/one.png",
            "a/%06d.jpg",
            "",
        ] {
            assert!(Target::parse(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_target_that_cannot_be_written_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let check = |name: &str| Target::parse(&folder.path().join(name)).and_then(|t| t.check());
        check("film.mp4").expect("a fresh file");
        check("frames/%06d.png").expect("a fresh folder");
        fs::create_dir(folder.path().join("d.mp4")).expect("a folder");
        assert!(check("d.mp4").is_err());
        assert!(
            check("missing/film.mp4")
                .expect_err("no folder")
                .to_string()
                .contains("missing")
        );
        fs::create_dir(folder.path().join("old")).expect("a folder");
        check("old/%06d.png").expect("an empty folder");
        fs::write(folder.path().join("old/000001.png"), b"").expect("a file");
        assert!(check("old/%06d.png").is_err());
    }

    #[test]
    fn nothing_appears_under_the_name_before_it_is_published() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = Target::parse(&folder.path().join("film.mp4")).expect("a film");
        fs::write(target.partial(), b"half").expect("a file");
        assert!(!folder.path().join("film.mp4").exists());
        target.clear_partial().expect("removed");
        target.clear_partial().expect("nothing to remove");
        fs::write(target.partial(), b"whole").expect("a file");
        target.publish().expect("renamed");
        assert_eq!(
            fs::read(folder.path().join("film.mp4")).expect("the film"),
            b"whole"
        );
    }
}
