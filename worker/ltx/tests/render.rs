//! Whole renders: independent of threads, tails like their window, and with the shipped model.

mod common;

use common::{backend, golden, tiny_model};
use longtake_cpu::{CpuBackend, Isa};
use longtake_ltx::{DecodeRequest, DenoiseRequest, Latents, Model, Steps, Video, check_model};
use std::ops::ControlFlow;

const DECODE: DecodeRequest = DecodeRequest {
    seed: 3,
    timestep: 0.05,
    noise_scale: 0.025,
};

fn denoise(model: &Model<CpuBackend>, latent: [usize; 3], held: Option<&Latents>) -> Latents {
    let prompt = model
        .encode_prompt("a red circle moves left", 32)
        .expect("prompt");
    let negative = model.encode_prompt("", 32).expect("negative");
    let request = DenoiseRequest {
        latent_frames: latent[0],
        latent_height: latent[1],
        latent_width: latent[2],
        fps: 24.0,
        seed: DECODE.seed,
        steps: &Steps::Timesteps(vec![1.0, 0.9, 0.5]),
        guidance_scale: 1.5,
        prompt: &prompt,
        negative: Some(&negative),
        conditioning: held,
    };
    let mut seen = Vec::new();
    let latents = model.denoise(&request, &mut |step, steps| {
        seen.push((step, steps));
        ControlFlow::Continue(())
    });
    assert_eq!(seen, [(1, 3), (2, 3), (3, 3)]);
    latents.expect("latents")
}

#[test]
fn threads_do_not_show() {
    let mut results: Vec<(Latents, Video, Latents)> = Vec::new();
    for threads in [1, 2, 3] {
        let model = Model::load(&golden("model"), backend(threads)).expect("model");
        let latents = denoise(&model, [3, 3, 5], None);
        let video = model.decode(&latents, &DECODE).expect("video");
        let again = model.encode(&video).expect("latents");
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
    let held = model.encode(&tail).expect("held");
    assert_eq!((held.frames, held.height, held.width), (2, 2, 3));
    let second = denoise(&model, [4, 2, 3], Some(&held));
    assert_eq!(second.slice(0, 2), held);
    let video = model.decode(&second, &DECODE).expect("video");
    assert_eq!((video.frames, video.height, video.width), (25, 64, 96));
}
