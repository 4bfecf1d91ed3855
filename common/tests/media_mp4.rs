//! MP4 files: what ffmpeg and ffprobe say about ours, and what we make of those by ffmpeg.
#![cfg(feature = "media")]

mod media_support;

use longtake_common::Frame;
use longtake_common::media::{self, ChunkEncoder, MediaError, Muxer, open_video};
use media_support::{
    chunk, metadata, natural, picture, psnr_of_frames, run_ffmpeg, shapes, write_film,
};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn probe(path: &Path) -> Value {
    let entries = [
        "-v",
        "error",
        "-count_frames",
        "-show_streams",
        "-show_format",
        "-of",
        "json",
    ];
    let (out, errors) = run_ffmpeg(
        "ffprobe",
        &[&entries[..], &[path.to_str().unwrap()]].concat(),
    );
    assert_eq!(errors, "");
    serde_json::from_str(&out).unwrap()
}

/// Decodes the whole file: not a word may be printed.
fn assert_ffmpeg_is_silent(path: &Path) {
    let (_, errors) = run_ffmpeg(
        "ffmpeg",
        &[
            "-v",
            "warning",
            "-i",
            path.to_str().unwrap(),
            "-f",
            "null",
            "-",
        ],
    );
    assert_eq!(errors, "", "{}", path.display());
}

fn top_level_boxes(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap();
    let (mut at, mut kinds) = (0, Vec::new());
    while at < bytes.len() {
        let size = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        kinds.push(String::from_utf8_lossy(&bytes[at + 4..at + 8]).into_owned());
        at += size as usize;
    }
    kinds
}

#[test]
fn ffmpeg_and_ffprobe_read_a_film_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    for (name, fps, rate, lengths) in [
        ("a", 24.0, "24/1", &[13, 1, 1, 25, 8][..]),
        ("b", 23.976, "24000/1001", &[9, 9]),
        ("c", 30.0, "30/1", &[1]),
        ("d", 12.5, "25/2", &[3, 4]),
    ] {
        let path = folder.path().join(format!("{name}.mp4"));
        let frames = write_film(&path, &picture(256, 160, fps), lengths, shapes);
        let probed = probe(&path);
        let stream = &probed["streams"][0];
        assert_eq!(probed["streams"].as_array().unwrap().len(), 1);
        for (key, expected) in [
            ("codec_name", "h264"),
            ("codec_tag_string", "avc1"),
            ("profile", "High"),
            ("pix_fmt", "yuv420p"),
            ("color_range", "tv"),
            ("color_space", "bt709"),
            ("color_transfer", "bt709"),
            ("color_primaries", "bt709"),
            ("sample_aspect_ratio", "1:1"),
            ("avg_frame_rate", rate),
            ("r_frame_rate", rate),
            ("is_avc", "true"),
        ] {
            assert_eq!(stream[key], *expected, "{key}");
        }
        assert_eq!(stream["width"], 256);
        assert_eq!(stream["height"], 160);
        assert_eq!(stream["has_b_frames"], 0);
        let count = frames.len().to_string();
        assert_eq!(stream["nb_read_frames"], count.as_str());
        assert_eq!(stream["nb_frames"], count.as_str());
        let seconds: f64 = stream["duration"].as_str().unwrap().parse().unwrap();
        assert!((seconds - frames.len() as f64 / fps).abs() < 1e-3);
        let tags = &probed["format"]["tags"];
        assert_eq!(tags["encoder"], "longtake 0.1.0");
        assert_eq!(tags["title"], metadata().prompt.as_str());
        let comment: Value = serde_json::from_str(tags["comment"].as_str().unwrap()).unwrap();
        assert_eq!(comment, serde_json::to_value(metadata()).unwrap());
        assert!(tags.get("creation_time").is_none(), "{tags}");
        assert_eq!(top_level_boxes(&path), ["ftyp", "moov", "mdat"]);
        assert_ffmpeg_is_silent(&path);
    }
}

#[test]
fn ffmpeg_decodes_our_film_to_the_same_pixels_as_we_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    let raw = folder.path().join("film.yuv");
    write_film(&path, &picture(130, 98, 24.0), &[7, 5], natural);
    let arguments = [
        "-v",
        "error",
        "-i",
        path.to_str().unwrap(),
        "-pix_fmt",
        "yuv420p",
        "-f",
        "rawvideo",
    ];
    run_ffmpeg(
        "ffmpeg",
        &[&arguments[..], &[raw.to_str().unwrap()]].concat(),
    );
    let mut ours = Vec::new();
    let mut reader = open_video(&path).unwrap();
    while let Some(planes) = reader.next_planes() {
        let planes = planes.unwrap();
        ours.extend([planes.y, planes.u, planes.v].concat());
    }
    assert!(
        ours == fs::read(&raw).unwrap(),
        "two decoders of one stream must agree to the bit"
    );
}

