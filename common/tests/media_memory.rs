//! Memory of muxing and reading does not grow with the film. One test, for the peak is the process's.
#![cfg(all(feature = "media", target_os = "linux"))]

mod media_support;

use longtake_common::Frame;
use longtake_common::media::{Muxer, open_video};
use media_support::{Random, chunk, natural, picture};

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Muxes and reads a film of so many chunks of 24 frames; returns its bytes.
fn pass(chunk: &[u8], chunk_count: u32) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    let mut muxer = Muxer::new(&path, &picture(96, 64, 24.0), None).unwrap();
    for _ in 0..chunk_count {
        muxer.push(chunk).unwrap();
    }
    let report = muxer.finish().unwrap();
    assert_eq!(report.frame_count, 24 * chunk_count);
    let read = open_video(&path)
        .unwrap()
        .filter(|frame| frame.is_ok())
        .count();
    assert_eq!(read as u32, report.frame_count);
    report.bytes
}

#[test]
fn a_long_film_needs_no_more_memory_than_a_short_one() {
    // Two frames of noise make the chunk large, the others keep the test short.
    let mut frames: Vec<Frame> = (0..24).map(|index| natural(96, 64, index)).collect();
    let mut random = Random(5);
    for frame in &mut frames[11..13] {
        frame.data_mut().fill_with(|| random.next() as u8);
    }
    let chunk = chunk(&picture(96, 64, 24.0), &frames);
    pass(&chunk, 4);
    let before = peak_kib();
    let bytes = pass(&chunk, 600);
    let grown = peak_kib() - before;
    println!("{bytes} bytes of film, {grown} KiB more at the peak");
    // 14,400 frames: the tables take 4 bytes each, several times over while they are written.
    assert!(grown < 2048, "{grown} KiB more for {bytes} bytes of film");
    assert!(bytes > 4 << 20, "a film of {bytes} bytes proves nothing");
}
