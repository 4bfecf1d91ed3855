//! Looks for values that are not finite, before anything is computed with them: a NaN would spread
//! over every pixel, hours later. All processors look at once; holes of a sparse file are zeros and
//! are not read.

use super::file::WeightFile;
use crate::error::{Error, Result};
use longtake_tensor::DType;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that one processor looks at before it takes the next ones.
const PIECE_BYTES: usize = 8 << 20;
/// Values that are looked at without asking in between: compilers make vector code of such loops.
const RUN: usize = 1024;

/// A tensor to look at.
pub(super) struct Target {
    pub file: Arc<WeightFile>,
    pub name: String,
    pub dtype: DType,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

/// Fails on the first value, in the order of `targets`, that is neither finite nor a small integer.
pub(super) fn check_finite(targets: &[Target]) -> Result<()> {
    let pieces = pieces(targets);
    let next = AtomicUsize::new(0);
    let look = || {
        let mut found: Option<(usize, usize)> = None;
        loop {
            let Some((target, range)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else {
                return found;
            };
            let target_ref = &targets[*target];
            let bytes = &target_ref.file.map[range.clone()];
            if let Some(at) = first_bad(target_ref.dtype, bytes) {
                let value = (range.start - target_ref.range.start) / target_ref.dtype.bytes() + at;
                // Pieces are taken in order, so this processor's first find is its earliest.
                found = found.or(Some((*target, value)));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(pieces.len()).max(1);
    let found = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(look)).collect();
        let own = look();
        let others = others.into_iter().map(|other| match other.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        own.into_iter().chain(others.flatten()).min()
    });
    match found {
        None => Ok(()),
        Some((target, value)) => {
            let Target { file, name, .. } = &targets[target];
            let message =
                format!("value {value} is not finite; the file is damaged, fetch it again");
            Err(file.error(name, message))
        }
    }
}

/// What there is to read, in order: the parts of each target that are not holes, cut to size.
fn pieces(targets: &[Target]) -> Vec<(usize, Range<usize>)> {
    let mut pieces = Vec::new();
    let mut known: Option<(*const WeightFile, Vec<Range<usize>>)> = None;
    for (index, target) in targets.iter().enumerate() {
        if target.dtype == DType::I8 {
            continue;
        }
        let file = Arc::as_ptr(&target.file);
        if known.as_ref().is_none_or(|(of, _)| *of != file) {
            known = Some((file, data_extents(&target.file)));
        }
        let Some((_, extents)) = &known else { continue };
        let width = target.dtype.bytes();
        for extent in extents {
            let start = extent.start.max(target.range.start);
            let end = extent.end.min(target.range.end);
            if start >= end {
                continue;
            }
            // Whole values: an extent may begin or end within one.
            let from = target.range.start + (start - target.range.start) / width * width;
            let to = target.range.start + (end - target.range.start).div_ceil(width) * width;
            for at in (from..to).step_by(PIECE_BYTES) {
                pieces.push((index, at..(at + PIECE_BYTES).min(to)));
            }
        }
    }
    pieces
}

/// The parts of the file that are stored; all of it where the file system does not tell.
fn data_extents(file: &WeightFile) -> Vec<Range<usize>> {
    let length = file.map.len();
    let seek = |to| rustix::fs::seek(file.file.as_fd(), to);
    let mut extents = Vec::new();
    let mut at = 0u64;
    loop {
        match seek(rustix::fs::SeekFrom::Data(at)) {
            Ok(start) if start < length as u64 => {
                let end = seek(rustix::fs::SeekFrom::Hole(start)).unwrap_or(length as u64);
                extents.push(start as usize..(end as usize).min(length));
                if end <= start || end >= length as u64 {
                    return extents;
                }
                at = end;
            }
            // No data from here on.
            Ok(_) | Err(rustix::io::Errno::NXIO) => return extents,
            Err(_) => return std::iter::once(0..length).collect(),
        }
    }
}

/// Place of the first value that is not finite.
pub(super) fn first_bad(dtype: DType, bytes: &[u8]) -> Option<usize> {
    match dtype {
        DType::F32 => find(bytes.as_chunks::<4>().0, |b| {
            u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000
        }),
        DType::F16 => find(bytes.as_chunks::<2>().0, |b| {
            u16::from_le_bytes(*b) & 0x7c00 == 0x7c00
        }),
        DType::BF16 => find(bytes.as_chunks::<2>().0, |b| {
            u16::from_le_bytes(*b) & 0x7f80 == 0x7f80
        }),
        DType::F8E4M3 => find(bytes, |b| b & 0x7f == 0x7f),
        DType::I8 => None,
    }
}

fn find<T>(values: &[T], is_bad: impl Fn(&T) -> bool) -> Option<usize> {
    for (index, run) in values.chunks(RUN).enumerate() {
        if run.iter().fold(false, |bad, value| bad | is_bad(value)) {
            return run.iter().position(&is_bad).map(|at| index * RUN + at);
        }
    }
    None
}

/// Refuses a scale that no weight can have.
pub(super) fn check_scale(file: &WeightFile, name: &str, scale: &[f32]) -> Result<()> {
    match scale.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        None => Ok(()),
        Some(at) => Err(Error::Weight {
            path: file.path().to_owned(),
            tensor: name.to_owned(),
            message: format!(
                "value {at} is {}, which no scale can be; the file is damaged, fetch it again",
                scale[at]
            ),
        }),
    }
}
