//! Models that a farm stores, fetched by workers that do not have them.

use longtake_tests::local::{FILM, Farm, PROMPT, Store, model, product, sentence, spoil, wait_for};
use longtake_tests::product::last_json;
use longtake_tests::proxy::Proxy;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A field of the last line of a log that tells how a fetch ended.
fn fetched(log: &str, field: &str) -> u64 {
    let line = log.lines().rfind(|line| line.contains("fetched_bytes="));
    let line = line.unwrap_or_else(|| panic!("nothing was fetched: {log}"));
    let value = line.split(&format!("{field}=")).nth(1).expect("the field");
    let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

#[test]
fn workers_fetch_a_model_that_they_do_not_have() {
    for s3 in [false, true] {
        let farm = Farm::start(s3);
        let model = model(&farm.path(""), "mine", 0);
        let added = farm.add(&model);
        let (hash, bytes) = (
            added["hash"].as_str().expect("a hash"),
            added["bytes"].as_u64(),
        );
        assert_eq!(added["sent_bytes"].as_u64(), bytes);
        assert_eq!(farm.add(&model)["sent_bytes"], 0, "it is stored already");

        let _first = farm.worker("first", "shared", &[]);
        let alone = farm.alone(&model);
        // Where the command is given, nobody knows the model.
        assert!(
            farm.render("mine", &[]) == alone,
            "the fetched model renders another film"
        );
        assert_eq!(Some(fetched(&farm.log("first"), "fetched_bytes")), bytes);
        assert_eq!(farm.cached("shared"), [hash]);
        let workers = farm.ask(&["workers", "list"]);
        let held = workers["workers"][0]["models"].as_array().expect("models");
        assert!(held.contains(&hash.into()), "{workers}");
        let listed = farm.ask(&["models", "list"]);
        assert_eq!(listed["models"][0]["workers"][0], "first", "{listed}");

        // Another process of the machine finds it there; its hash is as good as its name.
        farm.ask(&["workers", "drain", "first"]);
        let _second = farm.worker("second", "shared", &[]);
        assert!(farm.render(hash, &["--seed=1"]) != alone);
        assert!(
            !farm.log("second").contains("fetching"),
            "{}",
            farm.log("second")
        );

        let removed = farm.ask(&["models", "remove", "mine"]);
        assert_eq!(removed["removed_bytes"].as_u64(), bytes);
        if !s3 {
            let left = walk(&farm.path("artifacts/models"));
            assert!(left.is_empty(), "{left:?}");
        }
        let refusal = farm.refusal(&["submit", PROMPT, "--model", "mine"]);
        assert!(refusal.contains("models list"), "{refusal}");
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn a_fetch_goes_on_where_it_was_stopped() {
    let mut farm = Farm::start(true);
    let Store::S3(s3) = &farm.store else {
        unreachable!("started so");
    };
    let endpoint = s3.environment()[0].1.clone();
    let address = endpoint.strip_prefix("http://").expect("HTTP").parse();
    let proxy = Proxy::start(address.expect("an address"));
    let model = model(&farm.path(""), "large", 64 << 20);
    let bytes = farm.add(&model)["bytes"].as_u64().expect("a size");

    let environment = || {
        let mut environment = s3.environment();
        environment[0].1 = format!("http://{}", proxy.address());
        environment
    };
    proxy.limit(8 << 20);
    let mut worker = farm.worker_by("worker", "cache", &[], environment());
    let submit = farm.submit("large", &[]);
    let job = farm.ask(&submit.iter().map(String::as_str).collect::<Vec<_>>());
    let job = job["job"].as_str().expect("a job").to_owned();
    let third = |thirds: u64| {
        wait_for("a part of the model", || {
            (proxy.back_bytes() > thirds * bytes / 3).then_some(())
        });
    };
    third(1);
    let reasons = farm.ask(&["explain", &job])["reasons"].to_string();
    assert!(reasons.contains("is fetching the model"), "{reasons}");
    worker.kill();
    assert_eq!(farm.cached("cache"), [""; 0], "half a model counts");

    let _worker = farm.worker_by("again", "cache", &[], environment());
    third(2);
    proxy.cut();
    // The coordinator goes and comes meanwhile, which is none of the fetch's business.
    farm.coordinator.signal("STOP");
    std::thread::sleep(Duration::from_secs(2));
    farm.coordinator.signal("CONT");
    proxy.mend();
    proxy.limit(1 << 40);
    let done = farm.ask(&["watch", &job]);
    assert_eq!(done["state"], "done", "{done}");
    let log = farm.log("again");
    assert!(fetched(&log, "kept_bytes") > 0, "{log}");
    assert_eq!(
        fetched(&log, "kept_bytes") + fetched(&log, "fetched_bytes"),
        bytes
    );
    // What was on its way when it was stopped comes again: four chunks each time, at most.
    let twice = 2 * 4 * (8 << 20) + (4 << 20);
    let passed = proxy.back_bytes();
    assert!(
        passed < bytes + twice,
        "{passed} bytes came for a model of {bytes}"
    );
    farm.coordinator.kill();
}

/// What was said in vain is an artifact: another coordinator, which has heard nothing, shows it.
fn failed_tries_keep_their_logs(farm: &mut Farm) {
    farm.restart();
    let job = farm.ask(&["list"])["jobs"][0]["job"].clone();
    let out = farm.run(&["logs", job.as_str().expect("a job"), "--task", "text"]);
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let failures: Vec<Value> = lines.filter(|line| line["level"] == "ERROR").collect();
    assert!(!failures.is_empty(), "{text}");
    for (failure, attempt) in failures.iter().zip(1..) {
        assert_eq!(failure["attempt"], attempt, "{text}");
        assert_eq!(
            (&failure["worker"], &failure["task"]),
            (&"worker".into(), &"text".into())
        );
        let said = failure.to_string();
        assert!(
            said.contains("vae/diffusion_pytorch_model.safetensors"),
            "{said}"
        );
    }
}

#[test]
fn damage_in_the_store_is_found_named_and_mended() {
    let mut farm = Farm::start(false);
    let model = model(&farm.path(""), "mine", 0);
    farm.add(&model);
    let weights = fs::read(model.join("vae/diffusion_pytorch_model.safetensors")).expect("read");
    let chunk = farm.chunk(&longtake_common::Hash::of(&weights).to_string());
    let mut damaged = weights.clone();
    damaged[1000] ^= 1;
    fs::write(&chunk, &damaged).expect("damaged");

    let _worker = farm.worker("worker", "cache", &[]);
    let submit = farm.submit("mine", &["--wait"]);
    let submit: Vec<_> = submit.iter().map(String::as_str).collect();
    let failure = farm.refusal(&submit);
    for part in [
        "vae/diffusion_pytorch_model.safetensors",
        "damaged",
        "models add",
    ] {
        assert!(failure.contains(part), "{failure}");
    }
    failed_tries_keep_their_logs(&mut farm);
    // Known now: nobody has to wait for it again.
    let refusal = farm.refusal(&submit);
    assert!(
        refusal.contains("cannot be rendered with") && refusal.contains("damaged"),
        "{refusal}"
    );
    let out = farm.run(&["models", "verify"]);
    let found = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        found.contains("chunk 1 of 1 of vae/diffusion_pytorch_model.safetensors"),
        "{found}"
    );
    assert!(
        sentence(&out).contains("1 of 1 models are damaged"),
        "{found}"
    );

    assert_eq!(
        farm.add(&model)["sent_bytes"],
        weights.len(),
        "only what was damaged"
    );
    let verified = farm.ask(&["models", "verify", "mine"]);
    assert_eq!(verified["models"][0]["ok"], true, "{verified}");
    farm.ask(&submit);

    // The cache is read again when its files have changed, and fetched again when they are wrong.
    let cached = farm.path("cache").join(&farm.cached("cache")[0]);
    let file = cached.join("vae/diffusion_pytorch_model.safetensors");
    drop(_worker);
    fs::write(file, damaged).expect("damaged");
    let _worker = farm.worker("again", "cache", &[]);
    assert!(farm.render("mine", &["--seed=1"]).len() > 100);
    assert!(
        farm.log("again").contains("damaged in the cache"),
        "{}",
        farm.log("again")
    );
}

#[test]
fn the_cache_keeps_what_was_used_last() {
    let farm = Farm::start(false);
    let names = ["one", "two", "three"];
    let hashes = names.map(|name| {
        let added = farm.add(&model(&farm.path(""), name, 0));
        added["hash"].as_str().expect("a hash").to_owned()
    });
    // Room for two of 15 MB each.
    let _worker = farm.worker("worker", "cache", &["--model-cache-max", "40MB"]);
    farm.render("one", &[]);
    farm.render("two", &[]);
    farm.render("one", &["--seed=1"]);
    farm.render("three", &[]);
    let mut expected = [hashes[0].clone(), hashes[2].clone()];
    expected.sort();
    assert_eq!(farm.cached("cache"), expected);
    let held = farm.ask(&["workers", "list"])["workers"][0]["models"].to_string();
    assert!(
        !held.contains(&hashes[1]) && held.contains(&hashes[0]),
        "{held}"
    );

    let _small = farm.worker("small", "little", &["--model-cache-max", "1MB"]);
    farm.ask(&["workers", "drain", "worker"]);
    let submit = farm.submit("two", &["--wait", "--seed=2"]);
    let failure = farm.refusal(&submit.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(failure.contains("--model-cache-max"), "{failure}");
}

#[test]
fn a_name_stands_for_one_model() {
    let farm = Farm::start(false);
    let first = model(&farm.path(""), "mine", 0);
    let other = model(&farm.path("home"), "mine", 8);
    farm.add(&first);
    let other_path = other.to_str().expect("UTF-8");
    let refusal = farm.refusal(&["models", "add", other_path]);
    assert!(
        refusal.contains("another model") && refusal.contains("--name"),
        "{refusal}"
    );
    farm.ask(&["models", "add", other_path, "--name", "other"]);
    let listed = farm.ask(&["models", "list"]);
    let names: Vec<_> = listed["models"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    assert_eq!(
        (&names[0]["name"], &names[1]["name"]),
        (&"mine".into(), &"other".into())
    );
    for bad in ["../x", "a/b", ""] {
        let refusal = farm.refusal(&["models", "add", other_path, "--name", bad]);
        assert!(refusal.contains("no name for a model"), "{refusal}");
    }
    // A model that comes with the program, and another one of its name.
    farm.ask(&["models", "add", other_path, "--name", "ltxv-tiny"]);
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = product(&farm.path(""));
    command.args(["submit", PROMPT, "--coordinator", &farm.url()]);
    let out = command
        .env("LONGTAKE_HOME", shipped)
        .output()
        .expect("runs");
    let refusal = sentence(&out);
    assert!(refusal.contains("stands for model"), "{refusal}");
    // One job in the way of removing, until it is cancelled.
    let submit = farm.submit("other", &[]);
    let job = farm.ask(&submit.iter().map(String::as_str).collect::<Vec<_>>());
    let job = job["job"].as_str().expect("a job");
    farm.ask(&["models", "remove", "ltxv-tiny"]);
    let refusal = farm.refusal(&["models", "remove", "other"]);
    assert!(refusal.contains(job), "{refusal}");
    farm.ask(&["cancel", job]);
    farm.ask(&["models", "remove", "other"]);
    assert_eq!(
        farm.ask(&["models", "verify"])["models"][0]["ok"],
        true,
        "of the one that is left"
    );
}

#[test]
fn a_folder_of_renders_stores_models_too() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["empty", "home"] {
        fs::create_dir(folder.path().join(name)).expect("a folder");
    }
    let model = model(folder.path(), "mine", 0);
    let run = |args: &[&str]| {
        let mut command = product(folder.path());
        command.args(args).args(["--state", "state", "--json"]);
        command.output().expect("longtake runs")
    };
    let ask =
        |args: &[&str]| last_json::<Value>(&run(args)).unwrap_or_else(|story| panic!("{story}"));
    ask(&[
        "models",
        "add",
        model.to_str().expect("UTF-8"),
        "--name",
        "kept",
    ]);
    fs::remove_dir_all(&model).expect("removed");
    let film = [&["render", PROMPT, "--workers=1", "--model", "kept"], FILM].concat();
    let report = ask(&film);
    assert_eq!(report["frames"], 9, "{report}");
    assert_eq!(ask(&["models", "list"])["models"][0]["name"], "kept");
    let unknown = [&["render", PROMPT, "--model", "lost"], FILM].concat();
    assert!(sentence(&run(&unknown)).contains("--state"));
}

/// A model one of whose weights is no number.
fn model_with_nan(folder: &Path, name: &str) -> PathBuf {
    let model = model(folder, name, 0);
    spoil(&model.join("vae/diffusion_pytorch_model.safetensors"));
    model
}

#[test]
fn a_model_with_a_weight_that_is_no_number_renders_nothing() {
    let farm = Farm::start(false);
    let broken = model_with_nan(&farm.path(""), "broken");
    let path = broken.to_str().expect("UTF-8");
    let refusal = farm.refusal(&["models", "add", path]);
    assert!(
        refusal.contains("not finite") && refusal.contains("vae/"),
        "{refusal}"
    );
    // Said before there is a job.
    let submit = farm.submit(path, &["--wait"]);
    let submit: Vec<_> = submit.iter().map(String::as_str).collect();
    let failure = farm.refusal(&submit);
    assert!(failure.contains("not finite"), "{failure}");
    let jobs = farm.ask(&["list"]);
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(0), "{jobs}");
}

#[test]
fn a_file_of_weights_is_a_model_too() {
    let farm = Farm::start(false);
    let folder = model(&farm.path(""), "mine", 0);
    let file = farm.path("part.safetensors");
    fs::copy(folder.join("text_encoder/model.safetensors"), &file).expect("copied");
    let added = farm.add(&file);
    assert_eq!(
        (&added["name"], &added["files"]),
        (&"part".into(), &1.into())
    );
    let renamed = farm.path("renamed.safetensors");
    fs::rename(&file, &renamed).expect("renamed");
    let again = farm.add(&renamed);
    assert_eq!(
        (&again["hash"], &again["sent_bytes"]),
        (&added["hash"], &0.into())
    );
    let add = ["models", "add", file.to_str().expect("UTF-8"), "--name=no"];
    fs::copy(&renamed, &file).expect("copied");
    spoil(&file);
    let refusal = farm.refusal(&add);
    assert!(
        refusal.contains("part.safetensors") && refusal.contains("not finite"),
        "{refusal}"
    );
    fs::write(&file, "no weights").expect("written");
    let refusal = farm.refusal(&add);
    assert!(refusal.contains("part.safetensors"), "{refusal}");
    let models = &farm.ask(&["models", "list"])["models"];
    assert_eq!(models.as_array().map(Vec::len), Some(2), "{models}");
}