#[test]
fn a_film_comes_back_with_all_its_frames() {
    let folder = tempfile::tempdir().unwrap();
    for (name, draw) in [
        ("shapes", shapes as fn(u32, u32, u32) -> Frame),
        ("natural", natural),
    ] {
        let path = folder.path().join(format!("{name}.mp4"));
        let frames = write_film(&path, &picture(256, 160, 24.0), &[17, 5, 12], draw);
        let reader = open_video(&path).unwrap();
        let info = reader.info().clone();
        assert_eq!(
            (info.width, info.height, info.fps, info.frame_count),
            (256, 160, Some(24.0), 34)
        );
        assert_eq!(info.metadata, Some(metadata()));
        let back: Vec<Frame> = reader.collect::<media::Result<_>>().unwrap();
        assert_eq!(back.len(), frames.len());
        let mut lowest = (f64::MAX, f64::MAX);
        for (a, b) in frames.iter().zip(&back) {
            let (luma, rgb) = psnr_of_frames(a, b);
            lowest = (lowest.0.min(luma), lowest.1.min(rgb));
        }
        println!(
            "{name}: lowest luma {:.1} dB, lowest RGB {:.1} dB",
            lowest.0, lowest.1
        );
        assert!(lowest.0 > 40.0 && lowest.1 > 40.0, "{name}: {lowest:?} dB");
    }
}

#[test]
fn the_same_chunks_give_the_same_file_wherever_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (
        folder.path().join("a.mp4"),
        folder.path().join("another name.mp4"),
    );
    write_film(&a, &picture(64, 48, 24.0), &[4, 3], shapes);
    write_film(&b, &picture(64, 48, 24.0), &[4, 3], shapes);
    assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "no temporary file stays");
}

#[test]
fn chunks_that_do_not_belong_together_are_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    let frames: Vec<Frame> = (0..3).map(|index| shapes(64, 48, index)).collect();
    let good = chunk(&picture(64, 48, 24.0), &frames);
    let mut other = ChunkEncoder::new(64, 50, 24.0).unwrap();
    other.push(&shapes(64, 50, 0)).unwrap();
    let other = other.finish().unwrap();
    let film = || Muxer::new(&path, &picture(64, 48, 24.0), None).unwrap();

    let mut muxer = film();
    muxer.push(&good).unwrap();
    assert!(matches!(
        muxer.push(&other),
        Err(MediaError::ParameterSetsDiffer { chunk: 1 })
    ));
    drop(muxer);
    assert!(matches!(
        film().push(&other),
        Err(MediaError::SizeChanged { .. })
    ));
    assert!(matches!(film().finish(), Err(MediaError::NoFrames(_))));
    assert!(film().push(b"not a chunk").is_err());
    // Other parameters behind the first picture would be lost without a word.
    assert!(matches!(
        film().push(&[&good[..], &other].concat()),
        Err(MediaError::ParameterSetsDiffer { .. })
    ));
    // A chunk without its first picture would show the last one's pixels.
    let idr = good
        .windows(5)
        .position(|at| at[..4] == [0, 0, 0, 1] && at[4] & 31 == 5)
        .unwrap();
    let next = good
        .windows(5)
        .position(|at| at[..4] == [0, 0, 0, 1] && at[4] & 31 == 1)
        .unwrap();
    let headless = [&good[..idr], &good[next..]].concat();
    assert!(film().push(&headless).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let nowhere = folder.path().join("no such folder/film.mp4");
    let error = Muxer::new(&nowhere, &picture(64, 48, 24.0), None)
        .err()
        .unwrap();
    assert!(error.to_string().contains("no such folder"), "{error}");
}

/// Encodes a test pattern with ffmpeg.
fn foreign(folder: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let source = "testsrc2=size=192x108:rate=25:duration=2";
    let head = ["-v", "error", "-f", "lavfi", "-i", source];
    run_ffmpeg(
        "ffmpeg",
        &[&head[..], arguments, &[path.to_str().unwrap()]].concat(),
    );
    path
}

/// Frames as ffmpeg shows them.
fn reference_frames(path: &Path, width: u32, height: u32) -> Vec<Frame> {
    let raw = path.with_extension("rgb");
    let filter = "scale=flags=accurate_rnd+full_chroma_int+neighbor";
    let arguments = [
        "-v",
        "error",
        "-i",
        path.to_str().unwrap(),
        "-vf",
        filter,
        "-pix_fmt",
        "rgb24",
        "-f",
        "rawvideo",
    ];
    run_ffmpeg(
        "ffmpeg",
        &[&arguments[..], &[raw.to_str().unwrap()]].concat(),
    );
    let bytes = fs::read(&raw).unwrap();
    let frame = |data: &[u8]| Frame::from_rgb8(width, height, data.to_vec()).unwrap();
    bytes
        .chunks_exact(3 * (width * height) as usize)
        .map(frame)
        .collect()
}

