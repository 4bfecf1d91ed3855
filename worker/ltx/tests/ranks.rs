//! A gang's ranks do not show: whatever their number, they render what one renders, to the bit.

mod common;

use common::random::{flat_upscaler, model_of_heads};
use common::{backend, golden, tiny_model};
use longtake_cpu::CpuBackend;
use longtake_cpu::gang::threads;
use longtake_ltx::config::PipelineClass;
use longtake_ltx::weights::Scrutiny;
use longtake_ltx::{
    DecodeRequest, DenoiseRequest, Denoised, Drawn, Encoded, Error, Guidance, GuidanceStep,
    Halfway, Held, LatentUpsampler, Latents, Model, Pass, Pictures, Prompt, Steps, StgMode, Stop,
};
use longtake_tensor::Collective;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What each of `ranks` ranks makes of `job`.
fn on_ranks<T: Send>(
    model: &Model<CpuBackend>,
    ranks: usize,
    job: impl Fn(usize, &Model<CpuBackend>) -> T + Sync,
) -> Vec<T> {
    let models: Vec<_> = threads(ranks)
        .into_iter()
        .map(|gang| {
            model
                .on_rank(Arc::new(gang))
                .expect("the ranks divide the heads")
        })
        .collect();
    std::thread::scope(|scope| {
        let job = &job;
        let running: Vec<_> = models
            .iter()
            .enumerate()
            .map(|(rank, model)| scope.spawn(move || job(rank, model)))
            .collect();
        let ended = running.into_iter().map(|rank| rank.join().expect("a rank"));
        ended.collect()
    })
}

fn prompt(model: &Model<CpuBackend>, text: &str) -> Prompt {
    model
        .encode_prompt(text, 16, PipelineClass::Condition)
        .expect("prompt")
}

/// Latents of smooth values.
fn latents(frames: usize, height: usize, width: usize) -> Encoded {
    let values = (0..128 * frames * height * width).map(|i| (i as f32 * 0.37).sin());
    let mode = Latents {
        channels: 128,
        frames,
        height,
        width,
        values: values.collect(),
    };
    Encoded { mode, spread: None }
}

/// A window to denoise.
struct Window {
    class: PipelineClass,
    latent: [usize; 3],
    pass: Pass,
    held: Vec<(Encoded, usize, f32, Option<usize>)>,
}

impl Window {
    fn plain(latent: [usize; 3]) -> Self {
        let steps = Steps::Timesteps(vec![1.0, 0.9, 0.5]);
        Self {
            class: PipelineClass::Condition,
            latent,
            pass: Pass::plain(steps, 1.5),
            held: Vec::new(),
        }
    }

    fn denoise(&self, model: &Model<CpuBackend>) -> Denoised {
        self.run(model, None, None).expect("latents")
    }

    /// From where it was stopped, if it was, to where it is.
    fn run(
        &self,
        model: &Model<CpuBackend>,
        halfway: Option<&Halfway>,
        stop_at: Option<usize>,
    ) -> longtake_ltx::Result<Denoised> {
        let (text, negative) = (prompt(model, "a red circle"), prompt(model, "blur"));
        let held = |(encoded, frame, strength, reference_stride)| Held {
            encoded,
            frame,
            strength,
            noised: true,
            reference_stride,
        };
        let held: Vec<Held<'_>> = self
            .held
            .iter()
            .map(|(e, f, s, r)| held((e, *f, *s, *r)))
            .collect();
        let request = DenoiseRequest {
            negative: Some(&negative),
            held: &held,
            halfway,
            ..DenoiseRequest::new(self.class, self.latent, 24.0, 3, &self.pass, &text)
        };
        model.denoise(&request, &mut |step, _| match stop_at {
            Some(stop_at) if stop_at == step => ControlFlow::Break(Stop::Keep),
            _ => ControlFlow::Continue(()),
        })
    }

    /// Stopped after `step` steps, and gone on with from a file.
    fn denoise_in_two(&self, model: &Model<CpuBackend>, step: usize) -> Denoised {
        let stopped = self.run(model, None, Some(step)).expect_err("stopped");
        let Error::Stopped(halfway) = stopped else {
            panic!("{stopped}");
        };
        assert_eq!(halfway.step, step);
        let read = Halfway::from_safetensors(&halfway.to_safetensors()).expect("a file");
        self.run(model, Some(&read), None).expect("latents")
    }

