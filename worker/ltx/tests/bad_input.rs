//! Damaged and unsuitable models and requests: an error that names the thing, never a panic.

mod common;

use common::{backend, golden, model_copy};
use longtake_ltx::{
    DecodeRequest, DenoiseRequest, Drawn, Encoded, Error, Held, Latents, Model, Pass, Pictures,
    Steps, Stop, Video, check_model, model_hash,
};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;

/// Whether a check of the headers alone must notice.
#[derive(Clone, Copy, PartialEq)]
enum Noticed {
    ByHeaders,
    ByValues,
}

/// The model in `dir` must be refused with a message that has all of `words`.
fn refused(dir: &Path, noticed: Noticed, words: &[&str]) {
    let error = match Model::load(dir, backend(1)) {
        Ok(_) => panic!("a damaged model was loaded; {words:?} were expected"),
        Err(error) => error.to_string(),
    };
    for word in words {
        assert!(error.contains(word), "'{word}' is missing in: {error}");
    }
    match (check_model(dir), noticed) {
        (Err(by_headers), Noticed::ByHeaders) => assert_eq!(by_headers.to_string(), error),
        (Ok(()), Noticed::ByValues) => {}
        (checked, _) => panic!("check_model: {checked:?}"),
    }
}

/// Rewrites safetensors file `path`, tensor by tensor.
fn rewrite(
    path: &Path,
    change: impl Fn(&str, Dtype, &mut Vec<usize>, &mut Vec<u8>) -> Option<Dtype>,
) {
    let bytes = std::fs::read(path).expect("weights");
    let file = SafeTensors::deserialize(&bytes).expect("weights");
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if let Some(dtype) = change(&name, view.dtype(), &mut shape, &mut data) {
            tensors.push((name, dtype, shape, data));
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), data).expect("tensor"),
        )
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("weights")).expect("write");
}

/// Sets `key` in configuration file `path`.
fn configure(path: &Path, key: &str, value: Value) {
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(path).expect("config")).expect("config");
    config[key] = value;
    std::fs::write(path, config.to_string()).expect("write");
}

#[test]
fn a_tokenizer_that_is_cut_short_is_named_in_plain_words() {
    let dir = model_copy();
    let path = dir.path().join("tokenizer/spiece.model");
    let whole = std::fs::read(&path).expect("tokenizer");
    std::fs::write(&path, &whole[..1000]).expect("cut");
    refused(
        dir.path(),
        Noticed::ByHeaders,
        &["spiece.model", "it is cut short"],
    );
    let error = check_model(dir.path()).expect_err("cut").to_string();
    assert!(!error.contains('{'), "{error}");
}

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const TEXT: &str = "text_encoder/model.safetensors";

#[test]
fn the_golden_model_is_sound() {
    check_model(&golden("model")).expect("sound");
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = model_copy();
    let name = "decoder.up_blocks.1.resnets.0.conv2.conv.weight";
    rewrite(&dir.path().join(VAE), |tensor, dtype, _, _| {
        (tensor != name).then_some(dtype)
    });
    refused(dir.path(), Noticed::ByHeaders, &[name, VAE, "missing"]);
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let dir = model_copy();
    let name = "decoder.conv_out.conv.bias";
    rewrite(&dir.path().join(VAE), |tensor, dtype, shape, data| {
        if tensor == name {
            shape[0] -= 1;
            data.truncate(shape[0] * 4);
        }
        Some(dtype)
    });
    refused(dir.path(), Noticed::ByHeaders, &[name, VAE, "[47]", "[48]"]);
}

#[test]
fn a_tensor_of_another_type_is_named() {
    let dir = model_copy();
    let name = "encoder.final_layer_norm.weight";
    rewrite(&dir.path().join(TEXT), |tensor, dtype, _, _| {
        Some(if tensor == name { Dtype::U32 } else { dtype })
    });
    refused(dir.path(), Noticed::ByHeaders, &[name, TEXT, "U32", "BF16"]);
}

#[test]
fn bytes_without_a_scale_are_refused() {
    let dir = model_copy();
    let scale = "decoder.conv_in.conv.scale_weight";
    rewrite(&dir.path().join(VAE), |tensor, dtype, _, _| {
        (tensor != scale).then_some(dtype)
    });
    refused(
        dir.path(),
        Noticed::ByHeaders,
        &["decoder.conv_in.conv.weight", "scale_weight"],
    );
}

#[test]
fn values_that_are_not_finite_are_named() {
    for (bad, file) in [(f32::NAN, VAE), (f32::INFINITY, VAE)] {
        let dir = model_copy();
        let name = "latents_mean";
        rewrite(&dir.path().join(file), |tensor, dtype, _, data| {
            if tensor == name {
                data[20..24].copy_from_slice(&bad.to_le_bytes());
            }
            Some(dtype)
        });
        refused(
            dir.path(),
            Noticed::ByValues,
            &[name, file, "value 5", "finite"],
        );
    }
    let dir = model_copy();
    let shard = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors";
    rewrite(&dir.path().join(shard), |_, dtype, _, data| {
        if dtype == Dtype::F8_E4M3 {
            data[3] = 0x7f;
        }
        Some(dtype)
    });
    refused(dir.path(), Noticed::ByValues, &["attn", shard, "value 3"]);
}

