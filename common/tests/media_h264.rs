//! Chunks: deterministic, alike in their parameter sets, good enough to look at.
#![cfg(feature = "media")]

mod media_support;

use longtake_common::Frame;
use longtake_common::media::{
    self, ChunkEncoder, MediaError, Yuv420, check_size, parameter_sets, read_chunk,
};
use longtake_common::spec::Codec;
use media_support::{Random, chunk, natural, picture, psnr_of_frames, shapes};

#[test]
fn the_same_frames_give_the_same_bytes_on_any_thread() {
    let picture = picture(256, 160, 24.0);
    let frames: Vec<Frame> = (0..12).map(|index| natural(256, 160, index)).collect();
    let first = chunk(&picture, &frames);
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (picture, frames) = (picture.clone(), frames.clone());
            std::thread::spawn(move || chunk(&picture, &frames))
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), first);
    }
    assert_eq!(
        chunk(&picture, &frames),
        first,
        "a second encoder on the same thread"
    );
}

#[test]
fn all_chunks_of_a_film_have_equal_parameter_sets() {
    let picture = picture(256, 160, 24.0);
    let noise = |seed: u64| {
        let mut random = Random(seed);
        let data = (0..3 * 256 * 160).map(|_| random.next() as u8).collect();
        Frame::from_rgb8(256, 160, data).unwrap()
    };
    let contents: [Vec<Frame>; 6] = [
        (0..40).map(|index| shapes(256, 160, index)).collect(),
        (0..9).map(|index| natural(256, 160, index)).collect(),
        vec![Frame::black(256, 160)],
        (1..20).map(noise).collect(),
        // A hard cut inside a chunk, and stillness.
        vec![
            Frame::black(256, 160),
            natural(256, 160, 3),
            Frame::black(256, 160),
        ],
        vec![shapes(256, 160, 0); 30],
    ];
    let sets: Vec<_> = contents
        .iter()
        .map(|frames| parameter_sets(&chunk(&picture, frames)).unwrap())
        .collect();
    assert!(sets.iter().all(|set| *set == sets[0]));
    assert_eq!(sets[0].sps[0] & 31, 7);
    assert_eq!(sets[0].pps[0] & 31, 8);
}

#[test]
fn chunks_decode_to_their_frames() {
    for (width, height) in [(256, 160), (64, 48), (130, 98), (16, 16), (18, 34)] {
        for draw in [shapes, natural] {
            let frames: Vec<Frame> = (0..10).map(|index| draw(width, height, index)).collect();
            let bytes = chunk(&picture(width, height, 24.0), &frames);
            let back: Vec<Frame> = read_chunk(&bytes)
                .unwrap()
                .collect::<media::Result<_>>()
                .unwrap();
            assert_eq!(back.len(), frames.len(), "{width}x{height}");
            for (a, b) in frames.iter().zip(&back) {
                let (luma, rgb) = psnr_of_frames(a, b);
                assert!(
                    luma > 40.0,
                    "{width}x{height}: luma {luma:.1} dB, RGB {rgb:.1} dB"
                );
            }
        }
    }
}

#[test]
fn pictures_that_hardly_compress_are_encoded_too() {
    let mut random = Random(11);
    let frames: Vec<Frame> = (0..6)
        .map(|_| {
            Frame::from_rgb8(
                352,
                288,
                (0..3 * 352 * 288).map(|_| random.next() as u8).collect(),
            )
            .unwrap()
        })
        .collect();
    let mut encoder = ChunkEncoder::with_qp(352, 288, 24.0, 1).unwrap();
    for frame in &frames {
        encoder.push(frame).unwrap();
    }
    let back = read_chunk(&encoder.finish().unwrap())
        .unwrap()
        .collect::<media::Result<Vec<_>>>();
    assert_eq!(back.unwrap().len(), 6);
}

