//! The same model as a Diffusers folder and as an official file: equal to the bit; and in 8 bits.

mod common;
#[path = "common/official.rs"]
mod official;

use common::{backend, golden, model_copy};
use longtake_cpu::CpuBackend;
use longtake_ltx::config::PipelineClass;
use longtake_ltx::{
    DecodeRequest, DenoiseRequest, Drawn, Latents, Model, ModelFiles, Pass, Pictures, Video,
    check_files, check_model, convert, inspect,
};
use official::{Tensors, config, official_tensors, write};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::path::Path;

fn files(model: &Path) -> ModelFiles {
    ModelFiles {
        text_encoder: Some(golden("model")),
        ..ModelFiles::from(model)
    }
}

/// What the parts of a model compute.
fn outputs(files: ModelFiles) -> (Vec<f32>, Video, Latents) {
    let model: Model<CpuBackend> = Model::load(files, backend(2)).expect("model");
    let prompt = model
        .encode_prompt("a red circle", 8, PipelineClass::Condition)
        .expect("prompt");
    let values = (0..128 * 2 * 2 * 2)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0)
        .collect();
    let latents = Latents {
        channels: 128,
        frames: 2,
        height: 2,
        width: 2,
        values,
    };
    let request = DecodeRequest {
        class: PipelineClass::Condition,
        seed: 1,
        drawn: Drawn::NOTHING,
        timestep: 0.05,
        noise_scale: 0.0,
        tone_map: 0.0,
    };
    let video = model.decode(&latents, &request).expect("decoded");
    let encoded = model.encode(&Pictures::from(&video)).expect("encoded").mode;
    (prompt.states, video, encoded)
}

#[test]
fn an_official_file_is_the_same_model_as_its_folder() {
    let dir = tempfile::tempdir().expect("folder");
    let tensors = official_tensors(&golden("model"));
    let single = write(
        &dir.path().join("model.safetensors"),
        &tensors,
        Some(&config()),
    );
    check_model(files(&single)).expect("complete");
    let expected = outputs(ModelFiles::from(&golden("model")));
    assert_eq!(outputs(files(&single)), expected);

    // In two files with an index, and with what ComfyUI's converter adds.
    let shards = tempfile::tempdir().expect("folder");
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut second = second.to_vec();
    let marks = ["scaled_fp8", "transformer_blocks.0.attn1.to_q.scale_input"];
    for mark in marks {
        let name = format!("model.diffusion_model.{mark}");
        second.push((name, Dtype::F32, vec![1], 1.0f32.to_le_bytes().to_vec()));
    }
    write(&shards.path().join("a.safetensors"), first, Some(&config()));
    write(&shards.path().join("b.safetensors"), &second, None);
    let map = |tensors: &Tensors, file: &str| -> Vec<(String, Value)> {
        tensors
            .iter()
            .map(|(name, ..)| (name.clone(), Value::from(file)))
            .collect()
    };
    let map = map(&first.to_vec(), "a.safetensors")
        .into_iter()
        .chain(map(&second, "b.safetensors"));
    let index = json!({ "weight_map": map.collect::<serde_json::Map<_, _>>() });
    let path = shards.path().join("model.safetensors.index.json");
    std::fs::write(&path, index.to_string()).expect("write");
    for place in [path.as_path(), shards.path()] {
        assert_eq!(outputs(files(place)), expected, "{}", place.display());
    }
}

#[test]
fn scales_of_any_spelling_and_type_count() {
    let dir = tempfile::tempdir().expect("folder");
    let expected = outputs(ModelFiles::from(&golden("model")));
    let mut tensors = official_tensors(&golden("model"));
    for (name, _, shape, _) in &mut tensors {
        if let Some(layer) = name.strip_suffix("scale_weight") {
            *name = format!("{layer}weight_scale");
            // Some write one column of scales, some a lone figure.
            match shape.as_slice() {
                [1] => shape.clear(),
                _ => shape.push(1),
            }
        }
    }
    let path = write(&dir.path().join("m.safetensors"), &tensors, Some(&config()));
    assert_eq!(outputs(files(&path)), expected);
    for bad in [f32::NAN, 0.0] {
        let mut tensors = official_tensors(&golden("model"));
        let scale = tensors
            .iter_mut()
            .find(|t| t.0.ends_with("scale_weight"))
            .expect("scale");
        scale.3[..4].copy_from_slice(&bad.to_le_bytes());
        let (path, name) = (
            write(&dir.path().join("m.safetensors"), &tensors, Some(&config())),
            &tensors,
        );
        let error = check_model(files(&path))
            .expect_err("a bad scale")
            .to_string();
        assert!(
            error.contains("scale_weight") && error.contains("value 0"),
            "{error} {}",
            name.len()
        );
    }
}

/// Latents after one step from noise.
fn denoised(files: ModelFiles) -> Vec<f32> {
    let pass = Pass::plain(longtake_ltx::Steps::Timesteps(vec![1.0]), 1.0);
    sampled(files, PipelineClass::Condition, &pass).expect("latents")
}

