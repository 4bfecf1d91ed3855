//! Pictures to encode and tools to look at the result, shared by the media tests.
#![allow(dead_code, reason = "each test binary uses a part")]

use longtake_common::Frame;
use longtake_common::media::{ChunkWriter, Muxer, Yuv420};
use longtake_common::spec::{Codec, Continuity};
use longtake_common::task::{FilmMetadata, Picture, Window};
use longtake_common::{Hash, media};
use std::path::Path;
use std::process::Command;

/// xorshift64*: enough to make pictures and to damage files the same way every time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

/// Flat shapes with soft edges that move over a flat ground: what `ltxv-tiny` draws.
pub fn shapes(width: u32, height: u32, index: u32) -> Frame {
    let (t, side) = (index as f32, width.min(height) as f32);
    let disc = (
        side * 0.5 + 2.3 * t,
        side * 0.45 + 0.7 * t,
        side * 0.22,
        [205.0, 60.0, 48.0],
    );
    let small = (
        width as f32 * 0.7 - 1.6 * t,
        side * 0.7,
        side * 0.12,
        [60.0, 90.0, 200.0],
    );
    paint(width, height, |x, y| {
        let mut color = [92.0, 118.0, 104.0];
        for (cx, cy, radius, paint) in [disc, small] {
            let (dx, dy) = (
                x - cx.rem_euclid(width as f32),
                y - cy.rem_euclid(height as f32),
            );
            let cover = ((radius - (dx * dx + dy * dy).sqrt()) / 4.0 + 0.5).clamp(0.0, 1.0);
            color = std::array::from_fn(|c| color[c] + (paint[c] - color[c]) * cover);
        }
        color
    })
}

/// Smooth noise of several octaves with a 1/f fall-off, panning, under fine grain: the statistics of
/// a photograph, without its rights.
pub fn natural(width: u32, height: u32, index: u32) -> Frame {
    let pan = (1.7 * index as f32, 0.6 * index as f32);
    let mut grain = Random(0x9E37_79B9 ^ u64::from(index + 1));
    paint(width, height, |x, y| {
        let (x, y) = (x + pan.0, y + pan.1);
        let mut color = [120.0, 112.0, 100.0];
        for octave in 0..6u32 {
            let scale = 96.0 / f32::from(1u16 << octave);
            let weight = 52.0 / f32::from(1u16 << octave);
            let luma = value_noise(x / scale, y / scale, octave) * weight;
            let tint = value_noise(x / scale, y / scale, octave + 40) * weight * 0.25;
            color = [
                color[0] + luma + tint,
                color[1] + luma,
                color[2] + luma - tint,
            ];
        }
        let noise = (grain.below(5) as f32 - 2.0) * 0.6;
        color.map(|value| value + noise)
    })
}

fn paint(width: u32, height: u32, mut color: impl FnMut(f32, f32) -> [f32; 3]) -> Frame {
    let mut data = Vec::with_capacity(3 * (width * height) as usize);
    for y in 0..height {
        for x in 0..width {
            data.extend(
                color(x as f32, y as f32).map(|value| value.round().clamp(0.0, 255.0) as u8),
            );
        }
    }
    Frame::from_rgb8(width, height, data).unwrap()
}

/// -1..1, smooth between the points of a grid.
fn value_noise(x: f32, y: f32, seed: u32) -> f32 {
    let point = |ix: i32, iy: i32| {
        let mut h = (ix as u32).wrapping_mul(0x8DA6_B343) ^ (iy as u32).wrapping_mul(0xD816_3841);
        h = (h ^ seed.wrapping_mul(0xCB1A_B31F)).wrapping_mul(0x9E37_79B1);
        h = (h ^ h >> 15).wrapping_mul(0x85EB_CA6B);
        f32::from((h >> 16) as u16) / 32_767.5 - 1.0
    };
    let (ix, iy) = (x.floor(), y.floor());
    let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
    let (fx, fy, ix, iy) = (smooth(x - ix), smooth(y - iy), ix as i32, iy as i32);
    let row = |iy| point(ix, iy) + (point(ix + 1, iy) - point(ix, iy)) * fx;
    row(iy) + (row(iy + 1) - row(iy)) * fy
}

pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares: u64 = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2))
        .sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares.max(1) as f64).log10()
}

/// (luma, RGB) in decibels. RGB includes what 4:2:0 loses before the encoder sees it.
pub fn psnr_of_frames(a: &Frame, b: &Frame) -> (f64, f64) {
    (
        psnr(&Yuv420::from_frame(a).y, &Yuv420::from_frame(b).y),
        psnr(a.data(), b.data()),
    )
}

pub fn picture(width: u32, height: u32, fps: f64) -> Picture {
    Picture {
        width,
        height,
        fps,
        codec: Codec::H264,
    }
}

pub fn metadata() -> FilmMetadata {
    FilmMetadata {
        version: "0.1.0".to_owned(),
        prompt: "a red circle moves right, \"quoted\" – and ünïcode".to_owned(),
        negative: String::new(),
        model: Hash::of(b"model"),
        continuity: Continuity::Chain,
        prompts: std::collections::BTreeMap::new(),
        shots: Vec::new(),
        windows: vec![Window {
            index: 0,
            first_frame: 0,
            frames: 121,
            visible_frames: 40,
            seed: 7,
        }],
    }
}

pub fn chunk(picture: &Picture, frames: &[Frame]) -> Vec<u8> {
    media::encode_chunk(picture, frames).unwrap()
}

/// A film of chunks with these frame counts; returns the frames that went in.
pub fn write_film(
    path: &Path,
    picture: &Picture,
    lengths: &[u32],
    draw: impl Fn(u32, u32, u32) -> Frame,
) -> Vec<Frame> {
    let mut muxer = Muxer::new(path, picture, Some(&metadata())).unwrap();
    let mut frames = Vec::new();
    for &length in lengths {
        let mut writer = ChunkWriter::new(picture).unwrap();
        for _ in 0..length {
            let frame = draw(picture.width, picture.height, frames.len() as u32);
            writer.push(&frame).unwrap();
            frames.push(frame);
        }
        assert_eq!(muxer.push(&writer.finish().unwrap()).unwrap(), length);
    }
    let report = muxer.finish().unwrap();
    assert_eq!(report.frame_count as usize, frames.len());
    assert_eq!(report.bytes, std::fs::metadata(path).unwrap().len());
    frames
}

/// Runs ffmpeg or ffprobe; returns (stdout, stderr). The tests of what we write need an independent
/// reader, so a missing one is a failure.
pub fn run_ffmpeg(program: &str, arguments: &[&str]) -> (String, String) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "{program} is needed to check our files with a second reader ({error}); \
             `cargo xtask test` installs it, or install the package `ffmpeg`"
            )
        });
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(
        output.status.success(),
        "{program} {arguments:?} failed: {stderr}"
    );
    (stdout, stderr)
}