#[test]
fn sizes_are_judged_before_anything_is_encoded() {
    for (width, height) in [
        (256, 160),
        (1216, 704),
        (3840, 2160),
        (3840, 2176),
        (2160, 3840),
        (16, 16),
        (4096, 2304),
    ] {
        check_size(Codec::H264, width, height).unwrap();
        ChunkEncoder::new(width, height, 24.0).unwrap();
    }
    let text = |width, height| {
        check_size(Codec::H264, width, height)
            .unwrap_err()
            .to_string()
    };
    let odd = text(255, 161);
    assert!(odd.contains("254x160") && odd.contains("256x162"), "{odd}");
    assert!(text(14, 100).contains("at least 16"));
    assert!(text(4098, 16).contains("4096"));
    assert!(text(4096, 4096).contains("pixels in all"));
    assert!(text(0, 16).contains("no pixels"));
    check_size(Codec::Png, 255, 161).unwrap();
    assert!(check_size(Codec::Png, 0, 5).is_err());
    assert!(ChunkEncoder::new(255, 160, 24.0).is_err());
}

#[test]
fn misuse_is_an_error() {
    let mut encoder = ChunkEncoder::new(64, 64, 24.0).unwrap();
    let wrong = encoder.push(&Frame::black(64, 66));
    assert!(matches!(wrong, Err(MediaError::SizeChanged { .. })));
    assert!(matches!(encoder.finish(), Err(MediaError::NoFrames(_))));
    assert!(matches!(
        ChunkEncoder::new(64, 64, 0.0),
        Err(MediaError::BadRate(_))
    ));
    assert!(
        read_chunk(b"neither chunk nor pack")
            .unwrap()
            .next()
            .unwrap()
            .is_err()
    );
    // A chunk that was cut: an error or fewer frames, never a made-up one.
    let frames: Vec<Frame> = (0..5).map(|index| shapes(64, 64, index)).collect();
    let bytes = chunk(&picture(64, 64, 24.0), &frames);
    let whole: Vec<Frame> = read_chunk(&bytes)
        .unwrap()
        .collect::<media::Result<_>>()
        .unwrap();
    let cut: Vec<_> = read_chunk(&bytes[..bytes.len() - 40])
        .unwrap()
        .filter_map(Result::ok)
        .collect();
    assert!(cut.len() < 5 && whole.starts_with(&cut));
}

/// Mean |dY| between neighbours of a film made of chunks.
fn luma_steps(chunk_frames: u32, chunk_count: u32, draw: fn(u32, u32, u32) -> Frame) -> Vec<f64> {
    let picture = picture(256, 160, 24.0);
    let mut lumas = Vec::new();
    for index in 0..chunk_count {
        let first = index * chunk_frames;
        let frames: Vec<Frame> = (first..first + chunk_frames)
            .map(|frame| draw(256, 160, frame))
            .collect();
        let back = read_chunk(&chunk(&picture, &frames))
            .unwrap()
            .collect::<media::Result<Vec<_>>>();
        lumas.extend(
            back.unwrap()
                .iter()
                .map(|frame| Yuv420::from_frame(frame).y),
        );
    }
    let mean = |pair: &[Vec<u8>]| {
        let sum: u64 = pair[0]
            .iter()
            .zip(&pair[1])
            .map(|(&a, &b)| u64::from(a.abs_diff(b)))
            .sum();
        sum as f64 / pair[0].len() as f64
    };
    lumas.windows(2).map(mean).collect()
}

#[test]
fn the_step_from_chunk_to_chunk_does_not_stand_out() {
    const CHUNK: usize = 24;
    for draw in [shapes, natural] {
        let steps = luma_steps(CHUNK as u32, 3, draw);
        let (joints, mut others): (Vec<_>, Vec<_>) = steps
            .iter()
            .enumerate()
            .partition(|(index, _)| (index + 1) % CHUNK == 0);
        others.sort_by(|a, b| a.1.total_cmp(b.1));
        let usual = *others[others.len() * 95 / 100].1;
        for (index, joint) in joints {
            assert!(
                *joint <= usual,
                "after frame {index}: {joint:.3} where {usual:.3} is usual"
            );
        }
    }
}
