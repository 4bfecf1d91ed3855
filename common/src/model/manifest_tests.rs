use super::*;
use std::fs;

fn model(folder: &Path) {
    fs::create_dir_all(folder.join("vae")).expect("folder");
    fs::write(folder.join("vae/a.safetensors"), "weights").expect("file");
    fs::write(folder.join("config.json"), "{}").expect("file");
}

fn manifest(path: &Path) -> Manifest {
    Manifest::of(path, &Hashes::forgetful()).expect("a model")
}

#[test]
fn only_the_models_files_count() {
    let folder = tempfile::tempdir().expect("folder");
    model(folder.path());
    let hash = manifest(folder.path()).hash();
    fs::write(folder.path().join("README.md"), "about").expect("file");
    fs::write(folder.path().join(".hidden.json"), "{}").expect("file");
    fs::create_dir(folder.path().join("train")).expect("folder");
    fs::write(folder.path().join("train/settings.json"), "{}").expect("file");
    assert_eq!(manifest(folder.path()).hash(), hash);
    fs::write(folder.path().join("config.json"), "{ }").expect("file");
    assert_ne!(manifest(folder.path()).hash(), hash);
}

#[test]
fn moving_bytes_between_files_changes_the_hash() {
    let folder = tempfile::tempdir().expect("folder");
    let mut hashes = BTreeSet::new();
    for (a, b) in [("xy", "z"), ("x", "yz")] {
        fs::write(folder.path().join("a.safetensors"), a).expect("file");
        fs::write(folder.path().join("b.safetensors"), b).expect("file");
        hashes.insert(manifest(folder.path()).hash());
    }
    assert_eq!(hashes.len(), 2);
}

#[test]
fn weights_beside_a_diffusers_folder_are_other_models() {
    let folder = tempfile::tempdir().expect("folder");
    model(folder.path());
    fs::write(folder.path().join("model_index.json"), "{}").expect("file");
    let hash = manifest(folder.path()).hash();
    fs::write(folder.path().join("other.safetensors"), "other").expect("file");
    assert_eq!(manifest(folder.path()).hash(), hash);
}

#[test]
fn a_file_alone_is_the_same_model_under_any_name() {
    let folder = tempfile::tempdir().expect("folder");
    let (a, b) = (
        folder.path().join("a.safetensors"),
        folder.path().join("b.safetensors"),
    );
    fs::write(&a, "weights").expect("file");
    fs::copy(&a, &b).expect("copied");
    let (of_a, of_b) = (manifest(&a), manifest(&b));
    assert_eq!(of_a.hash(), of_b.hash());
    let name = of_a.files()[0].path.clone();
    assert_eq!(of_a.place(&a, &name), a);
    let fetched = folder.path().join("fetched");
    assert_eq!(of_a.entry(&fetched), fetched.join(name));
}

#[test]
fn an_index_brings_its_files() {
    let folder = tempfile::tempdir().expect("folder");
    let index = folder.path().join("big.safetensors.index.json");
    for name in [
        "big-1.safetensors",
        "big-2.safetensors",
        "other.safetensors",
    ] {
        fs::write(folder.path().join(name), name).expect("file");
    }
    let listing = |names: [&str; 2]| {
        let [a, b] = names;
        let map = format!(r#"{{"weight_map": {{"a": "{a}", "b": "{b}", "c": "{a}"}}}}"#);
        fs::write(&index, map).expect("file");
    };
    listing(["big-1.safetensors", "big-2.safetensors"]);
    let of_index = manifest(&index);
    let names: Vec<_> = of_index.files().iter().map(|f| f.path.as_str()).collect();
    assert_eq!(
        names,
        [
            "big-1.safetensors",
            "big-2.safetensors",
            "model.safetensors.index.json"
        ]
    );
    for name in &names[..2] {
        assert_eq!(of_index.place(&index, name), folder.path().join(name));
    }
    assert_eq!(of_index.place(&index, names[2]), index);
    let fetched = folder.path().join("fetched");
    assert_eq!(of_index.entry(&fetched), fetched.join(names[2]));

    for (bad, expected) in [
        ("../x.safetensors", "no path"),
        ("a/x.safetensors", "beside"),
    ] {
        listing(["big-1.safetensors", bad]);
        let error = Manifest::of(&index, &Hashes::forgetful()).expect_err("refused");
        let ModelError::List { source, .. } = &error else {
            panic!("{error}");
        };
        assert!(source.to_string().contains(expected), "{source}");
    }
    fs::write(&index, "{}").expect("file");
    assert!(Manifest::of(&index, &Hashes::forgetful()).is_err());
}

#[test]
fn what_is_no_model_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("config.json"), "{}").expect("file");
    for path in [folder.path().to_owned(), folder.path().join("config.json")] {
        let error = Manifest::of(&path, &Hashes::forgetful()).expect_err("no model");
        assert!(error.to_string().contains(".safetensors"), "{error}");
    }
}

