//! Pipeline files that name several models, on farms whose workers have none of them.

#[path = "../../worker/ltx/tests/common/official.rs"]
mod official;

use longtake_common::media::open_video;
use longtake_tests::local::{Farm, PROMPT, product, sentence, spoil};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A small film of two windows in two passes.
const FILM: &[&str] = &[
    "--size=96x64",
    "--fps=24",
    "--frames=33",
    "--segment-frames=25",
    "--overlap-frames=9",
    "--seed=5",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name)
}

/// What a user with the official files has: two checkpoints of one file each, T5 beside them, an
/// upscaler and the pipeline file.
fn studio(folder: &Path) {
    fs::create_dir(folder).expect("a folder");
    let mut tensors = official::official_tensors(&golden("model"));
    let config = official::config();
    official::write(&folder.join("first.safetensors"), &tensors, Some(&config));
    let of_blocks = |(name, dtype, ..): &&mut (String, Dtype, _, Vec<u8>)| {
        *dtype == Dtype::BF16 && name.contains("transformer_blocks")
    };
    let (.., data) = tensors
        .iter_mut()
        .find(of_blocks)
        .expect("weights of 16 bits");
    for low in data.iter_mut().step_by(2) {
        *low ^= 0x40; // of the mantissa
    }
    official::write(&folder.join("second.safetensors"), &tensors, Some(&config));
    for part in ["text_encoder", "tokenizer"] {
        fs::create_dir(folder.join(part)).expect("a folder");
        for entry in fs::read_dir(golden("model").join(part)).expect("the model") {
            let entry = entry.expect("a file");
            fs::copy(entry.path(), folder.join(part).join(entry.file_name())).expect("copied");
        }
    }
    fs::copy(
        golden("upscaler.safetensors"),
        folder.join("up.safetensors"),
    )
    .expect("copied");
    let pass = |own: Value| {
        let mut pass = json!({ "guidance_scale": 1, "num_inference_steps": 2 });
        if !own.is_null() {
            pass["checkpoint_path"] = own;
        }
        pass
    };
    let pipeline = json!({
        "pipeline_type": "multi-scale",
        "checkpoint_path": "first.safetensors",
        "spatial_upscaler_model_path": "up.safetensors",
        "text_encoder_model_name_or_path": "PixArt-alpha/PixArt-XL-2-1024-MS",
        "downscale_factor": 0.6666666,
        "decode_timestep": 0.05,
        "decode_noise_scale": 0.025,
        "text_tokens": 32,
        "sampler": "uniform",
        "first_pass": pass(Value::Null),
        "second_pass": pass(json!("second.safetensors")),
    });
    // YAML reads JSON.
    fs::write(folder.join("base.yaml"), pipeline.to_string()).expect("written");
    let own = "pipeline_config: base.yaml\nseed: 9\n";
    fs::write(folder.join("film.yaml"), own).expect("written");
}