/// Latents after `pass` from noise, as `class` does it.
fn sampled(files: ModelFiles, class: PipelineClass, pass: &Pass) -> longtake_ltx::Result<Vec<f32>> {
    let model: Model<CpuBackend> = Model::load(files, backend(1)).expect("model");
    let prompt = model
        .encode_prompt("a red circle", 8, class)
        .expect("prompt");
    let mut go_on = |_: usize, _: usize| std::ops::ControlFlow::Continue(());
    let request = DenoiseRequest::new(class, [2, 2, 2], 24.0, 1, pass, &prompt);
    let denoised = model.denoise(&request, &mut go_on)?;
    Ok(denoised.latents.values)
}

#[test]
fn wide_weights_are_kept_in_8_bits_when_asked_for() {
    let folder = ModelFiles::from(&golden("model"));
    let wide = denoised(folder.clone());
    let narrow = denoised(ModelFiles {
        quantises: true,
        ..folder
    });
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    let apart = norm(&mut wide.iter().zip(&narrow).map(|(a, b)| a - b));
    let apart = apart / norm(&mut wide.iter().copied());
    assert!(apart > 1e-4 && apart < 0.1, "{apart}");
}

#[test]
fn a_converted_model_is_the_same_model() {
    let dir = tempfile::tempdir().expect("folder");
    let single = write(
        &dir.path().join("model.safetensors"),
        &official_tensors(&golden("model")),
        Some(&config()),
    );
    let expected = outputs(ModelFiles::from(&golden("model")));
    let mut written = Vec::new();
    let plain = dir.path().join("plain");
    convert(&files(&single), &plain, |path| {
        written.push(path.to_owned())
    })
    .expect("converted");
    assert_eq!(written.len(), 3);
    assert_eq!(outputs(ModelFiles::from(&plain)), expected);
    let error = convert(&files(&single), &plain, |_| ())
        .expect_err("there already")
        .to_string();
    assert!(error.contains("is there already"), "{error}");

    // In 8 bits: what is written is what is computed with when it is made while loading.
    let narrow = dir.path().join("narrow");
    let quantised = ModelFiles {
        quantises: true,
        ..files(&single)
    };
    convert(&quantised, &narrow, |_| ()).expect("converted");
    let kinds = inspect(&narrow).expect("inspected");
    assert_eq!(
        (kinds.layout, kinds.missing.as_slice()),
        (Some("diffusers"), [].as_slice())
    );
    assert_eq!(denoised(ModelFiles::from(&narrow)), denoised(quantised));
}

#[test]
fn a_converted_model_keeps_its_schedule() {
    let dir = tempfile::tempdir().expect("folder");
    let mut described = config();
    described["scheduler"] = json!({
        "sampler": "Uniform", "shifting": "SD3", "target_shift_terminal": 0.1, "base_resolution": null,
    });
    described["transformer"]["causal_temporal_positioning"] = json!(false);
    let path = dir.path().join("model.safetensors");
    let tensors = official_tensors(&golden("model"));
    let single = write(&path, &tensors, Some(&described));
    let folder = dir.path().join("folder");
    convert(&files(&single), &folder, |_| ()).expect("converted");
    let pass = Pass::plain(longtake_ltx::Steps::Count(3), 1.0);
    let of = |model: &Path, pass: &Pass| sampled(files(model), PipelineClass::Official, pass);
    let expected = of(&single, &pass).expect("latents");
    assert_eq!(of(&folder, &pass).expect("latents"), expected);
    let other = write(&path, &tensors, Some(&config()));
    assert_ne!(
        of(&other, &pass).expect("latents"),
        expected,
        "the schedule matters"
    );

    // And what it was distilled for.
    described["allowed_inference_steps"] = json!([1.0, 0.9]);
    let single = write(&path, &tensors, Some(&described));
    let folder = dir.path().join("distilled");
    convert(&files(&single), &folder, |_| ()).expect("converted");
    for model in [&single, &folder] {
        let error = of(model, &pass).expect_err("other levels").to_string();
        assert!(
            error.contains("allowed_inference_steps [1.0, 0.9]"),
            "{error}"
        );
        let allowed = Pass::plain(longtake_ltx::Steps::Timesteps(vec![1.0, 0.9]), 1.0);
        of(model, &allowed).expect("latents");
    }

    described["scheduler"] = Value::Null;
    let error = check_model(files(&write(&path, &tensors, Some(&described))));
    let error = error.expect_err("no scheduler").to_string();
    assert!(error.contains("no `scheduler`"), "{error}");
}

