//! Files that are to be given to others: whole ones pass, and what is wrong with others is said.

mod common;
#[path = "common/official.rs"]
mod official;

use common::golden;
use longtake_ltx::{check_text_encoder, check_whole};
use official::{config, official_tensors, write};
use safetensors::tensor::Dtype;
use std::path::{Path, PathBuf};

/// A copy of `file` in `folder` whose first value, whatever its type, is no number.
fn spoilt(folder: &Path, file: &Path) -> PathBuf {
    let mut bytes = std::fs::read(file).expect("a file");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let first = 8 + header as usize;
    bytes[first..first + 4].fill(0xff);
    let path = folder.join(file.file_name().expect("a name"));
    std::fs::write(&path, bytes).expect("written");
    path
}

#[test]
fn every_value_of_whatever_it_is_is_looked_at() {
    let whole = tempfile::tempdir().expect("a folder");
    let tensors = official_tensors(&golden("model"));
    let checkpoint = whole.path().join("ltxv.safetensors");
    // No text encoder is beside it, and none has to be.
    write(&checkpoint, &tensors, Some(&config()));
    let text_encoder = golden("model/text_encoder/model.safetensors");
    let files = [
        checkpoint,
        text_encoder.clone(),
        golden("upscaler.safetensors"),
        golden("lora_diffusers.safetensors"),
    ];
    let bad = tempfile::tempdir().expect("a folder");
    let refused = |error: longtake_ltx::Error, file: &Path| {
        let (error, name) = (error.to_string(), file.file_name().expect("a name"));
        let name = name.to_str().expect("UTF-8");
        assert!(
            error.contains("not finite") && error.contains(name),
            "{error}"
        );
    };
    for file in files {
        check_whole(&file).expect("it is whole");
        let file = spoilt(bad.path(), &file);
        refused(check_whole(&file).expect_err("it is spoilt"), &file);
    }
    check_whole(&golden("model")).expect("a folder");
    check_text_encoder(&golden("model")).expect("with its tokenizer");
    let file = spoilt(bad.path(), &text_encoder);
    refused(check_text_encoder(&file).expect_err("it is spoilt"), &file);
}

#[test]
fn what_is_not_whole_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ltxv.safetensors");
    let mut tensors = official_tensors(&golden("model"));
    let at = |tensors: &official::Tensors, part: &str| {
        let mut names = tensors.iter().map(|(name, ..)| name);
        names.position(|name| name.contains(part)).expect(part)
    };
    let refused = |tensors: &official::Tensors, parts: &[&str]| {
        write(&path, tensors, Some(&config()));
        let error = check_whole(&path).expect_err("it is not whole").to_string();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    };
    let bias = at(&tensors, "patchify_proj.bias");
    let taken = tensors.remove(bias);
    refused(&tensors, &["proj_in.bias", "missing"]);
    tensors.push(taken);
    let bias = tensors.len() - 1;
    tensors[bias].2.push(1);
    refused(&tensors, &["patchify_proj.bias", "shape"]);
    tensors[bias].2.pop();
    let decoder = at(&tensors, "vae.decoder.conv_in.conv.bias");
    tensors.remove(decoder);
    refused(&tensors, &["missing"]);
    let other = [(
        "other".to_owned(),
        Dtype::F32,
        vec![1],
        1f32.to_le_bytes().to_vec(),
    )];
    refused(&other.to_vec(), &["holds no weights that longtake knows"]);
}