/// The film of a pipeline file by `render`, without a farm.
fn alone(farm: &Farm, config: &Path) -> Vec<u8> {
    let output = farm.path("alone.mp4");
    let mut command = product(&farm.path(""));
    command.args(["render", PROMPT, "--workers=1", "--config"]);
    let out = command
        .arg(config)
        .args(FILM)
        .arg("--save-latents")
        .arg(farm.path("alone.safetensors"))
        .arg("-o")
        .arg(&output)
        .output();
    let out = out.expect("longtake runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    fs::read(output).expect("the film")
}

/// The film that a farm makes of what `model` names.
fn on_farm(farm: &Farm, model: &[&str]) -> Vec<u8> {
    let output = farm.path("film.mp4");
    let wait = ["--wait", "-o", output.to_str().expect("UTF-8")];
    farm.ask(&[&["submit", PROMPT], model, FILM, &wait].concat());
    fs::read(output).expect("the film")
}

#[test]
fn a_pipeline_file_is_stored_with_all_that_it_names() {
    let farm = Farm::start(false);
    let folder = farm.path("studio");
    studio(&folder);
    let config = folder.join("film.yaml");
    let alone = alone(&farm, &config);
    let added = farm.add(&config);
    let parts = added["parts"].as_array().expect("parts");
    let roles: Vec<_> = parts.iter().map(|part| part["role"].as_str()).collect();
    let wanted = ["checkpoint", "text_encoder", "pass_checkpoint", "upscaler"];
    assert_eq!(roles, wanted.map(Some), "{added}");
    assert_eq!(farm.add(&config)["sent_bytes"], 0, "it is stored already");

    // Nobody has the files any more.
    fs::rename(&folder, farm.path("elsewhere")).expect("moved");
    let _worker = farm.worker("worker", "cache", &[]);
    let [latents, preview] = ["film.safetensors", "preview.mp4"].map(|name| farm.path(name));
    let [latents, preview] = [&latents, &preview].map(|path| path.to_str().expect("UTF-8"));
    let more = [
        "--model",
        "film",
        "--save-latents",
        latents,
        "--preview",
        preview,
    ];
    assert!(on_farm(&farm, &more) == alone, "another film");
    for index in 0..2 {
        let of = |name: &str| fs::read(farm.path(&format!("{name}.{index:04}.safetensors")));
        assert!(of("film").expect("saved") == of("alone").expect("saved"));
    }
    let preview = open_video(farm.path("preview.mp4")).expect("a preview");
    assert_eq!(preview.count(), 33);
    assert_eq!(farm.cached("cache").len(), 4);
    let plan = farm.ask(&[&["plan", PROMPT, "--model", "film"], FILM].concat());
    assert_eq!(plan["windows"].as_array().map(Vec::len), Some(2));
    // The pipeline file alone says which set is meant, and may say more.
    let other = farm.path("film.yaml");
    let text = fs::read_to_string(farm.path("elsewhere/base.yaml")).expect("a file");
    fs::write(&other, text).expect("written");
    let other = other.to_str().expect("UTF-8");
    assert!(
        on_farm(&farm, &["--config", other]) == alone,
        "another film"
    );

    let listed = &farm.ask(&["models", "list"])["models"][0];
    assert_eq!(
        (&listed["parts"], &listed["workers"][0]),
        (&added["parts"], &"worker".into())
    );
    let verified = &farm.ask(&["models", "verify", "film"])["models"][0];
    assert_eq!(
        (&verified["ok"], &verified["bytes"]),
        (&true.into(), &added["bytes"])
    );

    let upscaler = fs::read(golden("upscaler.safetensors")).expect("a file");
    let chunk = farm.chunk(&longtake_common::Hash::of(&upscaler).to_string());
    fs::write(&chunk, b"damaged").expect("written");
    let found = farm.run(&["models", "verify"]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("up.safetensors: chunk 1 of 1"), "{found}");
    let refusal = farm.refusal(&["submit", PROMPT, "--model", "film", "--seed=6"]);
    assert!(refusal.contains("models add"), "{refusal}");
    fs::rename(farm.path("elsewhere"), &folder).expect("moved");
    assert_eq!(farm.add(&config)["sent_bytes"], upscaler.len());

    let removed = farm.ask(&["models", "remove", "film"]);
    assert_eq!(removed["removed_bytes"], added["bytes"]);
    assert_eq!(farm.ask(&["models", "list"])["models"], json!([]));
}

#[test]
fn a_checkpoint_takes_its_text_encoder_along() {
    let farm = Farm::start(false);
    let folder = farm.path("studio");
    studio(&folder);
    let config = folder.join("film.yaml");
    let alone = alone(&farm, &config);
    let _worker = farm.worker("worker", "cache", &[]);
    // All of it is here, so all that nobody has is stored with the job.
    let given = on_farm(&farm, &["--config", config.to_str().expect("UTF-8")]);
    assert!(given == alone, "another film");
    assert_eq!(farm.cached("cache").len(), 4);

    let second = folder.join("second.safetensors");
    let second = second.to_str().expect("UTF-8");
    let added = farm.ask(&["models", "add", second, "--name=other"]);
    assert_eq!(added["parts"][1]["role"], "text_encoder", "{added}");
    assert_eq!(
        added["parts"][0]["bytes"].as_u64(),
        added["bytes"]
            .as_u64()
            .and_then(|all| { Some(all - added["parts"][1]["bytes"].as_u64()?) })
    );
    fs::remove_file(folder.join("up.safetensors")).expect("removed");
    let out = farm.run(&[
        "models",
        "add",
        config.to_str().expect("UTF-8"),
        "--name=more",
    ]);
    let refusal = sentence(&out);
    assert!(refusal.contains("up.safetensors"), "{refusal}");

    spoil(Path::new(second));
    let refusal = farm.refusal(&["models", "add", second, "--name=spoilt"]);
    assert!(
        refusal.contains("second.safetensors") && refusal.contains("not finite"),
        "{refusal}"
    );
    let models = farm.ask(&["models", "list"]).to_string();
    assert!(!models.contains("spoilt"), "{models}");
}
