//! What is wrong is answered with one sentence that names it and the way out; nothing half-done is
//! left under the final name.

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;
use support::{longtake, root, run, stderr};

/// The sentence of a run that failed as it should.
fn refusal(out: &Output, exit_code: i32, expected: &str) -> String {
    let text = stderr(out);
    assert_eq!(out.status.code(), Some(exit_code), "{expected}: {text}");
    assert!(text.contains("error: "), "{text}");
    assert!(
        text.contains(expected),
        "{text:?} does not say {expected:?}"
    );
    assert!(!text.contains("panicked"), "{text}");
    if exit_code == 1 {
        let sentences = text
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert_eq!(sentences, 1, "{text}");
    }
    text
}

/// Everything in `folder`, so that a test can say that nothing was left there.
fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder");
    entries
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

#[test]
fn flags_out_of_range_are_named_with_the_way_out() {
    // flags, exit code, part of the sentence
    let table: &[(&[&str], i32, &str)] = &[
        (&["--size", "0x64"], 1, "width 0 is out of range"),
        (&["--size", "64x-32"], 1, "height -32 is out of range"),
        (&["--size", "64"], 2, "write it like 256x160"),
        (&["--size", "65x64"], 1, "65x64"),
        (&["--frames", "0"], 1, "0 frames are out of range"),
        (&["--frames", "-3"], 1, "-3 frames are out of range"),
        (
            &["--frames", "9", "--seconds", "1"],
            2,
            "cannot be used with",
        ),
        (&["--seconds", "0"], 1, "0 seconds are not a length"),
        (&["--seconds", "nan"], 1, "NaN seconds"),
        (&["--fps", "-1"], 1, "-1 frames a second"),
        (&["--segment-frames", "120"], 1, "use 113 or 121"),
        (&["--overlap-frames", "18"], 1, "use 17 or 25"),
        (&["--overlap-frames", "113"], 1, "do not fit twice"),
        (&["--steps", "0"], 1, "0 steps are out of range"),
        (&["--seed", "-1"], 2, "use a whole number from 0"),
        (&["--seconds", "1e30"], 1, "use at most 41666 seconds"),
        (&["-o", "fr/%s.png"], 1, "exactly one %d"),
        (&["-o", "fr/%06d-%d.png"], 1, "exactly one %d"),
        (&["--model", "/"], 1, "model_index.json"),
        (
            &["--config", "ltxv-tiny", "--model", "/"],
            1,
            "/text_encoder/config.json",
        ),
        (&["--guidance-scale", "0"], 1, "guidance scale 0"),
        (&["--text-tokens", "0"], 1, "0 text tokens"),
        (&["--workers", "0"], 2, "--workers"),
        (&["--isa", "mips"], 1, "use avx512, avx2 or scalar"),
        (
            &["--isa", "mips", "--coordinator", "http://127.0.0.1:1"],
            1,
            "no worker can ever render on 'mips'",
        ),
        (&["--device", "cuda:200"], 1, "--device cpu needs no GPU"),
        (&["--device", "gpu"], 2, "no such device"),
        (&["--image", "a.png"], 1, "a.png does not exist"),
        (&["--start-video", "a.mp4"], 1, "a.mp4 does not exist"),
        (&["--start-video", "a.mp4:0"], 2, "nothing to sample"),
        (&["--reference-video", "a.mp4"], 2, "--lora"),
        (&["--prompt-at", "x", "rain"], 1, "no time in seconds"),
        (&["--preview", "p.mp4"], 1, "rendered in one"),
        (&["--lora", "a"], 1, "no model 'a'"),
        (&["--config", "ltxv-tny"], 1, "did you mean 'ltxv-tiny'?"),
        (&["--model", "ltxv-tin"], 1, "did you mean 'ltxv-tiny'?"),
        (
            &["--model", "/proc/version"],
            1,
            "is no model: give a checkpoint",
        ),
        (&["--continuity", "lockstep"], 2, "invalid value 'lockstep'"),
        (&["--config", "no-such"], 1, "no-such"),
        (&["--model", "/no/such/model"], 1, "/no/such/model"),
        (&["-o", "film.avi"], 1, "give FILE.mp4"),
        (&["-o", "missing/film.mp4"], 1, "missing does not exist"),
        (
            &["-o", "/proc/film.mp4"],
            1,
            "cannot write to the output folder /proc",
        ),
        (&["--coordinator", "nonsense"], 1, "http://host:7341"),
        (
            &["--coordinator", "http://127.0.0.1:1"],
            1,
            "no coordinator answers",
        ),
        (
            &["--coordinator", "http://127.0.0.1:1", "--workers", "2"],
            1,
            "leave out --workers",
        ),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    for (flags, exit_code, expected) in table {
        let out = run(
            folder.path(),
            ["render", "a red circle"].iter().chain(*flags),
        );
        refusal(&out, *exit_code, expected);
        assert_eq!(listing(folder.path()), Vec::<String>::new(), "{flags:?}");
    }
}

#[test]
fn commands_that_need_a_farm_say_which_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    for command in [
        &["status", "j-0000000000"][..],
        &["watch", "j-1"],
        &["list"],
        &["cancel", "j-1"],
    ] {
        let out = run(folder.path(), command);
        refusal(
            &out,
            1,
            "give --coordinator URL or set LONGTAKE_COORDINATOR",
        );
        let away = command
            .iter()
            .chain(&["--coordinator", "http://127.0.0.1:1"]);
        refusal(
            &run(folder.path(), away),
            1,
            "no coordinator answers at http://127.0.0.1:1",
        );
    }
    let local = [
        ["--workers", "2"],
        ["--device", "cuda:0"],
        ["--state", "here"],
    ];
    for flags in local {
        let submit = ["submit", "x", "--coordinator", "http://127.0.0.1:1"];
        let out = run(folder.path(), submit.iter().chain(&flags));
        let sentence = refusal(&out, 1, &format!("leave out {}", flags[0]));
        assert!(sentence.contains("a farm renders this"), "{sentence}");
    }
    let out = longtake(folder.path())
        .args(["worker", "--coordinator", "localhost"])
        .output();
    refusal(&out.expect("a worker"), 1, "is not a coordinator's address");
}

