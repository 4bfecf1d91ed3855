//! Frames a second on one thread, for `docs/bench.md`. Not a test of anything:
//! `cargo test --release -p longtake-common --features media --test media_speed -- --ignored --nocapture`
#![cfg(feature = "media")]

mod media_support;

use longtake_common::Frame;
use longtake_common::media::{self, ChunkEncoder, Yuv420, read_chunk, read_pack, write_pack};
use media_support::{natural, psnr_of_frames, shapes};

/// Seconds that this thread has run, so that other work on the machine does not count (Linux).
fn thread_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

#[test]
#[ignore = "prints timings"]
fn frames_a_second() {
    for (width, height, count) in [(256, 160, 96), (1216, 704, 24)] {
        for (name, draw) in [
            ("shapes", shapes as fn(u32, u32, u32) -> Frame),
            ("natural", natural),
        ] {
            let frames: Vec<Frame> = (0..count).map(|index| draw(width, height, index)).collect();
            let per_second = |start: f64| f64::from(count) / (thread_seconds() - start);

            let start = thread_seconds();
            let planes: usize = frames
                .iter()
                .map(|frame| Yuv420::from_frame(frame).y.len())
                .sum();
            println!(
                "{width}x{height} {name}: RGB to 4:2:0 {:.0} fps ({planes} pixels)",
                per_second(start)
            );

            for qp in [11, 20] {
                let start = thread_seconds();
                let mut encoder = ChunkEncoder::with_qp(width, height, 24.0, qp).unwrap();
                frames.iter().for_each(|frame| encoder.push(frame).unwrap());
                let chunk = encoder.finish().unwrap();
                let encode = per_second(start);
                let start = thread_seconds();
                let back: Vec<Frame> = read_chunk(&chunk)
                    .unwrap()
                    .collect::<media::Result<_>>()
                    .unwrap();
                let decode = per_second(start);
                let pairs = frames.iter().zip(&back).map(|(a, b)| psnr_of_frames(a, b));
                let (luma, rgb) =
                    pairs.fold((0.0, 0.0), |sum, (luma, rgb)| (sum.0 + luma, sum.1 + rgb));
                println!(
                    "{width}x{height} {name}, QP {qp}: encode {encode:.0} fps, decode {decode:.0} fps, \
                     {:.0} kbit/s at 24 fps, luma {:.1} dB, RGB {:.1} dB",
                    chunk.len() as f64 * 8.0 * 24.0 / f64::from(count) / 1000.0,
                    luma / f64::from(count),
                    rgb / f64::from(count),
                );
            }
            let start = thread_seconds();
            let pack = write_pack(&frames).unwrap();
            let write = per_second(start);
            let start = thread_seconds();
            assert_eq!(
                read_pack(&pack).unwrap().filter_map(Result::ok).count(),
                frames.len()
            );
            println!(
                "{width}x{height} {name}: pack write {write:.0} fps, read {:.0} fps, {} bytes a frame",
                per_second(start),
                pack.len() / frames.len()
            );
        }
    }
}
