//! LoRAs: what diffusers computes with them, in every spelling, beside the matrices or fused, and
//! one sentence about each that cannot be used.

mod common;

use common::{backend, golden};
use longtake_cpu::CpuBackend;
use longtake_ltx::config::PipelineClass;
use longtake_ltx::embeddings::{Positions, rope};
use longtake_ltx::transformer::TokenTimesteps;
use longtake_ltx::{
    DenoiseRequest, Error, LoraFile, Model, ModelFiles, Pass, Prompt, Steps, check_model, lora_info,
};
use longtake_tensor::{Backend, Loader, Shape};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let values = view.data().as_chunks::<4>().0.iter();
        let values = values.map(|b| f32::from_le_bytes(*b)).collect();
        (name, view.shape().to_vec(), values)
    });
    tensors.collect()
}

fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) -> PathBuf {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("tensor");
        (name.as_str(), view)
    });
    let metadata: HashMap<String, String> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    std::fs::write(
        path,
        safetensors::serialize(views, Some(metadata)).expect("file"),
    )
    .expect("write");
    path.to_owned()
}

fn with_loras(loras: &[(PathBuf, f32)], fuses_loras: bool) -> ModelFiles {
    let loras = loras.iter().map(|(path, strength)| LoraFile {
        path: path.clone(),
        strength: *strength,
    });
    ModelFiles {
        loras: loras.collect(),
        fuses_loras,
        ..ModelFiles::from(&golden("model"))
    }
}

/// Velocities for the inputs of the golden file.
fn velocity(files: ModelFiles) -> Vec<f32> {
    let model: Model<CpuBackend> = Model::load(files, backend(2)).expect("model");
    let (b, transformer) = (model.backend(), model.transformer().expect("transformer"));
    let inputs = read(&golden("transformer.safetensors"));
    let input = |name: &str| {
        let found = inputs.iter().find(|(found, ..)| found == name).expect(name);
        (found.1.clone(), found.2.clone())
    };
    let (states_shape, states) = input("states");
    let prompt = Prompt {
        tokens: states_shape[0],
        channels: states_shape[1],
        states,
        mask: input("mask").1,
        cut_from: None,
    };
    let text = transformer.text_context(b, &prompt).expect("text");
    let (shape, x) = input("x");
    let x = b.upload(Shape::new(&shape), &x).expect("x");
    let mut distinct: Vec<f32> = Vec::new();
    let index = input("timestep").1.into_iter().map(|t| {
        let known = distinct.iter().position(|d| *d == t);
        known.unwrap_or_else(|| {
            distinct.push(t);
            distinct.len() - 1
        }) as u32
    });
    let index = b.upload_index(&index.collect::<Vec<_>>()).expect("index");
    let tokens = TokenTimesteps { distinct, index };
    let window = Positions {
        in_front: Vec::new(),
        causal: true,
        frames: 3,
        height: 2,
        width: 3,
        fps: 24.0,
        class: PipelineClass::Condition,
        time_ratio: 8,
        space_ratio: 32,
    };
    let rotation = rope(b, &window, transformer.config().inner_dim()).expect("rope");
    let v = transformer
        .forward(b, &x, &text, &tokens, &rotation)
        .expect("velocity");
    b.download(&v).expect("values")
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0.0f32, f32::max) / largest
}

fn both() -> [(PathBuf, f32); 2] {
    [
        (golden("lora_diffusers.safetensors"), 0.7),
        (golden("lora_comfy.safetensors"), -0.4),
    ]
}

#[test]
fn several_loras_compute_what_diffusers_computes() {
    let expected = read(&golden("lora.safetensors")).remove(0).2;
    let beside = velocity(with_loras(&both(), false));
    assert!(
        difference(&beside, &expected) < 1e-4,
        "{}",
        difference(&beside, &expected)
    );
    let without = velocity(with_loras(&[], false));
    assert!(difference(&without, &expected) > 0.1, "the LoRAs matter");
}

#[test]
fn a_strength_that_makes_no_numbers_makes_no_film() {
    let lora = (golden("lora_diffusers.safetensors"), 1e38);
    let model: Model<CpuBackend> =
        Model::load(with_loras(&[lora], false), backend(2)).expect("model");
    let class = model.config().pipeline;
    let prompt = model.encode_prompt("a sea", 8, class).expect("prompt");
    let pass = Pass::plain(Steps::Count(2), 1.0);
    let request = DenoiseRequest::new(class, [2, 1, 1], 24.0, 1, &pass, &prompt);
    let error = model
        .denoise(&request, &mut |_, _| ControlFlow::Continue(()))
        .expect_err("no latents");
    assert!(matches!(error, Error::NotFinite), "{error}");
}