#[test]
fn a_worker_tries_its_scratch_folder_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = ["worker", "--coordinator", "http://127.0.0.1:1", "--scratch"];
    let out = run(folder.path(), worker.iter().chain(&["/proc/none"]));
    refusal(&out, 1, "choose another with --scratch");
}

#[test]
fn a_port_in_use_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    refusal(
        &run(folder.path(), ["coordinator", "--listen", &address]),
        1,
        "is in use",
    );
    for (address, part) in [
        ("nonsense", "127.0.0.1:7341"),
        ("localhost:x", "invalid port"),
    ] {
        let out = run(folder.path(), ["coordinator", "--listen", address]);
        refusal(&out, 2, part);
    }
    let exposed = run(folder.path(), ["coordinator", "--listen", "0.0.0.0:0"]);
    refusal(&exposed, 1, "--insecure");
}

#[test]
fn a_state_that_cannot_be_opened_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "").expect("a file");
    for (state, part) in [
        ("nonsense", "give a folder as file:PATH"),
        ("file:file/state", "cannot make the state folder"),
        ("etcd://", "write etcd://HOST:PORT"),
    ] {
        let start = ["coordinator", "--listen=127.0.0.1:0", "--state", state];
        refusal(&run(folder.path(), start), 1, part);
        assert_eq!(listing(folder.path()), ["file"], "{state}");
    }
}

#[test]
fn a_misspelt_key_of_a_pipeline_file_is_named_with_the_right_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("my.yaml");
    fs::write(
        &file,
        "checkpoint_path: models/ltxv-tiny\nguidance_scales: 2\n",
    )
    .expect("a file");
    let out = run(folder.path(), ["render", "x", "--config", "my.yaml"]);
    refusal(&out, 1, "did you mean 'guidance_scale'?");
    fs::write(&file, "checkpoint_path: models/ltxv-tiny\nwidth: -5\n").expect("a file");
    let out = run(folder.path(), ["render", "x", "--config", "my.yaml"]);
    refusal(&out, 1, "use a whole number from 1");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the model").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// The transformer's weights of the shipped model, in a copy of it under `folder`.
