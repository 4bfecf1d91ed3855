//! Where a film goes: an MP4 file or a numbered sequence of PNG files. It appears under its name
//! only when it is complete, and one program at a time makes it.

use anyhow::{Context, Result, anyhow, bail};
use longtake_common::media;
use longtake_common::spec::Codec;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempDir};

/// Between a file's name and the chance part of the name that it has while it is incomplete.
const PARTIAL: &str = ".partial-";

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
        if given.to_str().is_none() {
            bail!(
                "the output's name '{}' is not UTF-8, which the report could not hold; choose another with -o",
                given.display()
            );
        }
        let ending = given
            .extension()
            .and_then(OsStr::to_str)
            .unwrap_or("")
            .to_ascii_lowercase();
        let (unit, codec) = match ending.as_str() {
            "mp4" => (given.to_owned(), Codec::H264),
            "png" if media::is_sequence(given) => (sequence_folder(given)?, Codec::Png),
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

    /// Whether `path` is the film or its report, by whatever name: names are compared within the true
    /// folder.
    pub fn writes(&self, path: &Path) -> bool {
        let place = |file: &Path| {
            Some((
                folder_of(file).canonicalize().ok()?,
                file.file_name()?.to_owned(),
            ))
        };
        let own = [self.given.clone(), self.report()];
        place(path).is_some_and(|path| own.iter().any(|own| place(own).as_ref() == Some(&path)))
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
            Codec::Png => check_sequence_folder(&self.given)?,
        }
        check_writable(folder_of(&self.unit))
    }

    /// Makes this process the only one that writes the film, and removes what those before it left
    /// unfinished.
    pub fn claim(&self) -> Result<Claim> {
        let claim = Claim::new(hidden_beside(&self.unit, ".lock"), &self.given)?;
        if claim.is_exclusive() {
            remove_leftovers(&self.unit)?;
        }
        Ok(claim)
    }

    /// A place for the film while it is incomplete.
    pub fn stage(&self) -> Result<Stage<'_>> {
        let mut prefix = OsString::from(".");
        prefix.push(self.unit.file_name().unwrap_or_default());
        prefix.push(PARTIAL);
        // Beside its final place, so that it can be renamed.
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(folder_of(&self.unit))
            .with_context(|| format!("write beside {}", self.unit.display()))?;
        Ok(Stage {
            target: self,
            folder,
        })
    }
}

/// A film that is not yet under its name; gone when dropped.
pub struct Stage<'a> {
    target: &'a Target,
    folder: TempDir,
}

impl Stage<'_> {
    /// The film: a file, or the folder of a sequence.
    pub fn film(&self) -> PathBuf {
        self.folder.path().join("film")
    }

    /// Room for a chunk of a sequence while its pictures are unpacked.
    pub fn chunk(&self) -> PathBuf {
        self.folder.path().join("chunk")
    }

    /// Gives the complete film its name.
    pub fn publish(self) -> Result<()> {
        let unit = &self.target.unit;
        let named = match self.target.codec {
            Codec::H264 => fs::rename(self.film(), unit),
            Codec::Png => {
                check_sequence_folder(&self.target.given)?;
                replace_folder(&self.film(), unit, self.folder.path())
            }
        };
        let named = named.and_then(|()| sync_folder(unit));
        named.with_context(|| format!("write {}", unit.display()))
    }
}

/// Gives the folder `new` the name `unit`. What stood there goes into `aside` first, and comes back
/// when that fails.
pub fn replace_folder(new: &Path, unit: &Path, aside: &Path) -> std::io::Result<()> {
    let old = aside.join("old");
    let had = unit.exists();
    if had {
        fs::rename(unit, &old)?;
    }
    fs::rename(new, unit).inspect_err(|_| {
        if had {
            // The first error is the one to tell of.
            let _ = fs::rename(&old, unit);
        }
    })
}

/// The right to write a film, for as long as this lives: a lock on a file beside it. The system
/// takes the lock away when the process dies, however it does.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// `None` where the file system knows no locks.
    lock: Option<File>,
}

