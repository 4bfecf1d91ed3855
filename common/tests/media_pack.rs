//! Lossless pictures: frame packs and PNG sequences.
#![cfg(feature = "media")]

mod media_support;

use longtake_common::Frame;
use longtake_common::media::{
    self, ChunkWriter, MediaError, PackWriter, decode_png, encode_png, is_sequence, open_video,
    read_chunk, read_pack, write_pack, write_png_sequence, write_png_sequence_from,
};
use longtake_common::spec::Codec;
use longtake_common::task::Picture;
use media_support::{natural, shapes};
use std::fs;
use std::path::Path;

fn frames(count: u32, width: u32, height: u32) -> Vec<Frame> {
    (0..count)
        .map(|index| if index % 2 == 0 { natural } else { shapes }(width, height, index))
        .collect()
}

fn collect(frames: impl Iterator<Item = media::Result<Frame>>) -> media::Result<Vec<Frame>> {
    frames.collect()
}

#[test]
fn packs_give_back_every_pixel() {
    for (width, height) in [(256, 160), (1, 1), (33, 17)] {
        let frames = frames(5, width, height);
        let pack = write_pack(&frames).unwrap();
        assert_eq!(pack, write_pack(&frames).unwrap());
        let reader = read_pack(&pack).unwrap();
        assert_eq!(
            (reader.width(), reader.height(), reader.frame_count()),
            (width, height, 5)
        );
        assert_eq!(collect(reader).unwrap(), frames);
        assert_eq!(collect(read_chunk(&pack).unwrap()).unwrap(), frames);
    }
    assert!(matches!(
        PackWriter::new().finish(),
        Err(MediaError::NoFrames(_))
    ));
    let mixed = [Frame::black(4, 4), Frame::black(4, 5)];
    assert!(matches!(
        write_pack(&mixed),
        Err(MediaError::SizeChanged { frame: 1, .. })
    ));
}

#[test]
fn a_png_film_is_made_of_packs_and_takes_odd_sizes() {
    let picture = Picture {
        width: 33,
        height: 17,
        fps: 24.0,
        codec: Codec::Png,
    };
    let mut writer = ChunkWriter::new(&picture).unwrap();
    let frames = frames(3, 33, 17);
    for frame in &frames {
        writer.push(frame).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chunk.pack");
    fs::write(&path, writer.finish().unwrap()).unwrap();
    let reader = open_video(&path).unwrap();
    assert_eq!(reader.info().frame_count, 3);
    assert_eq!(collect(reader).unwrap(), frames);
}

#[test]
fn every_cut_of_a_pack_is_an_error() {
    let pack = write_pack(&frames(2, 24, 16)).unwrap();
    for length in 0..pack.len() {
        let read = read_pack(&pack[..length]).and_then(collect);
        assert!(read.is_err(), "cut to {length} of {} bytes", pack.len());
    }
    let longer = [&pack[..], b"x"].concat();
    assert!(read_pack(&longer).and_then(collect).is_err());
    // A forged count and a forged length ask for nothing that is not there.
    for at in [8, 12, 16, 20] {
        let mut forged = pack.clone();
        forged[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read_pack(&forged).and_then(collect).is_err(), "{at}");
    }
}

#[test]
fn sequences_are_written_and_read_by_pattern_and_by_folder() {
    let folder = tempfile::tempdir().unwrap();
    let frames = frames(12, 20, 14);
    let good = || frames.iter().map(Ok::<_, MediaError>);
    for (pattern, name) in [
        ("a/%06d.png", "a/000011.png"),
        ("b/f%d.png", "b/f11.png"),
        ("c", "c/000011.png"),
    ] {
        let path = folder.path().join(pattern);
        assert_eq!(write_png_sequence(&path, good()).unwrap(), 12);
        assert!(folder.path().join(name).exists(), "{name}");
        let reader = open_video(&path).unwrap();
        assert_eq!((reader.info().frame_count, reader.info().fps), (12, None));
        assert_eq!(collect(reader).unwrap(), frames, "{pattern}");
        // The folder as such: numbers in names count by value, so f11 comes after f2.
        let whole = folder.path().join(&pattern[..1]);
        assert_eq!(
            collect(open_video(whole).unwrap()).unwrap(),
            frames,
            "the folder of {pattern}"
        );
    }
    assert!(is_sequence(Path::new("x/%06d.png")) && !is_sequence(Path::new("x/film.mp4")));
    let single = open_video(folder.path().join("a/000003.png")).unwrap();
    assert_eq!(collect(single).unwrap(), frames[3..4]);
    // A shorter film under the same name leaves nothing of the longer one, and no other file is touched.
    fs::write(folder.path().join("a/other7.png"), b"kept").unwrap();
    let path = folder.path().join("a/%06d.png");
    assert_eq!(write_png_sequence(&path, good().take(4)).unwrap(), 4);
    assert_eq!(collect(open_video(&path).unwrap()).unwrap(), frames[..4]);
    assert_eq!(fs::read_dir(folder.path().join("a")).unwrap().count(), 5);
    assert_eq!(
        write_png_sequence_from(&path, 1, good().take(3)).unwrap(),
        3
    );
    assert!(!folder.path().join("a/000000.png").exists());
    assert_eq!(collect(open_video(&path).unwrap()).unwrap(), frames[..3]);
    // An error on the way in comes out as it is.
    let failing = frames.iter().map(Ok).chain([Err(MediaError::BadRate(0.0))]);
    let error = write_png_sequence(&folder.path().join("d"), failing).unwrap_err();
    assert!(matches!(error, MediaError::BadRate(_)));
}

#[test]
fn broken_sequences_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("%04d.png");
    let text = |path: &Path| open_video(path).and_then(collect).unwrap_err().to_string();
    assert!(text(&path).contains("has no frames"));
    write_png_sequence(&path, frames(6, 8, 8).into_iter().map(Ok::<_, MediaError>)).unwrap();
    fs::write(
        folder.path().join("0004.png"),
        encode_png(&Frame::black(9, 8)).unwrap(),
    )
    .unwrap();
    assert!(text(&path).contains("9x8") && text(&path).contains("0004.png"));
    fs::write(folder.path().join("0004.png"), b"\x89PNG but no more").unwrap();
    assert!(text(&path).contains("0004.png"));
    fs::remove_file(folder.path().join("0004.png")).unwrap();
    assert!(text(&path).contains("no frame 4"));
    assert!(text(&folder.path().join("none/%d.png")).contains("does not exist"));
    for bad in ["%d%d.png", "%s.png", "%06d.jpg", "%6x.png", "%0999d.png"] {
        assert!(
            text(&folder.path().join(bad)).contains("not a pattern"),
            "{bad}"
        );
    }
}