#[test]
fn films_of_other_encoders_are_read_in_order_and_in_their_colours() {
    let folder = tempfile::tempdir().unwrap();
    let x264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12"];
    let with_sound = ["-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac"];
    let cases: [(&str, Vec<&str>); 7] = [
        ("plain.mp4", x264.to_vec()),
        (
            "baseline.mp4",
            [&x264[..], &["-profile:v", "baseline"]].concat(),
        ),
        (
            "main-b.mp4",
            [&x264[..], &["-profile:v", "main", "-bf", "3"]].concat(),
        ),
        (
            "pyramid.mp4",
            [
                &x264[..],
                &["-bf", "4", "-refs", "4", "-x264-params", "b-pyramid=normal"],
            ]
            .concat(),
        ),
        (
            "full.mp4",
            [
                &x264[..],
                &[
                    "-vf",
                    "scale=out_range=pc:out_color_matrix=bt709",
                    "-color_range",
                    "pc",
                    "-colorspace",
                    "bt709",
                ],
            ]
            .concat(),
        ),
        ("sound.mp4", [&with_sound[..], &x264[..]].concat()),
        (
            "front.mov",
            [&x264[..], &["-bf", "0", "-movflags", "faststart"]].concat(),
        ),
    ];
    for (name, arguments) in cases {
        let path = foreign(folder.path(), name, &arguments);
        let reader = open_video(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let info = reader.info().clone();
        assert_eq!(
            (info.width, info.height, info.fps, info.frame_count),
            (192, 108, Some(25.0), 50),
            "{name}"
        );
        let ours: Vec<Frame> = reader
            .collect::<media::Result<_>>()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let theirs = reference_frames(&path, 192, 108);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (index, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            let rgb = psnr_of_frames(a, b).1;
            assert!(
                rgb > 35.0,
                "{name}, frame {index}: {rgb:.1} dB against ffmpeg"
            );
        }
    }
}

#[test]
fn a_bare_stream_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chunk.h264");
    let frames: Vec<Frame> = (0..9).map(|index| natural(96, 80, index)).collect();
    fs::write(&path, chunk(&picture(96, 80, 24.0), &frames)).unwrap();
    let reader = open_video(&path).unwrap();
    assert_eq!(
        (
            reader.info().width,
            reader.info().height,
            reader.info().frame_count
        ),
        (96, 80, 9)
    );
    assert_eq!(reader.collect::<media::Result<Vec<_>>>().unwrap().len(), 9);
    assert_ffmpeg_is_silent(&path);
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = |path: &Path| match open_video(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    };
    let cases: [(&str, &[&str], &str); 6] = [
        (
            "deep.mp4",
            &["-c:v", "libx264", "-pix_fmt", "yuv420p10le"],
            "10 bits",
        ),
        (
            "chroma.mp4",
            &["-c:v", "libx264", "-pix_fmt", "yuv444p"],
            "4:4:4",
        ),
        (
            "fields.mp4",
            &[
                "-c:v",
                "libx264",
                "-pix_fmt",
                "yuv420p",
                "-flags",
                "+ilme+ildct",
            ],
            "interlaced",
        ),
        ("mpeg4.mp4", &["-c:v", "mpeg4"], "'mp4v'"),
        (
            "fragments.mp4",
            &[
                "-c:v",
                "libx264",
                "-pix_fmt",
                "yuv420p",
                "-movflags",
                "frag_keyframe+empty_moov",
            ],
            "fragmented",
        ),
        (
            "film.avi",
            &["-c:v", "libx264"],
            "not a video that can be read",
        ),
    ];
    for (name, arguments, expected) in cases {
        let error = text(&foreign(folder.path(), name, arguments));
        assert!(
            error.contains(expected) && error.contains(name),
            "{name}: {error}"
        );
    }
    let missing = folder.path().join("missing.mp4");
    assert!(text(&missing).contains("does not exist"));
    let words = folder.path().join("notes.txt");
    fs::write(&words, "not a video").unwrap();
    assert!(text(&words).contains("not a video"));
    fs::write(&words, "").unwrap();
    assert!(text(&words).contains("not a video"));
    let sound = folder.path().join("sound.mp4");
    run_ffmpeg(
        "ffmpeg",
        &[
            "-v",
            "error",
            "-f",
            "lavfi",
            "-i",
            "sine=duration=1",
            "-c:a",
            "aac",
            sound.to_str().unwrap(),
        ],
    );
    assert!(text(&sound).contains("without a video track"));
}

#[test]
fn a_cut_film_is_an_error_wherever_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mp4");
    write_film(&path, &picture(64, 48, 24.0), &[6, 6], natural);
    let bytes = fs::read(&path).unwrap();
    let cut = folder.path().join("cut.mp4");
    for length in (16..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        fs::write(&cut, &bytes[..length]).unwrap();
        let read = open_video(&cut).and_then(|reader| reader.collect::<media::Result<Vec<_>>>());
        let error = read.expect_err("a cut film").to_string();
        assert!(error.contains("damaged or incomplete"), "{length}: {error}");
    }
}