impl Claim {
    fn new(path: PathBuf, given: &Path) -> Result<Self> {
        loop {
            let mut options = File::options();
            let file = options.create(true).truncate(false).write(true);
            let file = file.open(&path).map_err(|error| {
                anyhow!(
                    "cannot lock {} ({error}); choose another -o",
                    path.display()
                )
            })?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!(
                    "another longtake is making {}; wait for it, or choose another -o",
                    given.display()
                ),
                // Some network file systems know no locks; chance names keep films apart there.
                Err(TryLockError::Error(_)) => return Ok(Self { path, lock: None }),
            }
            // Its last owner may have removed the file between our opening and locking it.
            if is_at(&file, &path) {
                let lock = Some(file);
                return Ok(Self { path, lock });
            }
        }
    }

    fn is_exclusive(&self) -> bool {
        self.lock.is_some()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Before the lock goes with the file: afterwards it might be another one's. A file that
        // stays behind harms nobody.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether `file` is what lies at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Removes the unfinished films of processes that were killed. Only for whoever has claimed `unit`.
fn remove_leftovers(unit: &Path) -> Result<()> {
    let Some(name) = unit.file_name().and_then(OsStr::to_str) else {
        return Ok(());
    };
    let prefix = format!(".{name}{PARTIAL}");
    let folder = folder_of(unit);
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries.flatten() {
        let is_ours = entry
            .file_name()
            .to_str()
            .is_some_and(|n| n.starts_with(&prefix));
        if is_ours && entry.path().is_dir() {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// A file that will lie at `path` once it is persisted there; gone when dropped before.
pub fn unfinished(path: &Path) -> Result<NamedTempFile> {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(PARTIAL);
    tempfile::Builder::new()
        .prefix(&prefix)
        // What any other new file gets: temporary files are private otherwise.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder_of(path))
        .with_context(|| format!("write {}", path.display()))
}

/// Writes a file so that it is there whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = unfinished(path)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.as_file().sync_all());
    let written = written.and_then(|()| Ok(file.persist(path)?));
    written
        .and_then(|_| sync_folder(path))
        .with_context(|| format!("write {}", path.display()))
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

/// The folder that the pictures of a sequence fill.
fn sequence_folder(pattern: &Path) -> Result<PathBuf> {
    media::check_sequence(pattern)?;
    match pattern.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => Ok(folder.to_owned()),
        _ => bail!(
            "'{}' would fill the current folder with pictures; give a folder, like frames/%06d.png",
            pattern.display()
        ),
    }
}

/// As a new MP4 replaces an old one, so do new pictures; but nothing else of a folder goes.
pub fn check_sequence_folder(pattern: &Path) -> Result<()> {
    if let Some(stranger) = media::stranger_in_sequence(pattern)? {
        bail!(
            "{} is no picture of {}, which would replace its folder: move it, or choose another folder",
            stranger.display(),
            pattern.display()
        );
    }
    Ok(())
}

/// Makes sure that the name of a file that is new in its folder outlives a power cut.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(folder_of(path))?.sync_all()
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
        let frames = Target::parse(Path::new("a/frames/%06d.png")).expect("a sequence");
        assert_eq!(frames.codec(), Codec::Png);
        assert_eq!(frames.default_state(), Path::new("a/frames.longtake"));
        for bad in [
            "film.avi",
            "film",
            "%06d.png",
            "frames/one.png",
            "a/%06d.jpg",
            "a/%s.png",
            "a/%06d-%d.png",
            "a/%6d.png",
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
        check("old/%06d.png").expect("an older film");
        for stranger in ["old/note.txt", "old/1.png"] {
            let path = folder.path().join(stranger);
            fs::write(&path, b"").expect("a file");
            let error = check("old/%06d.png").expect_err("not ours").to_string();
            assert!(error.contains(stranger), "{error}");
            fs::remove_file(path).expect("removed");
        }
    }

    #[test]
    fn new_pictures_replace_old_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = Target::parse(&folder.path().join("film/%06d.png")).expect("a sequence");
        for count in [3, 1] {
            let stage = target.stage().expect("a place");
            fs::create_dir(stage.film()).expect("a folder");
            for number in 1..=count {
                let picture = stage.film().join(format!("{number:06}.png"));
                fs::write(picture, [count]).expect("a file");
            }
            stage.publish().expect("renamed");
        }
        assert_eq!(names(folder.path()), ["film"]);
        assert_eq!(names(&folder.path().join("film")), ["000001.png"]);
        let late = target.stage().expect("a place");
        fs::create_dir(late.film()).expect("a folder");
        fs::write(folder.path().join("film/mine.txt"), b"").expect("a file");
        late.publish().expect_err("somebody's file is there by now");
        assert_eq!(
            names(&folder.path().join("film")),
            ["000001.png", "mine.txt"]
        );
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("the folder");
        let mut names: Vec<String> = entries
            .map(|e| {
                e.expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_appears_under_the_name_before_it_is_published() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = Target::parse(&folder.path().join("film.mp4")).expect("a film");
        let given_up = target.stage().expect("a place");
        fs::write(given_up.film(), b"half").expect("a file");
        let (first, second) = (
            target.stage().expect("a place"),
            target.stage().expect("a place"),
        );
        assert_ne!(first.film(), second.film());
        assert!(!folder.path().join("film.mp4").exists());
        drop((given_up, second));
        fs::write(first.film(), b"whole").expect("a file");
        first.publish().expect("renamed");
        assert_eq!(names(folder.path()), ["film.mp4"]);
        let bytes = fs::read(folder.path().join("film.mp4")).expect("the film");
        assert_eq!(bytes, b"whole");
    }

    #[test]
    fn a_film_is_made_by_one_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = Target::parse(&folder.path().join("film.mp4")).expect("a film");
        // A killed process leaves its file, and what it had of the film.
        fs::write(folder.path().join(".film.mp4.lock"), b"").expect("a file");
        let left = target.stage().expect("a place").folder.keep();
        let claim = target.claim().expect("nobody makes it");
        assert!(!left.exists());
        let error = target.claim().expect_err("taken").to_string();
        assert!(
            error.contains("film.mp4") && error.contains("-o"),
            "{error}"
        );
        let other = Target::parse(&folder.path().join("other.mp4")).expect("a film");
        other.claim().expect("another film is another matter");
        drop(claim);
        target.claim().expect("free again");
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("report.json");
        write_whole(&file, b"old").expect("written");
        write_whole(&file, b"new").expect("replaced");
        assert_eq!(fs::read(&file).expect("the file"), b"new");
        let plain = folder.path().join("plain");
        fs::write(&plain, b"").expect("a file");
        let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode();
        assert_eq!(mode(&file), mode(&plain), "as readable as any other file");
        fs::create_dir(folder.path().join("taken")).expect("a folder");
        write_whole(&folder.path().join("taken"), b"x").expect_err("a folder is there");
        assert_eq!(names(folder.path()), ["plain", "report.json", "taken"]);
    }
}