#[test]
fn a_list_survives_being_sent() {
    let folder = tempfile::tempdir().expect("folder");
    model(folder.path());
    let manifest = manifest(folder.path());
    let again = Manifest::parse(&manifest.to_json()).expect("the same");
    assert_eq!((again.hash(), &again), (manifest.hash(), &manifest));
    assert_eq!((again.bytes(), again.chunks().len()), (9, 2));
}

#[test]
fn a_list_cannot_name_other_places() {
    let hash = Hash::of(b"x");
    let parse = |paths: &[&str], chunks: usize| {
        let files = paths.iter().map(|path| FileEntry {
            path: (*path).to_owned(),
            bytes: 1,
            hash,
            chunks: vec![hash; chunks],
        });
        let manifest = Manifest {
            version: VERSION,
            entry: None,
            files: files.collect(),
            parts: Vec::new(),
        };
        Manifest::parse(&manifest.to_json())
    };
    parse(&["a b/c.json", "d.safetensors"], 1).expect("good");
    let long = "a".repeat(PART_BYTES_MAX + 1);
    for bad in [
        "", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/..", ".", "./a", "a/.b", "a\\b", "c:a",
        "a\nb", "a\0b", &long,
    ] {
        let error = parse(&[bad], 1).expect_err(bad).to_string();
        assert!(error.contains("no path of a file"), "{error}");
        assert!(!error.contains(['\n', '\0']), "{error:?}");
    }
    for (paths, chunks, hint) in [
        (&["b", "a"][..], 1, "out of order"),
        (&["a", "a"], 1, "out of order"),
        (&["a", "a/b"], 1, "a file and a folder"),
        (&["a"], 2, "2 chunks"),
        (&[], 0, "0 files"),
    ] {
        let error = parse(paths, chunks).expect_err(hint).to_string();
        assert!(error.contains(hint), "{error}");
    }
    assert!(Manifest::parse(b"{}").is_err());
    assert!(Manifest::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1]).is_err());
}

#[test]
fn a_set_has_one_checkpoint_and_no_name_for_two_things() {
    let part = |role, name: &str, bytes: &[u8]| Part {
        role,
        name: name.to_owned(),
        hash: Hash::of(bytes),
    };
    let checkpoint = part(Role::Checkpoint, "a.safetensors", b"a");
    let set = |more: &[Part]| {
        let parts = [std::slice::from_ref(&checkpoint), more].concat();
        Manifest::of_set(parts, None, &Hashes::forgetful())
    };
    let whole = set(&[part(Role::Upscaler, "up.safetensors", b"u")]).expect("a set");
    let read = Manifest::parse(&whole.to_json()).expect("the same");
    assert_eq!((read.hash(), read.parts().len()), (whole.hash(), 2));
    for (more, hint) in [
        (part(Role::Checkpoint, "b.safetensors", b"b"), "2 parts"),
        (part(Role::Upscaler, "a.safetensors", b"b"), "rename one"),
        (part(Role::Upscaler, "../a", b"b"), "no path"),
    ] {
        let error = set(&[more]).expect_err(hint).to_string();
        assert!(error.contains(hint), "{error}");
    }
    let alone = vec![part(Role::Upscaler, "up.safetensors", b"u")];
    let error = Manifest::of_set(alone, None, &Hashes::forgetful()).expect_err("no checkpoint");
    assert!(error.to_string().contains("0 parts"), "{error}");
}
