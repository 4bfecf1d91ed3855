//! Whole renders: independent of threads, tails like their window, and with the shipped model.

mod common;

use common::{backend, golden, tiny_model};
use longtake_cpu::{CpuBackend, Isa};
use longtake_ltx::config::PipelineClass;
use longtake_ltx::{
    DecodeRequest, DenoiseRequest, Drawn, Encoded, Held, Latents, Model, Pass, Pictures, Steps,
    Video, check_model,
};
use longtake_tensor::{Backend, Loader, Shape};
use std::ops::ControlFlow;

const DECODE: DecodeRequest = DecodeRequest {
    class: PipelineClass::Condition,
    seed: 3,
    drawn: Drawn::NOTHING,
    timestep: 0.05,
    noise_scale: 0.025,
    tone_map: 0.0,
};

fn denoise(model: &Model<CpuBackend>, latent: [usize; 3], held: Option<&Latents>) -> Latents {
    let prompt = model
        .encode_prompt("a red circle moves left", 32, DECODE.class)
        .expect("prompt");
    let negative = model.encode_prompt("", 32, DECODE.class).expect("negative");
    let held = held.map(|latents| Encoded {
        mode: latents.clone(),
        spread: None,
    });
    let items: Vec<Held<'_>> = held
        .iter()
        .map(|encoded| Held {
            encoded,
            frame: 0,
            strength: 1.0,
            noised: false,
            reference_stride: None,
        })
        .collect();
    let pass = Pass::plain(Steps::Timesteps(vec![1.0, 0.9, 0.5]), 1.5);
    let request = DenoiseRequest {
        negative: Some(&negative),
        held: &items,
        ..DenoiseRequest::new(DECODE.class, latent, 24.0, DECODE.seed, &pass, &prompt)
    };
    let mut seen = Vec::new();
    let latents = model.denoise(&request, &mut |step, steps| {
        seen.push((step, steps));
        ControlFlow::Continue(())
    });
    assert_eq!(seen, [(1, 3), (2, 3), (3, 3)]);
    latents.expect("latents").latents
}