fn copied_model(folder: &Path) -> std::path::PathBuf {
    copy(
        &root().join("configs/models/ltxv-tiny"),
        &folder.join("model"),
    );
    let weights = fs::read_dir(folder.join("model/transformer")).expect("a folder");
    weights
        .map(|entry| entry.expect("an entry").path())
        .find(|path| {
            path.extension()
                .is_some_and(|ending| ending == "safetensors")
        })
        .expect("the transformer's weights")
}

/// Rewrites the header of a safetensors file.
fn edit_header(file: &Path, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let bytes = fs::read(file).expect("the weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let mut header: serde_json::Map<_, _> =
        serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    edit(&mut header);
    let header = serde_json::to_vec(&header).expect("JSON");
    let out = [
        &(header.len() as u64).to_le_bytes(),
        &header[..],
        &bytes[8 + length..],
    ]
    .concat();
    fs::write(file, out).expect("the weights");
}

#[test]
fn a_broken_checkpoint_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let weights = copied_model(folder.path());
    let file_name = weights
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let render = || {
        run(
            folder.path(),
            [
                "render", "x", "--model", "./model", "--frames", "9", "--size", "64x64",
            ],
        )
    };
    let whole = fs::read(&weights).expect("the weights");

    // Far too long, all holes: it would take minutes to hash, but no time to see what is wrong.
    let started = std::time::Instant::now();
    let file = fs::File::options().write(true).open(&weights);
    file.and_then(|file| file.set_len(1 << 38)).expect("a hole");
    refusal(&render(), 1, &file_name);
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());

    fs::write(&weights, &whole[..whole.len() - 1000]).expect("truncated");
    refusal(&render(), 1, &file_name);
    fs::write(&weights, &whole[..100]).expect("truncated");
    refusal(&render(), 1, &file_name);

    fs::write(&weights, &whole).expect("restored");
    edit_header(&weights, |header| {
        let shape = &mut header["proj_in.weight"]["shape"];
        let turned: Vec<_> = shape
            .as_array()
            .expect("a shape")
            .iter()
            .rev()
            .cloned()
            .collect();
        *shape = turned.into();
    });
    refusal(&render(), 1, "proj_in.weight");

    let mut spoilt = whole.clone();
    let length = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&whole[8..8 + length]).expect("JSON");
    let bias = header["proj_in.bias"]["data_offsets"][0].as_u64();
    let at = 8 + length + bias.expect("an offset") as usize;
    spoilt[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, &spoilt).expect("spoilt");
    let sentence = refusal(&render(), 1, "proj_in.bias");
    assert!(sentence.contains("not finite"), "{sentence}");
    assert!(!sentence.contains("worker"), "{sentence}");

    fs::write(&weights, &whole).expect("restored");
    edit_header(&weights, |header| {
        // As long as what is there.
        let entry = &mut header["proj_in.bias"];
        assert_eq!(entry["dtype"], "F32");
        entry["dtype"] = "I32".into();
    });
    let sentence = refusal(&render(), 1, "proj_in.bias");
    assert!(sentence.contains("I32"), "{sentence}");

    fs::write(&weights, &whole).expect("restored");
    edit_header(&weights, |header| {
        let entry = header.remove("proj_in.bias").expect("a bias");
        header.insert("proj_in.bais".to_owned(), entry);
    });
    refusal(&render(), 1, "proj_in.bias");

    fs::remove_file(&weights).expect("removed");
    refusal(&render(), 1, "transformer");
    let left: Vec<_> = listing(folder.path())
        .into_iter()
        .filter(|name| name != "model")
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