#[test]
fn cut_files_are_named_wherever_they_are_cut() {
    let whole = std::fs::read(golden("model").join(VAE)).expect("weights");
    for length in [0, 4, 9, 1000, whole.len() / 2, whole.len() - 1] {
        let dir = model_copy();
        std::fs::write(dir.path().join(VAE), &whole[..length]).expect("write");
        refused(dir.path(), Noticed::ByHeaders, &[VAE, "fetch"]);
    }
}

#[test]
fn missing_files_are_named() {
    let files = [
        "model_index.json",
        "vae/config.json",
        VAE,
        TEXT,
        "tokenizer/spiece.model",
        "scheduler/scheduler_config.json",
    ];
    for file in files {
        let dir = model_copy();
        std::fs::remove_file(dir.path().join(file)).expect("remove");
        refused(dir.path(), Noticed::ByHeaders, &[file, "cannot read"]);
        assert!(
            model_hash(dir.path())
                .unwrap_err()
                .to_string()
                .contains(file)
        );
    }
    let shard = "diffusion_pytorch_model-00002-of-00002.safetensors";
    let dir = model_copy();
    std::fs::remove_file(dir.path().join("transformer").join(shard)).expect("remove");
    refused(
        dir.path(),
        Noticed::ByHeaders,
        &[shard, "index.json", "one is not there"],
    );
}

#[test]
fn what_is_not_computed_is_refused() {
    let cases = [
        (
            "model_index.json",
            "_class_name",
            Value::from("FluxPipeline"),
        ),
        ("transformer/config.json", "patch_size", Value::from(2)),
        (
            "transformer/config.json",
            "qk_norm",
            Value::from("layer_norm"),
        ),
        (
            "transformer/config.json",
            "cross_attention_dim",
            Value::from(8),
        ),
        (
            "transformer/config.json",
            "num_attention_heads",
            Value::from(0),
        ),
        (
            "transformer/config.json",
            "caption_channels",
            Value::from(25),
        ),
        (
            "transformer/config.json",
            "num_layers",
            Value::from(1_000_000_000),
        ),
        (
            "text_encoder/config.json",
            "num_layers",
            Value::from(1_000_000_000),
        ),
        (
            "vae/config.json",
            "layers_per_block",
            Value::from(vec![1_000_000_000; 5]),
        ),
        (
            "vae/config.json",
            "down_block_types",
            Value::from(vec!["LTXVideoDownBlock3D"; 4]),
        ),
        (
            "vae/config.json",
            "decoder_inject_noise",
            Value::from(vec![true, false, false, false]),
        ),
        ("vae/config.json", "layers_per_block", Value::from(vec![1])),
        (
            "vae/config.json",
            "upsample_factor",
            Value::from(vec![0, 0, 0]),
        ),
        (
            "vae/config.json",
            "spatial_compression_ratio",
            Value::from(16),
        ),
        (
            "text_encoder/config.json",
            "feed_forward_proj",
            Value::from("relu"),
        ),
        (
            "text_encoder/config.json",
            "relative_attention_num_buckets",
            Value::from(0),
        ),
        (
            "scheduler/scheduler_config.json",
            "use_karras_sigmas",
            Value::from(true),
        ),
        (
            "scheduler/scheduler_config.json",
            "_class_name",
            Value::from("DDIMScheduler"),
        ),
        (
            "scheduler/scheduler_config.json",
            "shift_terminal",
            Value::from(1.5),
        ),
    ];
    for (file, key, value) in cases {
        let dir = model_copy();
        configure(&dir.path().join(file), key, value);
        refused(dir.path(), Noticed::ByHeaders, &[file, key]);
    }
    let dir = model_copy();
    configure(
        &dir.path().join("vae/config.json"),
        "patch_size",
        Value::from("four"),
    );
    refused(
        dir.path(),
        Noticed::ByHeaders,
        &["vae/config.json", "not a valid configuration"],
    );
}

#[test]
fn a_damaged_tokenizer_is_refused() {
    let path = "tokenizer/spiece.model";
    let whole = std::fs::read(golden("model").join(path)).expect("tokenizer");
    for bytes in [&b"not a model"[..], &whole[..whole.len() / 3], &[]] {
        let dir = model_copy();
        std::fs::write(dir.path().join(path), bytes).expect("write");
        refused(dir.path(), Noticed::ByHeaders, &[path]);
    }
}