fn foreign_png(color: png::ColorType, depth: png::BitDepth, width: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, 1);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == png::ColorType::Indexed {
        encoder.set_palette(vec![1, 2, 3, 200, 100, 50]);
    }
    encoder
        .write_header()
        .unwrap()
        .write_image_data(data)
        .unwrap();
    out
}

#[test]
fn all_kinds_of_png_become_rgb() {
    use png::{BitDepth::*, ColorType::*};
    for (color, depth, data, expected) in [
        (Grayscale, Eight, &[0, 77][..], [0, 0, 0, 77, 77, 77]),
        (
            Grayscale,
            Sixteen,
            &[0xFF, 0xFF, 0x4C, 0xFF],
            [255, 255, 255, 77, 77, 77],
        ),
        (Grayscale, One, &[0b0100_0000], [0, 0, 0, 255, 255, 255]),
        (GrayscaleAlpha, Eight, &[9, 128, 8, 0], [9, 9, 9, 8, 8, 8]),
        (
            Rgb,
            Sixteen,
            &[0, 1, 0, 200, 128, 128, 255, 255, 127, 127, 1, 1],
            [0, 1, 128, 255, 127, 1],
        ),
        (Rgba, Eight, &[1, 2, 3, 0, 4, 5, 6, 255], [1, 2, 3, 4, 5, 6]),
        (
            Rgba,
            Sixteen,
            &[1, 1, 2, 2, 3, 3, 0, 0, 4, 4, 5, 5, 6, 6, 9, 9],
            [1, 2, 3, 4, 5, 6],
        ),
        (Indexed, Eight, &[1, 0], [200, 100, 50, 1, 2, 3]),
    ] {
        let frame: Frame = decode_png(&foreign_png(color, depth, 2, data), "it", None).unwrap();
        assert_eq!(frame.data(), expected, "{color:?} {depth:?}");
    }
    assert!(
        decode_png::<u8>(
            &encode_png(&Frame::black(2, 2)).unwrap(),
            "it",
            Some((2, 3))
        )
        .is_err()
    );
}