/// A model of two blocks whose scheduler knows the levels that it was distilled for, one that lacks the
/// scale of a matrix, a LoRA that asks for a video, and pipeline files, in `folder`.
fn what_cannot_be_sampled(folder: &Path) {
    let golden = root().join("tests/golden");
    copy(&golden.join("model"), &folder.join("few-distilled"));
    let scheduler = folder.join("few-distilled/scheduler/scheduler_config.json");
    let text = fs::read_to_string(&scheduler).expect("a configuration");
    let allowed = text.replacen('{', "{ \"allowed_inference_steps\": [1.0, 0.9],", 1);
    fs::write(&scheduler, allowed).expect("a configuration");

    copy(&golden.join("model"), &folder.join("scales"));
    let shard = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors";
    edit_header(&folder.join("scales").join(shard), |header| {
        let layer = "transformer_blocks.0.attn1.to_v";
        let scale = header.remove(&format!("{layer}.scale_weight"));
        header.insert(format!("{layer}.input_scale"), scale.expect("a scale"));
    });

    let lora = folder.join("ic.safetensors");
    fs::copy(golden.join("lora_comfy.safetensors"), &lora).expect("copied");
    edit_header(&lora, |header| {
        let metadata = serde_json::json!({ "reference_downscale_factor": "2" });
        header.insert("__metadata__".to_owned(), metadata);
    });
    let pass = "checkpoint_path: few-distilled\ntimesteps: [1.0, 0.9]\n";
    for (name, more) in [
        ("blocks", "stg_scale: 1\nskip_block_list: [0, 9]\n"),
        ("levels", "timesteps: [1.0, 0.5]\n"),
        ("cached", "use_teacache: true\n"),
    ] {
        let own = more
            .contains("timesteps")
            .then_some("checkpoint_path: few-distilled\n");
        let text = format!("{}{more}", own.unwrap_or(pass));
        fs::write(folder.join(format!("{name}.yaml")), text).expect("a file");
    }
}

#[test]
fn what_a_model_cannot_be_sampled_by_is_refused_before_there_is_a_job() {
    let folder = tempfile::tempdir().expect("a folder");
    what_cannot_be_sampled(folder.path());
    let golden = root().join("tests/golden/model");
    let golden = golden.to_str().expect("UTF-8");
    let film = ["x", "--frames", "9", "--size", "64x64"];
    let run_film = |command: &[&str], flags: &[&str]| {
        let args = command.iter().chain(&film).chain(flags);
        run(folder.path(), args)
    };
    let flags = ["--model", golden, "--steps", "1", "--guidance-scale", "1"];
    let made = run_film(&["render", "-o", "start.mp4"], &flags);
    assert!(made.status.success(), "{}", stderr(&made));
    let before = listing(folder.path());

    let table: &[(&[&str], &str)] = &[
        (
            &["--config", "blocks.yaml"],
            "skip_block_list names block 9, but the model has 2",
        ),
        (
            &["--config", "levels.yaml", "--reference", "official"],
            "was not made for noise level 0.5000: give timesteps among its allowed_inference_steps",
        ),
        (
            &[
                "--model",
                golden,
                "--steps",
                "2",
                "--start-video",
                "start.mp4:0.1",
            ],
            "a strength of 0.1 leaves none of the 2 noise levels",
        ),
        (
            &["--model", golden, "--lora", "ic.safetensors"],
            "give one with --reference-video",
        ),
    ];
    for (flags, expected) in table {
        let farm = ["submit", "--coordinator", "http://127.0.0.1:1"];
        for command in [&["render"][..], &["plan"], &farm] {
            refusal(&run_film(command, flags), 1, expected);
        }
    }
    let clip: &[(&str, &str)] = &[
        (
            "start.mp4@4",
            "it has 9 pictures, and of a clip at least 9 are used",
        ),
        (
            "start.mp4@middle",
            "use start.mp4 at 'middle', which is neither the number of a frame nor 'end'",
        ),
    ];
    for (place, expected) in clip {
        let flags = ["--model", golden, "--video", place];
        refusal(&run_film(&["plan"], &flags), 1, expected);
    }
    let sentence = refusal(
        &run_film(&["render"], &["--model", "./scales"]),
        1,
        "no scale_weight",
    );
    assert!(sentence.contains("attn1.to_v.weight"), "{sentence}");
    assert_eq!(listing(folder.path()), before);

    let out = run_film(
        &["render", "--json", "-o", "cached.mp4"],
        &["--config", "cached.yaml"],
    );
    let notices = support::json(&out)["notices"].to_string();
    assert!(
        notices.contains("use_teacache is switched off"),
        "{notices}"
    );
}

#[test]
fn videos_that_cannot_be_compared_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("a.mp4"), b"no video").expect("a file");
    refusal(
        &run(folder.path(), ["compare", "a.mp4", "a.mp4"]),
        1,
        "a.mp4",
    );
    refusal(
        &run(folder.path(), ["compare", "missing.mp4", "a.mp4"]),
        1,
        "missing.mp4",
    );
}