    /// Checks that every rank of gangs of these sizes gets what one rank gets.
    fn check(&self, model: &Model<CpuBackend>, gangs: &[usize]) -> Denoised {
        let alone = self.denoise(model);
        for &ranks in gangs {
            for (rank, shared) in on_ranks(model, ranks, |_, m| self.denoise(m))
                .iter()
                .enumerate()
            {
                assert!(
                    *shared == alone,
                    "rank {rank} of {ranks} is {:e} off at {:?}",
                    error(&shared.latents, &alone.latents),
                    self.latent
                );
            }
        }
        alone
    }
}

/// Norm of the difference over that of `b`.
fn error(a: &Latents, b: &Latents) -> f64 {
    let square = |v: f32| f64::from(v).powi(2);
    let pairs = a.values.iter().zip(&b.values);
    let difference: f64 = pairs.map(|(&a, &b)| square(a - b)).sum();
    let norm: f64 = b.values.iter().map(|&v| square(v)).sum();
    (difference / norm).sqrt()
}

/// Guidance of all kinds, the blocks disturbed as `mode` says.
fn guided(mode: StgMode) -> Guidance {
    Guidance {
        steps: vec![GuidanceStep {
            timestep: 0.0,
            guidance_scale: 3.0,
            stg_scale: 1.5,
            rescaling_scale: 0.7,
            skip_blocks: vec![1],
        }],
        cfg_star_rescale: true,
        stg_mode: mode,
    }
}

#[test]
fn a_window_goes_on_where_it_was_stopped() {
    let model = Model::load(&tiny_model(), backend(1)).expect("the shipped model loads");
    let plain = Window::plain([3, 2, 2]);
    let held = vec![(latents(1, 2, 2), 0, 1.0, None)];
    let noised = Window {
        held,
        pass: Pass {
            image_cond_noise_scale: 0.15,
            ..plain.pass.clone()
        },
        ..Window::plain([3, 2, 2])
    };
    let stochastic = |class| Window {
        class,
        pass: Pass {
            stochastic: true,
            ..noised.pass.clone()
        },
        held: noised.held.clone(),
        ..Window::plain([3, 2, 2])
    };
    let windows = [
        stochastic(PipelineClass::Official),
        stochastic(PipelineClass::Comfy),
        stochastic(PipelineClass::Condition),
        plain,
        noised,
    ];
    for window in &windows {
        let whole = window.denoise(&model);
        for step in 1..=3 {
            let in_two = window.denoise_in_two(&model, step);
            assert!(
                in_two.latents == whole.latents && in_two.drawn == whole.drawn,
                "{:?} after step {step}",
                window.class
            );
        }
    }
    let window = &windows[0];
    let whole = window.denoise(&model);
    for shared in on_ranks(&model, 2, |_, m| window.denoise_in_two(m, 2)) {
        assert!(shared.latents == whole.latents, "on two ranks");
    }
    // Of another window.
    let Err(Error::Stopped(halfway)) = Window::plain([2, 2, 2]).run(&model, None, Some(1)) else {
        panic!("it was to stop");
    };
    assert!(matches!(
        window.run(&model, Some(&halfway), None),
        Err(Error::Artifact { .. })
    ));
    // TeaCache remembers more than is kept.
    let caching = Window {
        pass: Pass {
            tea_cache: Some(0.05),
            ..window.pass.clone()
        },
        ..Window::plain([3, 2, 2])
    };
    assert!(matches!(
        caching.run(&model, None, Some(2)),
        Err(Error::Cancelled { step: 2, .. })
    ));
}

#[test]
fn any_number_of_tokens_is_shared() {
    let model = model_of_heads(24);
    // 45, 7 and 8 tokens, fewer than the ranks among them.
    for latent in [[3, 3, 5], [7, 1, 1], [2, 2, 2], [1, 1, 3]] {
        Window::plain(latent).check(&model, &[1, 2, 3, 4, 8]);
    }
}

#[test]
fn guidance_of_all_kinds_is_shared() {
    let model = model_of_heads(24);
    let modes = [
        StgMode::AttentionValues,
        StgMode::AttentionSkip,
        StgMode::Residual,
        StgMode::TransformerBlock,
    ];
    for mode in modes {
        let mut window = Window::plain([2, 3, 3]);
        window.class = PipelineClass::Official;
        window.pass.guidance = guided(mode);
        window.pass.stochastic = mode == StgMode::AttentionSkip;
        window.check(&model, &[2, 4]);
    }
}