#[test]
fn fused_loras_change_only_what_they_touch() {
    let (fused, beside) = (
        velocity(with_loras(&both(), true)),
        velocity(with_loras(&both(), false)),
    );
    // Sums in another order, whatever the file's precision: it has 16-bit and 8-bit matrices.
    let apart = difference(&fused, &beside);
    assert!(apart < 1e-4 && apart > 0.0, "{apart}");
    let narrow = |fuses| {
        let files = with_loras(&both(), fuses);
        velocity(ModelFiles {
            quantises: true,
            ..files
        })
    };
    let apart = difference(&narrow(true), &narrow(false));
    assert!(apart < 1e-4, "quantised while loading: {apart}");
}

#[test]
fn kohyas_spelling_is_the_same_lora() {
    let dir = tempfile::tempdir().expect("folder");
    let mut tensors = read(&golden("lora_diffusers.safetensors"));
    let mut alphas = Tensors::new();
    for (name, ..) in &mut tensors {
        let layer = name
            .strip_prefix("transformer.")
            .expect("prefix")
            .to_owned();
        let (layer, ending) = match layer.strip_suffix(".lora_A.weight") {
            Some(layer) => (layer, "lora_down"),
            None => (
                layer.strip_suffix(".lora_B.weight").expect("ending"),
                "lora_up",
            ),
        };
        let layer = format!("lora_unet_{}", layer.replace('.', "_"));
        *name = format!("{layer}.{ending}.weight");
        alphas.push((format!("{layer}.alpha"), Vec::new(), vec![6.0]));
    }
    alphas.sort_by(|a, b| a.0.cmp(&b.0));
    alphas.dedup();
    tensors.extend(alphas);
    let kohya = write(&dir.path().join("kohya.safetensors"), &tensors, &[]);
    let of = |path: PathBuf| velocity(with_loras(&[(path, 0.7)], false));
    assert_eq!(of(kohya), of(golden("lora_diffusers.safetensors")));
}

#[test]
fn loras_that_cannot_be_used_are_answered_in_one_sentence() {
    type Change = fn(&mut Tensors);
    let cases: &[(Change, &str)] = &[
        (
            |t| {
                t.iter_mut()
                    .for_each(|t| t.0 = t.0.replace("blocks.1", "blocks.40"))
            },
            "it is for another model: it changes `transformer.transformer_blocks.40.",
        ),
        (
            |t| {
                let wide = t.iter_mut().find(|t| t.1 == [4, 32]).expect("down");
                wide.1 = vec![4, 64];
                wide.2.extend(wide.2.clone());
            },
            "it is for another model: its layer",
        ),
        (
            |t| {
                let down = t.iter_mut().find(|t| t.1 == [4, 32]).expect("down");
                down.1 = vec![3, 32];
                down.2.truncate(96);
            },
            "contradicts itself: rank 3",
        ),
        (|t| drop(t.remove(0)), "has only one of its two matrices"),
        (|t| t[0].2[5] = f32::NAN, "value 5 is not finite"),
        (
            |t| t[0].0 = "transformer.proj_in.dora_scale".to_owned(),
            "is no part of a LoRA that is understood",
        ),
    ];
    let dir = tempfile::tempdir().expect("folder");
    for (change, words) in cases {
        let mut tensors = read(&golden("lora_diffusers.safetensors"));
        change(&mut tensors);
        let path = write(&dir.path().join("bad.safetensors"), &tensors, &[]);
        let error = check_model(with_loras(&[(path, 1.0)], false))
            .expect_err(words)
            .to_string();
        assert!(
            error.contains(words) && error.contains("bad.safetensors"),
            "{words}: {error}"
        );
    }
    let good = read(&golden("lora_diffusers.safetensors"));
    for (key, value, words) in [
        ("lora_adapter_metadata", "{\"use_dora\":true}", "use_dora"),
        ("lora_adapter_metadata", "{", "not a valid configuration"),
        (
            "reference_downscale_factor",
            "half",
            "reference_downscale_factor: half",
        ),
    ] {
        let path = write(&dir.path().join("bad.safetensors"), &good, &[(key, value)]);
        let error = check_model(with_loras(&[(path, 1.0)], false))
            .expect_err(words)
            .to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let missing = dir.path().join("none.safetensors");
    let error = check_model(with_loras(&[(missing, 1.0)], false))
        .expect_err("missing")
        .to_string();
    assert!(error.contains("none.safetensors"), "{error}");
}

#[test]
fn an_ic_lora_says_how_small_its_reference_is() {
    let dir = tempfile::tempdir().expect("folder");
    let tensors = read(&golden("lora_comfy.safetensors"));
    let metadata = [("reference_downscale_factor", "2")];
    let info = lora_info(&write(
        &dir.path().join("ic.safetensors"),
        &tensors,
        &metadata,
    ))
    .expect("info");
    assert_eq!((info.layers, info.rank), (6, 3));
    assert_eq!(info.reference_downscale_factor, Some(2.0));
}