#[test]
fn threads_do_not_show() {
    let mut results: Vec<(Latents, Video, Latents)> = Vec::new();
    for threads in [1, 2, 3] {
        let model = Model::load(&golden("model"), backend(threads)).expect("model");
        let latents = denoise(&model, [3, 3, 5], None);
        let video = model.decode(&latents, &DECODE).expect("video");
        let again = model.encode(&Pictures::from(&video)).expect("latents").mode;
        results.push((latents, video, again));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn levels_agree_to_rounding() {
    let mut first: Option<Latents> = None;
    for isa in Isa::available() {
        let b = CpuBackend::new(2, isa).expect("level");
        let model = Model::load(&golden("model"), b).expect("model");
        let latents = denoise(&model, [2, 1, 2], None);
        if let Some(first) = &first {
            let worst = first.values.iter().zip(&latents.values);
            let worst = worst.fold(0.0f32, |w, (a, b)| w.max((a - b).abs()));
            assert!(worst < 1e-4, "{isa}: {worst}");
        }
        first.get_or_insert(latents);
    }
}

#[test]
fn a_tail_is_like_the_end_of_its_window() {
    let model = Model::load(&golden("model"), backend(2)).expect("model");
    let latents = denoise(&model, [9, 1, 2], None);
    let whole = model.decode(&latents, &DECODE).expect("video");
    assert_eq!((whole.frames, whole.height, whole.width), (65, 32, 64));
    let tail = model.decode_tail(&latents, &DECODE, 17).expect("tail");
    assert_eq!((tail.frames, tail.height, tail.width), (17, 32, 64));
    // Two latents before the tail are left out of 9 - 3 - 4, and hardly show.
    let end = whole.last(17);
    let difference: u64 = tail
        .rgb
        .iter()
        .zip(&end.rgb)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    let mean = difference as f64 / end.rgb.len() as f64;
    assert!(mean < 1.0, "mean difference {mean}");

    // With nothing left out it is the same.
    let short = latents.slice(2, 9);
    let whole = model.decode(&short, &DECODE).expect("video");
    assert_eq!(
        model.decode_tail(&short, &DECODE, 17).expect("tail"),
        whole.last(17)
    );
}

#[test]
fn the_shipped_model_renders_and_continues() {
    check_model(&tiny_model()).expect("the shipped model is sound");
    let model = Model::load(&tiny_model(), backend(2)).expect("the shipped model loads");
    let first = denoise(&model, [4, 2, 3], None);
    let tail = model.decode_tail(&first, &DECODE, 9).expect("tail");
    let held = model.encode(&Pictures::from(&tail)).expect("held").mode;
    assert_eq!((held.frames, held.height, held.width), (2, 2, 3));
    let second = denoise(&model, [4, 2, 3], Some(&held));
    assert_eq!(second.slice(0, 2), held);
    let video = model.decode(&second, &DECODE).expect("video");
    assert_eq!((video.frames, video.height, video.width), (25, 64, 96));
}

/// The shipped model's usual way to sample.
fn usual_pass() -> Pass {
    let levels = vec![1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.9094, 0.725, 0.4219];
    let mut pass = Pass::plain(Steps::Timesteps(levels), 1.0);
    pass.image_cond_noise_scale = 0.15;
    pass
}

/// A window of 256 x 160 pixels and `latents` latents, held to `items`: (first frame, pictures).
fn held_video(
    model: &Model<CpuBackend>,
    latents: usize,
    seed: u64,
    items: &[(usize, Video)],
) -> Video {
    let text = "a big red ball rolls slowly left over a navy background";
    let prompt = model.encode_prompt(text, 32, DECODE.class).expect("prompt");
    let encoded: Vec<(usize, Encoded)> = items
        .iter()
        .map(|(frame, video)| {
            (
                *frame,
                model.encode(&Pictures::from(video)).expect("encoded"),
            )
        })
        .collect();
    let held: Vec<Held<'_>> = encoded
        .iter()
        .map(|(frame, encoded)| Held {
            encoded,
            frame: *frame,
            strength: 1.0,
            noised: true,
            reference_stride: None,
        })
        .collect();
    let pass = usual_pass();
    let request = DenoiseRequest {
        held: &held,
        ..DenoiseRequest::new(DECODE.class, [latents, 5, 8], 24.0, seed, &pass, &prompt)
    };
    let done = model
        .denoise(&request, &mut |_, _| ControlFlow::Continue(()))
        .expect("latents");
    let decode = DecodeRequest {
        drawn: done.drawn,
        seed,
        ..DECODE
    };
    model.decode(&done.latents, &decode).expect("video")
}

/// Pictures `from..to`.
fn part(video: &Video, from: usize, to: usize) -> Video {
    let bytes = 3 * video.height * video.width;
    Video {
        frames: to - from,
        rgb: video.rgb[from * bytes..to * bytes].to_vec(),
        ..*video
    }
}

fn psnr_db(a: &Video, b: &Video) -> f64 {
    assert_eq!(a.rgb.len(), b.rgb.len());
    let pairs = a.rgb.iter().zip(&b.rgb);
    let squares: f64 = pairs.map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    -10.0 * (squares / a.rgb.len() as f64 / 255f64.powi(2)).log10()
}

#[test]
fn the_shipped_model_meets_images_and_clips() {
    let model = Model::load(&tiny_model(), backend(2)).expect("the shipped model loads");
    let source = held_video(&model, 7, 1, &[]);
    let image = part(&source, 0, 1);
    let from_image = held_video(&model, 4, 2, &[(0, image.clone())]);
    let first = psnr_db(&part(&from_image, 0, 1), &image);

    let late = part(&source, 24, 25);
    let keyed = held_video(&model, 4, 3, &[(0, image), (24, late.clone())]);
    let keyframe = psnr_db(&part(&keyed, 24, 25), &late);

    let clip = part(&source, 0, 25);
    let forward = held_video(&model, 7, 4, &[(0, clip.clone())]);
    let kept = psnr_db(&part(&forward, 0, 17), &part(&clip, 0, 17));
    let backward = held_video(&model, 7, 5, &[(24, clip.clone())]);
    let led_to = psnr_db(&part(&backward, 41, 49), &part(&clip, 17, 25));
    println!(
        "first frame {first:.1} dB, keyframe {keyframe:.1} dB, clip kept {kept:.1} dB, clip led \
         up to {led_to:.1} dB"
    );
    assert!(first >= 30.0 && keyframe >= 28.0 && kept >= 30.0 && led_to >= 30.0);
}

#[test]
fn decoding_in_parts_changes_no_bit() {
    let b = backend(2);
    let model = Model::load(&tiny_model(), b.clone()).expect("model");
    let shape = Shape::from([4, 2, 3, 128]);
    let values: Vec<f32> = (0..shape.count())
        .map(|i| (i % 97) as f32 / 40.0 - 1.2)
        .collect();
    let latents = b.upload(shape, &values).expect("latents");
    let decoder = model.decoder().expect("decoder");
    let whole = decoder.forward(&b, &latents, 0.05).expect("whole");
    let whole = b.download(&whole).expect("pictures");
    let mut counts = Vec::new();
    // From all at once to one frame of a stage's input a part.
    for values_max in [1 << 30, 60_000, 30_000, 8_000, 1] {
        let (mut pictures, mut count) = (Vec::new(), 0);
        let mut take = |part| {
            pictures.extend(b.download(&part).expect("part"));
            count += 1;
            Ok(())
        };
        let decoded = decoder.forward_in_parts(&b, &latents, 0.05, values_max, &mut take);
        decoded.expect("parts");
        assert!(pictures == whole, "{values_max}");
        counts.push(count);
    }
    assert_eq!(counts[0], 1);
    // The smallest parts come out together: each of so many convolutions lags behind by a frame.
    assert!(counts.iter().any(|&count| count > 3), "{counts:?}");
}

/// `teacache_threshold` when a pipeline file names none.
const TEACACHE_THRESHOLD: f32 = 0.06;

#[test]
fn tea_cache_leaves_out_blocks_without_harm() {
    let model = Model::load(&tiny_model(), backend(2)).expect("the shipped model loads");
    let prompt = model.encode_prompt("a red circle moves left", 32, DECODE.class);
    let prompt = prompt.expect("prompt");
    let render = |tea_cache| {
        let mut pass = Pass::plain(Steps::Count(30), 1.0);
        pass.tea_cache = tea_cache;
        let request = DenoiseRequest::new(DECODE.class, [4, 3, 4], 24.0, 1, &pass, &prompt);
        let done = model.denoise(&request, &mut |_, _| ControlFlow::Continue(()));
        let done = done.expect("latents");
        let decode = DecodeRequest {
            drawn: done.drawn,
            ..DECODE
        };
        let video = model.decode(&done.latents, &decode).expect("video");
        (video, done.blocks)
    };
    let (plain, all) = render(None);
    let (cached, some) = render(Some(TEACACHE_THRESHOLD));
    assert_eq!(some.computed + some.reused, all.computed);
    let (saving, db) = (
        all.computed as f64 / some.computed as f64,
        psnr_db(&plain, &cached),
    );
    println!("TeaCache: {saving:.2} times fewer block evaluations, {db:.1} dB");
    assert!(saving >= 1.6 && db >= 30.0, "{saving:.2} {db:.1}");
}