#[test]
fn tokens_of_what_is_held_are_shared() {
    let model = model_of_heads(24);
    for class in [PipelineClass::Official, PipelineClass::Condition] {
        let mut window = Window::plain([4, 2, 4]);
        window.class = class;
        window.pass.image_cond_noise_scale = 0.15;
        window.held = vec![
            (latents(1, 2, 4), 0, 1.0, None),
            // A picture and a clip inside the window, and a reference at half its size: in front.
            (latents(1, 2, 4), 11, 0.6, None),
            (latents(2, 2, 4), 8, 0.9, None),
            (latents(2, 1, 2), 0, 1.0, Some(2)),
        ];
        window.check(&model, &[2, 3, 8]);
    }
}

#[test]
fn all_ranks_reuse_the_same_steps() {
    let model = model_of_heads(24);
    let mut window = Window::plain([3, 3, 3]);
    let steps = (0..8).map(|i| 1.0 - 0.03 * i as f32).collect();
    window.pass = Pass::plain(Steps::Timesteps(steps), 3.0);
    window.pass.tea_cache = Some(0.5);
    let done = window.check(&model, &[2, 4]);
    assert!(
        done.blocks.reused > 0 && done.blocks.computed > 0,
        "{:?}",
        done.blocks
    );
}

#[test]
fn the_shipped_model_is_shared() {
    let model = Model::load(&tiny_model(), backend(2)).expect("the shipped model loads");
    let mut window = Window::plain([3, 3, 5]);
    window.held = vec![(latents(1, 3, 5), 0, 1.0, None)];
    window.check(&model, &[2, 4]);
}

#[test]
fn ranks_that_do_not_divide_the_heads_are_refused() {
    let model = model_of_heads(24);
    let gang = threads(5).remove(0);
    let error = model.on_rank(Arc::new(gang)).err().expect("24 / 5");
    assert_eq!(
        error.to_string(),
        "--ranks: the model's 24 attention heads cannot be shared by 5 ranks; \
         1, 2, 3, 4, 6, 8, 12, 24 work"
    );
}

#[test]
fn all_ranks_stop_when_one_is_to_stop() {
    let model = Model::load(&golden("model"), backend(2)).expect("the golden model loads");
    let pass = Window::plain([2, 2, 2]).pass;
    let stopped = on_ranks(&model, 2, |rank, model| {
        let (text, negative) = (prompt(model, "a"), prompt(model, ""));
        let request = DenoiseRequest {
            negative: Some(&negative),
            ..DenoiseRequest::new(PipelineClass::Condition, [2, 2, 2], 24.0, 3, &pass, &text)
        };
        model.denoise(&request, &mut |step, _| match (step, rank) {
            (2, 1) => ControlFlow::Break(Stop::Drop),
            _ => ControlFlow::Continue(()),
        })
    });
    for stopped in stopped {
        assert!(matches!(
            stopped,
            Err(Error::Cancelled { step: 2, steps: 3 })
        ));
    }
}

#[test]
fn a_rank_that_is_gone_ends_the_others() {
    let model = model_of_heads(24);
    let mut gang = threads(3);
    drop(gang.remove(1));
    let ends: Vec<Arc<dyn Collective<CpuBackend>>> = gang
        .into_iter()
        .map(|end| Arc::new(end) as Arc<dyn Collective<CpuBackend>>)
        .collect();
    std::thread::scope(|scope| {
        for end in ends {
            let model = model.on_rank(end).expect("24 / 3");
            scope.spawn(move || {
                let text = prompt(&model, "a");
                let pass = Pass::plain(Steps::Timesteps(vec![1.0]), 1.0);
                let class = PipelineClass::Condition;
                let request = DenoiseRequest::new(class, [2, 2, 2], 24.0, 3, &pass, &text);
                let done = model.denoise(&request, &mut |_, _| ControlFlow::Continue(()));
                let error = done.expect_err("a rank is missing");
                let Error::Backend { source, .. } = &error else {
                    panic!("{error}");
                };
                assert!(source.to_string().contains("rank"), "{source}");
            });
        }
    });
}

const DECODE: DecodeRequest = DecodeRequest {
    class: PipelineClass::Condition,
    seed: 3,
    drawn: Drawn::NOTHING,
    timestep: 0.05,
    noise_scale: 0.025,
    tone_map: 0.3,
};