#[test]
fn the_hash_follows_what_is_rendered_from() {
    let dir = model_copy();
    let hash = model_hash(dir.path()).expect("hash");
    assert_eq!(hash, model_hash(&golden("model")).expect("hash"));
    std::fs::write(dir.path().join("README.md"), "a note").expect("write");
    assert_eq!(hash, model_hash(dir.path()).expect("hash"));
    let mut bytes = std::fs::read(dir.path().join(VAE)).expect("weights");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(dir.path().join(VAE), bytes).expect("write");
    assert_ne!(hash, model_hash(dir.path()).expect("hash"));
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let model = Model::load(&golden("model"), backend(1)).expect("model");
    let class = model.config().pipeline;
    let prompt = model
        .encode_prompt("", 8, class)
        .expect("an empty prompt is allowed");
    let pass = Pass::plain(Steps::Count(2), 1.0);
    let guided = Pass::plain(Steps::Count(2), 2.0);
    let empty = Pass::plain(Steps::Count(0), 1.0);
    let mut skipped = pass.clone();
    (skipped.skip_initial, skipped.skip_final) = (1, 1);
    let mut disturbed = pass.clone();
    disturbed.guidance.steps[0].skip_blocks = vec![0, 7];
    let not_disturbed = disturbed.clone();
    disturbed.guidance.steps[0].stg_scale = 1.0;
    let good = DenoiseRequest::new(class, [2, 1, 1], 24.0, 0, &pass, &prompt);
    let run = |request: &DenoiseRequest<'_>| {
        model.denoise(request, &mut |_, _| ControlFlow::Continue(()))
    };
    let latents = run(&good).expect("latents").latents;
    assert!(latents.values.iter().all(|v| v.is_finite()));
    let wide = Latents {
        width: 2,
        values: vec![0.0; 512],
        ..latents.clone()
    };
    let encoded = |mode: &Latents| Encoded {
        mode: mode.clone(),
        spread: None,
    };
    let (wide, whole, one) = (
        encoded(&wide),
        encoded(&latents),
        encoded(&latents.slice(0, 1)),
    );
    let held = |encoded, frame, strength| {
        [Held {
            encoded,
            frame,
            strength,
            noised: true,
            reference_stride: None,
        }]
    };
    let does_not_fit = held(&wide, 0, 1.0);
    let too_late = held(&one, 9, 1.0);
    let too_long = held(&whole, 8, 1.0);
    let too_strong = held(&one, 0, 1.5);
    for (request, word) in [
        (
            DenoiseRequest {
                held: &too_late,
                ..good.clone()
            },
            "1 frames from frame 9 on do not fit a window of 9 frames",
        ),
        (
            DenoiseRequest {
                held: &too_long,
                ..good.clone()
            },
            "9 frames from frame 8 on",
        ),
        (
            DenoiseRequest {
                held: &too_strong,
                ..good.clone()
            },
            "strength 1.5",
        ),
        (
            DenoiseRequest {
                start: Some(&one),
                ..good.clone()
            },
            "1 latent frames, the window 2",
        ),
        (
            DenoiseRequest {
                pass: &skipped,
                ..good.clone()
            },
            "skip fewer",
        ),
        (
            DenoiseRequest {
                pass: &disturbed,
                ..good.clone()
            },
            "skip_block_list",
        ),
        (
            DenoiseRequest {
                latent_frames: 0,
                ..good.clone()
            },
            "window",
        ),
        (
            DenoiseRequest {
                fps: f64::NAN,
                ..good.clone()
            },
            "fps",
        ),
        (
            DenoiseRequest {
                pass: &guided,
                ..good.clone()
            },
            "negative",
        ),
        (
            DenoiseRequest {
                pass: &empty,
                ..good.clone()
            },
            "step",
        ),
        (
            DenoiseRequest {
                held: &does_not_fit,
                ..good.clone()
            },
            "conditioning",
        ),
    ] {
        let error = run(&request).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
    // The official file of the 2B model names block 42 of 28, and disturbs none.
    let named = DenoiseRequest {
        pass: &not_disturbed,
        ..good.clone()
    };
    run(&named).expect("latents");
    let stopped = model.denoise(&good, &mut |_, _| ControlFlow::Break(Stop::Drop));
    assert!(matches!(
        stopped,
        Err(Error::Cancelled { step: 1, steps: 2 })
    ));

    let decode = DecodeRequest {
        class,
        seed: 0,
        drawn: Drawn::NOTHING,
        timestep: 0.05,
        noise_scale: 0.025,
        tone_map: 0.0,
    };
    for tail in [0, 8, 17] {
        assert!(
            model.decode_tail(&latents, &decode, tail).is_err(),
            "{tail}"
        );
    }
    let odd = Video {
        frames: 2,
        height: 32,
        width: 32,
        rgb: vec![0; 2 * 32 * 32 * 3],
    };
    assert!(
        model
            .encode(&Pictures::from(&odd))
            .unwrap_err()
            .to_string()
            .contains("8k+1")
    );
    let short = Video {
        frames: 1,
        height: 32,
        width: 32,
        rgb: vec![0; 5],
    };
    assert!(model.encode(&Pictures::from(&short)).is_err());
    assert!(model.encode_prompt("red", 0, class).is_err());
}
