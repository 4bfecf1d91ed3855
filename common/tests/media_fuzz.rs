//! Damaged files: an error or other pictures, never a panic, a hang or memory without bound.
#![cfg(feature = "media")]

mod media_support;

use longtake_common::Frame;
use longtake_common::media::{
    self, Muxer, decode_png, encode_png, open_video, parameter_sets, read_chunk, read_pack,
    write_pack,
};
use media_support::{Random, chunk, natural, picture, run_ffmpeg, shapes, write_film};
use std::fs;
use std::path::Path;

/// Cases for each kind of file. `LONGTAKE_FUZZ_CASES` asks for more.
fn case_count() -> u64 {
    std::env::var("LONGTAKE_FUZZ_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1500)
}

/// Flips, overwrites, cuts or doubles a few places.
fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(out.len() as u64) as usize;
        match random.below(8) {
            0..=2 => out[at] ^= 1 << random.below(8),
            3 => out[at] = random.next() as u8,
            4 => {
                let end = (at + 4).min(out.len());
                out[at..end].fill(if random.below(2) == 0 { 0xFF } else { 0 });
            }
            5 => {
                let from = random.below(out.len() as u64) as usize;
                let length = (random.below(24) as usize).min(out.len() - at.max(from));
                out.copy_within(from..from + length, at);
            }
            6 if random.below(3) == 0 => out.truncate(at.max(1)),
            _ => {
                let piece = out[at..(at + 16).min(out.len())].to_vec();
                out.splice(at..at, piece);
            }
        }
    }
    out
}

/// Reads all that can be read; a sound prefix may come out before the error.
fn drain(frames: impl Iterator<Item = media::Result<Frame>>, most: usize) {
    let mut failed = false;
    for (index, frame) in frames.enumerate() {
        assert!(!failed, "a reader ends with its first error");
        assert!(index < most, "more frames than the file could hold");
        failed = frame.is_err();
    }
}

#[test]
fn damaged_films_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    write_film(&path, &picture(48, 32, 24.0), &[3, 2], natural);
    read_damaged(&path, &mut Random(1));
}

#[test]
fn damaged_films_of_another_encoder_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    let input = "-v error -f lavfi -i testsrc2=size=64x48:rate=25:duration=0.4";
    let output = "-c:v libx264 -pix_fmt yuv420p -bf 3 -refs 3 -g 5 -movflags +faststart";
    let mut arguments: Vec<&str> = input.split(' ').chain(output.split(' ')).collect();
    arguments.push(path.to_str().unwrap());
    run_ffmpeg("ffmpeg", &arguments);
    read_damaged(&path, &mut Random(4));
}

fn read_damaged(path: &Path, random: &mut Random) {
    let bytes = fs::read(path).unwrap();
    let head = bytes.windows(4).position(|at| at == b"mdat").unwrap();
    let mut opened = 0;
    for case in 0..2 * case_count() {
        // The index is small beside the pictures, so half of the cases go there.
        let damaged = if case % 2 == 0 {
            [&damage(&bytes[..head], random)[..], &bytes[head..]].concat()
        } else {
            damage(&bytes, random)
        };
        fs::write(path, damaged).unwrap();
        if let Ok(reader) = open_video(path) {
            opened += 1;
            drain(reader, 10_000);
        }
    }
    assert!(
        opened > case_count() / 4,
        "only {opened} damaged films could be opened: too blunt a test"
    );
}

#[test]
fn damaged_chunks_never_panic() {
    let frames: Vec<Frame> = (0..4).map(|index| shapes(48, 32, index)).collect();
    let picture = picture(48, 32, 24.0);
    let bytes = chunk(&picture, &frames);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    let mut random = Random(2);
    for _ in 0..case_count() {
        let damaged = damage(&bytes, &mut random);
        if let Ok(reader) = read_chunk(&damaged) {
            drain(reader, 1000);
        }
        let _ = parameter_sets(&damaged);
        let _ = Muxer::new(&path, &picture, None).unwrap().push(&damaged);
    }
}

#[test]
fn damaged_packs_and_pictures_never_panic_and_never_pass() {
    let frames: Vec<Frame> = (0..3).map(|index| natural(20, 12, index)).collect();
    let pack = write_pack(&frames).unwrap();
    let png = encode_png(&frames[0]).unwrap();
    let mut random = Random(3);
    for _ in 0..case_count() {
        let damaged = damage(&pack, &mut random);
        if let Ok(reader) = read_pack(&damaged) {
            // Checksums of PNG: what comes out is what went in, in its place.
            let out: Vec<Frame> = reader.take(100).map_while(Result::ok).collect();
            let sound = out.iter().filter(|frame| frames.contains(frame)).count();
            assert_eq!(sound, out.len());
        }
        let _ = decode_png::<u16>(&damage(&png, &mut random), "it", None);
    }
}