#[test]
fn files_say_what_they_are() {
    let dir = tempfile::tempdir().expect("folder");
    let mut tensors = official_tensors(&golden("model"));
    let path = dir.path().join("ltxv-tiny-distilled.safetensors");
    write(&path, &tensors, Some(&config()));
    let found = inspect(&path).expect("a file");
    assert_eq!(
        (found.kind, found.layout, found.variant),
        ("model", Some("official"), Some("distilled"))
    );
    assert_eq!(
        found.family.as_deref(),
        Some("LTX-Video of 2 layers, 32 wide")
    );
    // Nothing but the text encoder is missing.
    assert_eq!(found.missing.len(), 1, "{:?}", found.missing);
    assert!(
        found.missing[0].contains("text encoder"),
        "{:?}",
        found.missing
    );
    assert!(found.memory.cuda_float8_bytes < found.memory.cuda_bytes);
    tensors.retain(|(name, ..)| !name.ends_with("attn1.to_q.bias"));
    write(&path, &tensors, Some(&config()));
    let found = inspect(&path).expect("a file");
    let biases = found
        .missing
        .iter()
        .filter(|missing| missing.contains("attn1.to_q.bias"));
    assert_eq!(biases.count(), 2, "{:?}", found.missing);
    let lora = inspect(&golden("lora_comfy.safetensors")).expect("a LoRA");
    let info = lora.lora.expect("what it says");
    assert_eq!((lora.kind, info.rank, info.style), ("lora", 3, "comfyui"));
    assert_eq!((info.blocks, info.is_ic), (2, false));
    assert_eq!(lora.family.as_deref(), Some("LTX-Video, 32 wide"));
    let folder = inspect(&golden("model")).expect("a folder");
    assert_eq!(
        (folder.layout, folder.missing.len()),
        (Some("diffusers"), 0)
    );
    assert!(inspect(&dir.path().join("none.safetensors")).is_err());
}

#[test]
fn parts_say_what_they_are() {
    let dir = model_copy();
    let of = |path: &str| inspect(&dir.path().join(path)).expect("a part");
    for (path, kind, family) in [
        (
            "transformer",
            "transformer",
            "LTX-Video of 2 layers, 32 wide",
        ),
        ("vae", "vae", "LTX-Video's VAE"),
        (
            "vae/diffusion_pytorch_model.safetensors",
            "vae",
            "LTX-Video's VAE",
        ),
        ("text_encoder", "text encoder", "T5 of 2 layers, 24 wide"),
        (
            "text_encoder/model.safetensors",
            "text encoder",
            "T5 of 2 layers, 24 wide",
        ),
    ] {
        let found = of(path);
        let described = (found.kind, found.family.as_deref());
        assert_eq!(described, (kind, Some(family)), "{path}");
        assert_eq!(found.missing, Vec::<String>::new(), "{path}");
        assert!(found.memory.cpu_mapped_bytes > 0, "{path}");
    }
    let upscaler = inspect(&golden("upscaler.safetensors")).expect("an upscaler");
    let described = (
        upscaler.kind,
        upscaler.family.as_deref(),
        upscaler.missing.len(),
    );
    assert_eq!(
        described,
        ("upscaler", Some("LTX-Video spatial latent upscaler"), 0)
    );

    // Two things are gone: both are named, and what is there is still described.
    let shard = "diffusion_pytorch_model-00002-of-00002.safetensors";
    std::fs::remove_file(dir.path().join("transformer").join(shard)).expect("removed");
    std::fs::remove_file(dir.path().join("tokenizer/spiece.model")).expect("removed");
    let missing = of(".").missing;
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(
        missing[0].contains(shard) && missing[1].contains("spiece.model"),
        "{missing:?}"
    );
    assert!(of("transformer").missing[0].contains(shard));
    let empty = tempfile::tempdir().expect("folder");
    let error = inspect(empty.path()).expect_err("nothing").to_string();
    assert!(error.contains("nothing of a model is in it"), "{error}");
}

#[test]
fn files_that_are_counted_need_no_index() {
    let expected = denoised(ModelFiles::from(&golden("model")));
    let dir = model_copy();
    let folder = dir.path().join("transformer");
    let index = "diffusion_pytorch_model.safetensors.index.json";
    std::fs::remove_file(folder.join(index)).expect("removed");
    assert_eq!(denoised(ModelFiles::from(dir.path())), expected);
    let first = "diffusion_pytorch_model-00001-of-00002.safetensors";
    std::fs::remove_file(folder.join(first)).expect("removed");
    let error = check_model(dir.path()).expect_err("one of two").to_string();
    assert!(
        error.contains(first) && error.contains("one is not there"),
        "{error}"
    );

    // An official checkpoint in two files, alone in its folder.
    let shards = tempfile::tempdir().expect("folder");
    let tensors = official_tensors(&golden("model"));
    let (one, two) = tensors.split_at(tensors.len() / 2);
    let place = |i| {
        shards
            .path()
            .join(format!("ltxv-0000{i}-of-00002.safetensors"))
    };
    write(&place(1), one, Some(&config()));
    write(&place(2), two, None);
    assert_eq!(denoised(files(shards.path())), expected);
    std::fs::remove_file(place(2)).expect("removed");
    let found = inspect(shards.path()).expect("half a checkpoint");
    assert_eq!(
        (found.kind, found.missing.len()),
        ("model", 1),
        "{:?}",
        found.missing
    );
    let error = check_files(shards.path()).expect_err("half").to_string();
    assert_eq!(found.missing[0], error);
    assert!(
        found.missing[0].contains("ltxv-00002-of-00002"),
        "{:?}",
        found.missing
    );
}