#[test]
fn rows_of_pictures_are_shared() {
    let model = model_of_heads(24);
    // 5 rows for up to 8 ranks, some of which have none, and rows that divide evenly.
    for (frames, rows) in [(3, 5), (2, 4), (1, 1)] {
        let latents = latents(frames, rows, 2).mode;
        let job = |model: &Model<CpuBackend>| {
            let video = model.decode(&latents, &DECODE).expect("pictures");
            let tail = model.decode_tail(&latents, &DECODE, 1).expect("a tail");
            (video, tail)
        };
        let (video, tail) = job(&model);
        assert_eq!(video.height, 32 * rows);
        for ranks in [2, 3, 4, 8] {
            let mut shared = on_ranks(&model, ranks, |_, model| job(model));
            assert!(
                shared[0] == (video.clone(), tail.clone()),
                "{rows} rows, {ranks} ranks"
            );
            let others = shared.split_off(1);
            assert!(
                others
                    .iter()
                    .all(|(video, tail)| video.rgb.is_empty() && tail.rgb.is_empty())
            );
        }
        let pictures = Pictures::from(&video);
        let alone = model.encode(&pictures).expect("latents");
        for ranks in [2, 3, 8] {
            let shared = on_ranks(&model, ranks, |_, model| {
                model.encode(&pictures).expect("latents")
            });
            assert!(
                shared.iter().all(|s| *s == alone),
                "{rows} rows, {ranks} ranks"
            );
        }
    }
}

#[test]
fn rows_of_latents_are_scaled_up_by_all_ranks() {
    let model = model_of_heads(24);
    let (_dir, frame_by_frame) = flat_upscaler();
    for path in [golden("upscaler.safetensors"), frame_by_frame] {
        let upscaler = LatentUpsampler::load(&path, model.backend(), Scrutiny::Values);
        let upscaler = upscaler.expect("upscaler");
        for rows in [1, 3, 4] {
            let latents = latents(3, rows, 3).mode;
            let job = |model: &Model<CpuBackend>| {
                model.upsample(&upscaler, &latents, 0.2).expect("upsampled")
            };
            let alone = job(&model);
            for ranks in [2, 3, 8] {
                let shared = on_ranks(&model, ranks, |_, model| job(model));
                assert!(
                    shared.iter().all(|s| *s == alone),
                    "{rows} rows, {ranks} ranks"
                );
            }
        }
    }
}

#[test]
fn one_rank_encodes_the_prompt_for_all() {
    let model = Model::load(&golden("model"), backend(2)).expect("the golden model loads");
    let alone = prompt(&model, "a red circle");
    for shared in on_ranks(&model, 2, |_, model| prompt(model, "a red circle")) {
        assert_eq!(shared, alone);
    }
}

#[test]
fn ranks_follow_the_one_that_leads() {
    let model = model_of_heads(24);
    let upscaler = LatentUpsampler::load(
        &golden("upscaler.safetensors"),
        model.backend(),
        Scrutiny::Values,
    );
    let upscaler = upscaler.expect("upscaler");
    let job = |model: &Model<CpuBackend>| {
        let mut window = Window::plain([2, 2, 2]);
        window.held = vec![(latents(1, 2, 2), 0, 1.0, None)];
        let small = window.denoise(model).latents;
        let large = model.upsample(&upscaler, &small, 0.0).expect("upsampled");
        // Refused by all ranks alike, and nobody minds.
        window.latent = [0, 2, 2];
        let text = prompt(model, "a");
        let refused = DenoiseRequest::new(window.class, [0, 2, 2], 24.0, 3, &window.pass, &text);
        let refused = model.denoise(&refused, &mut |_, _| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(Error::Request { .. })));
        let video = model.decode(&large, &DECODE).expect("pictures");
        let again = model.encode(&Pictures::from(&video)).expect("latents");
        (small, large, video, again)
    };
    let mut ends = threads(3).into_iter();
    let leader = model
        .leading(Arc::new(ends.next().expect("three")))
        .expect("24 / 3");
    std::thread::scope(|scope| {
        for end in ends {
            let (model, upscaler) = (&model, &upscaler);
            scope.spawn(move || {
                let ended = model.follow(Arc::new(end), Some(upscaler));
                let Err(Error::Backend { source, .. }) = ended else {
                    panic!("{ended:?}");
                };
                assert_eq!(source.to_string(), "rank 0 of 3 has left the gang");
            });
        }
        assert!(job(&leader) == job(&model));
        drop(leader);
    });
}
