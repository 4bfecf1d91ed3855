//! The true checkpoints: every tensor of theirs is found under its name, and one that lies about
//! itself is refused.

mod common;

use common::manifest::{manifest, official_folder, write_sparse};
use longtake_ltx::ModelFiles;
use longtake_ltx::names::{Part, Style};

#[test]
fn official_names_become_those_of_diffusers() {
    for name in ["ltxv-13b-0.9.8.txt", "ltxv-2b-0.9.8.txt"] {
        let (_, rows) = manifest(name);
        let names: Vec<&str> = rows.iter().map(|row| row.official.as_str()).collect();
        for part in [Part::Transformer, Part::Vae] {
            let style = Style::detect(part, names.iter().copied()).expect("the part is there");
            let prefix = if part == Part::Vae { "vae." } else { "model." };
            for row in rows.iter().filter(|row| row.official.starts_with(prefix)) {
                assert_eq!(
                    style.canonical(&row.official),
                    row.diffusers,
                    "{}",
                    row.official
                );
            }
        }
    }
}

#[test]
fn the_text_encoder_of_an_official_checkpoint_can_be_anywhere() {
    let dir = tempfile::tempdir().expect("folder");
    official_folder(dir.path(), "ltxv-2b-0.9.8");
    let elsewhere = tempfile::tempdir().expect("folder");
    for file in ["t5xxl_bf16.safetensors", "spiece.model"] {
        std::fs::rename(dir.path().join(file), elsewhere.path().join(file)).expect("move");
    }
    let checkpoint = dir.path().join("ltxv-2b-0.9.8.safetensors");
    let error = longtake_ltx::check_model(&checkpoint)
        .expect_err("no text encoder")
        .to_string();
    assert!(
        error.contains("--text-encoder") && error.contains("T5-XXL"),
        "{error}"
    );
    for path in [
        elsewhere.path().to_owned(),
        elsewhere.path().join("t5xxl_bf16.safetensors"),
    ] {
        let files = ModelFiles {
            text_encoder: Some(path),
            ..ModelFiles::from(&checkpoint)
        };
        longtake_ltx::check_model(files).expect("complete");
    }
    std::fs::remove_file(elsewhere.path().join("spiece.model")).expect("remove");
    let files = ModelFiles {
        text_encoder: Some(elsewhere.path().to_owned()),
        ..ModelFiles::from(&checkpoint)
    };
    let error = longtake_ltx::check_model(files)
        .expect_err("no tokenizer")
        .to_string();
    assert!(error.contains("put spiece.model beside it"), "{error}");
}

#[test]
fn metadata_that_lies_about_its_tensors_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    official_folder(dir.path(), "ltxv-2b-0.9.8");
    let path = dir.path().join("ltxv-2b-0.9.8.safetensors");
    let (config, rows) = manifest("ltxv-2b-0.9.8.txt");
    let config = config.expect("config");
    for (from, to, words) in [
        (
            "\"num_layers\":28",
            "\"num_layers\":29",
            "transformer_blocks.28",
        ),
        (
            "\"num_layers\":28",
            "\"num_layers\":27",
            "have no place in the model",
        ),
        (
            "\"num_layers\":28",
            "\"num_layers\":1000000000",
            "at most 1024",
        ),
        (
            "[\"res_x\",{\"num_layers\":4}]",
            "[\"res_x\",{\"num_layers\":1000000000}]",
            "at most 1024",
        ),
        (
            "\"attention_head_dim\":64",
            "\"attention_head_dim\":128",
            "cross_attention_dim",
        ),
        (
            "\"caption_channels\":4096",
            "\"caption_channels\":2048",
            "d_model",
        ),
        (
            "[\"res_x\",{\"num_layers\":4}]",
            "[\"res_x\",{\"num_layers\":5}]",
            "resnets.4",
        ),
        (
            "\"spatial_padding_mode\":\"zeros\"",
            "\"spatial_padding_mode\":\"reflect\"",
            "spatial_padding_mode",
        ),
        (
            "\"qk_norm\":\"rms_norm\"",
            "\"qk_norm\":\"layer_norm\"",
            "qk_norm",
        ),
        (
            "{\"transformer\"",
            "[{\"transformer\"",
            "not a valid configuration",
        ),
    ] {
        assert!(config.contains(from), "{from}");
        write_sparse(&path, Some(&config.replacen(from, to, 1)), &rows);
        let error = longtake_ltx::check_model(&path)
            .expect_err(words)
            .to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    write_sparse(&path, None, &rows);
    let error = longtake_ltx::check_model(&path)
        .expect_err("no config")
        .to_string();
    assert!(error.contains("no metadata `config`"), "{error}");
}
