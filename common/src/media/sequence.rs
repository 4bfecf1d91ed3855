//! PNG sequences: `DIR/%06d.png`, or all PNGs of a folder.

use super::jpeg::is_jpeg;
use super::temporary::temporary_beside;
use super::{MediaError, Result, decode_jpeg, decode_png, encode_png, png};
use crate::{Frame, Sample};
use std::borrow::Borrow;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Whether `path` names a numbered PNG sequence rather than a file.
pub fn is_sequence(path: &Path) -> bool {
    file_name(path).contains('%')
}

/// Fails when pictures could not be written to `path`, which names a sequence.
pub fn check_sequence(path: &Path) -> Result<()> {
    Pattern::parse(path).map(drop)
}

/// Something in the folder of the sequence `path` that is none of its pictures.
pub fn stranger_in_sequence(path: &Path) -> Result<Option<PathBuf>> {
    let pattern = Pattern::parse(path)?;
    let read = MediaError::io("read", &pattern.folder);
    let entries = match fs::read_dir(&pattern.folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    for entry in entries {
        let path = entry
            .map_err(MediaError::io("read", &pattern.folder))?
            .path();
        if path.is_dir() || pattern.number(&file_name(&path)).is_none() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Writes frames to `DIR/%06d.png` (any `%d` or `%0Nd`), numbered from 0, making the folder. A path
/// without a number is taken as the folder. Returns how many were written.
///
/// As an MP4 replaces what stood under its name, so does this: files of the same pattern with other
/// numbers, left by a longer film, are removed, for they would be read as part of this one.
pub fn write_png_sequence<S: Sample, F: Borrow<Frame<S>>, E: From<MediaError>>(
    path: &Path,
    frames: impl IntoIterator<Item = std::result::Result<F, E>>,
) -> std::result::Result<u64, E> {
    write_png_sequence_from(path, 0, frames)
}

/// [`write_png_sequence`] with the first picture's number (ffmpeg begins at 1).
pub fn write_png_sequence_from<S: Sample, F: Borrow<Frame<S>>, E: From<MediaError>>(
    path: &Path,
    first_number: u64,
    frames: impl IntoIterator<Item = std::result::Result<F, E>>,
) -> std::result::Result<u64, E> {
    let path = if is_sequence(path) {
        path.to_owned()
    } else {
        path.join("%06d.png")
    };
    let pattern = Pattern::parse(&path)?;
    fs::create_dir_all(&pattern.folder)
        .map_err(MediaError::io("make the folder", &pattern.folder))?;
    let mut count = 0;
    for frame in frames {
        write_picture(&pattern.path(first_number + count), frame?.borrow())?;
        count += 1;
    }
    let mut stale = pattern.numbers()?;
    stale.retain(|number| !(first_number..first_number + count).contains(number));
    for number in stale {
        let stale = pattern.path(number);
        fs::remove_file(&stale).map_err(MediaError::io("remove the old frame", &stale))?;
    }
    Ok(count)
}

fn write_picture<S: Sample>(target: &Path, frame: &Frame<S>) -> Result<()> {
    let png = encode_png(frame)?;
    let mut file = temporary_beside(target)?;
    file.write_all(&png)
        .map_err(MediaError::io("write", target))?;
    file.persist(target)
        .map_err(|error| MediaError::io("write", target)(error.error))?;
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A file name with a number in it.
struct Pattern {
    folder: PathBuf,
    prefix: String,
    /// Digits at least, with leading zeros; 0 for none.
    digits: usize,
    suffix: String,
}

impl Pattern {
    fn parse(path: &Path) -> Result<Self> {
        let bad = || MediaError::BadPattern(path.display().to_string());
        let name = file_name(path);
        let (prefix, rest) = name.split_once('%').ok_or_else(bad)?;
        let (digits, suffix) = rest.split_once('d').ok_or_else(bad)?;
        let digits = match digits {
            "" => 0,
            text if text.starts_with('0') => {
                text.parse().ok().filter(|&n| n <= 12).ok_or_else(bad)?
            }
            _ => return Err(bad()),
        };
        if suffix.contains('%') || !suffix.to_ascii_lowercase().ends_with(".png") {
            return Err(bad());
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        Ok(Self {
            folder: folder.unwrap_or(Path::new(".")).to_owned(),
            prefix: prefix.to_owned(),
            digits,
            suffix: suffix.to_owned(),
        })
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!(
            "{}{number:0width$}{}",
            self.prefix,
            self.suffix,
            width = self.digits
        ))
    }

    /// Numbers of the files that are there, ascending.
    fn numbers(&self) -> Result<Vec<u64>> {
        let names = names(&self.folder)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| self.number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The number that `name` has under this pattern.
    fn number(&self, name: &str) -> Option<u64> {
        let digits = name
            .strip_prefix(&self.prefix)?
            .strip_suffix(&self.suffix)?;
        let number = digits
            .parse()
            .ok()
            .filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        (format!("{number:0width$}", width = self.digits) == digits).then_some(number)
    }
}

/// Reads the pictures of a sequence one after the other.
pub(super) struct Sequence {
    files: Vec<PathBuf>,
    next: usize,
    pub width: u32,
    pub height: u32,
}

impl Sequence {
    /// A pattern (numbers without a hole, from any start), a folder (names in order, numbers in them
    /// by value), or a single picture.
    pub fn open(path: &Path) -> Result<Self> {
        let files = if is_sequence(path) {
            numbered_files(path)?
        } else if path.is_dir() {
            folder_files(path)?
        } else {
            vec![path.to_owned()]
        };
        let Some(first) = files.first() else {
            return Err(MediaError::NoFrames(path.display().to_string()));
        };
        let frame: Frame = read_picture(first)?;
        Ok(Self {
            width: frame.width(),
            height: frame.height(),
            files,
            next: 0,
        })
    }

    pub fn frame_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// Whether some picture has more than 8 bits a channel.
    pub fn is_deep(&self) -> Result<bool> {
        for path in &self.files {
            let mut head = Vec::new();
            let read = |file: fs::File| file.take(png::HEAD_BYTES).read_to_end(&mut head);
            (fs::File::open(path).and_then(read)).map_err(MediaError::io("read", path))?;
            if !is_jpeg(&head) && png::is_deep(&head) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn next_frame<S: Sample>(&mut self) -> Result<Option<Frame<S>>> {
        let Some(file) = self.files.get(self.next) else {
            return Ok(None);
        };
        let frame = read_picture(file)?;
        if (frame.width(), frame.height()) != (self.width, self.height) {
            return Err(MediaError::SizeChanged {
                what: file.display().to_string(),
                frame: self.next as u64,
                width: frame.width(),
                height: frame.height(),
                expected_width: self.width,
                expected_height: self.height,
            });
        }
        self.next += 1;
        Ok(Some(frame))
    }
}

fn read_picture<S: Sample>(path: &Path) -> Result<Frame<S>> {
    let bytes = fs::read(path).map_err(MediaError::io("read", path))?;
    let what = path.display().to_string();
    match is_jpeg(&bytes) {
        true => decode_jpeg(&bytes, &what).map(Frame::of_eight_bits),
        false => decode_png(&bytes, &what, None),
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Err(MediaError::NotFound(folder.to_owned()));
    }
    let entries = fs::read_dir(folder).map_err(MediaError::io("list", folder))?;
    let names =
        entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names
        .collect::<std::io::Result<_>>()
        .map_err(MediaError::io("list", folder))
}

fn numbered_files(path: &Path) -> Result<Vec<PathBuf>> {
    let pattern = Pattern::parse(path)?;
    let numbers = pattern.numbers()?;
    let (Some(&first), Some(&last)) = (numbers.first(), numbers.last()) else {
        return Err(MediaError::NoFrames(path.display().to_string()));
    };
    let hole = numbers
        .iter()
        .zip(first..=last)
        .find(|(number, expected)| **number != *expected);
    match hole {
        Some((_, missing)) => Err(MediaError::Gap {
            pattern: path.display().to_string(),
            missing,
        }),
        None => Ok(numbers
            .into_iter()
            .map(|number| pattern.path(number))
            .collect()),
    }
}

fn folder_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut names = names(folder)?;
    names.retain(|name| !name.starts_with('.') && name.to_ascii_lowercase().ends_with(".png"));
    names.sort_by_cached_key(|name| (natural_key(name), name.clone()));
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Splits a name into text and numbers, so that `f9` comes before `f10`.
fn natural_key(name: &str) -> Vec<(String, u64)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text_end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, tail) = rest.split_at(text_end);
        let digit_end = tail
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digit_end);
        key.push((text.to_owned(), digits.parse().unwrap_or(u64::MAX)));
        rest = tail;
    }
    key
}
