//! What docs/operations.md tells an operator to do, done.

use longtake_tests::local::{Farm, PROMPT, State, product, wait_for};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A film of several windows by the model that comes with the program.
const LONG: &[&str] = &[
    "--size=64x64",
    "--frames=129",
    "--segment-frames=33",
    "--overlap-frames=9",
    "--isa=scalar",
];

fn shell(folder: &Path, script: &str) {
    let status = Command::new("sh")
        .args(["-ec", script])
        .current_dir(folder)
        .status();
    assert!(status.expect("sh runs").success(), "{script}");
}

#[test]
fn a_farm_that_was_restored_goes_on_with_its_jobs() {
    restored(Farm::start(false));
}

#[test]
fn a_farm_on_etcd_that_was_restored_goes_on_with_its_jobs() {
    restored(Farm::start_on(false, true));
}

/// As the page says. The worker stays.
fn back_up(farm: &mut Farm) {
    let folder = farm.path("");
    shell(&folder, "mkdir backup");
    if let State::Etcd(etcd) = &farm.state {
        etcd.save(&folder.join("backup/state"));
        return shell(&folder, "cp -a artifacts backup/");
    }
    farm.coordinator.signal("TERM");
    wait_for("the coordinator's end", || {
        (!farm.coordinator.is_running()).then_some(())
    });
    shell(&folder, "cp -a state artifacts backup/");
    farm.restart();
}

/// The same the other way round, with coordinator and workers stopped.
fn restore(farm: &mut Farm) {
    let folder = farm.path("");
    match &mut farm.state {
        State::Folder => shell(&folder, "rm -r state && cp -a backup/state ."),
        State::Etcd(etcd) => etcd.restore(&folder.join("backup/state")),
    }
    shell(&folder, "rm -r artifacts && cp -a backup/artifacts .");
    farm.restart();
}

fn restored(mut farm: Farm) {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let home = home.to_str().expect("UTF-8").to_owned();
    let shipped = format!("{home}/configs/models/ltxv-tiny");
    let output = farm.path("alone.mp4");
    let mut alone = product(&farm.path(""));
    alone
        .env("LONGTAKE_HOME", &home)
        .args(["render", PROMPT, "--workers=1"]);
    let out = alone
        .args(LONG)
        .arg("-o")
        .arg(&output)
        .output()
        .expect("runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let alone = fs::read(output).expect("the film");

    farm.ask(&["models", "add", &shipped]);
    let config = format!("{home}/configs/ltxv-tiny.yaml");
    let submit = [&["submit", PROMPT, "--config", &config], LONG].concat();
    let with_isa = ["--isa", "scalar"];
    let mut worker = farm.worker("first", "cache", &with_isa);
    let job = farm.ask(&submit)["job"].as_str().expect("a job").to_owned();
    wait_for("a window", || {
        (farm.ask(&["status", &job])["segments_done"].as_u64() >= Some(1)).then_some(())
    });
    let before = farm.ask(&["status", &job]);
    assert_eq!(
        before["state"], "running",
        "too late to restore it: {before}"
    );

    back_up(&mut farm);
    // It goes on, and then everything is lost.
    std::thread::sleep(std::time::Duration::from_millis(500));
    farm.coordinator.kill();
    worker.kill();
    restore(&mut farm);
    let _worker = farm.worker("second", "cache", &with_isa);
    let film = farm.path("film.mp4");
    let path = film.to_str().expect("UTF-8");
    let again = farm.ask(&[&submit[..], &["--wait", "-o", path]].concat());
    assert_eq!(again["job"], job.as_str(), "the job of before goes on");
    assert!(
        fs::read(&film).expect("the film") == alone,
        "the restored farm's film differs"
    );
    assert_eq!(farm.ask(&["models", "verify"])["models"][0]["ok"], true);
}

#[test]
fn new_processes_take_over_from_old_ones() {
    let mut farm = Farm::start(false);
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    farm.ask(&[
        "models",
        "add",
        &format!("{}/configs/models/ltxv-tiny", home.display()),
    ]);
    let config = format!("{}/configs/ltxv-tiny.yaml", home.display());
    let submit = [&["submit", PROMPT, "--config", &config], LONG].concat();
    let job = farm.ask(&submit)["job"].as_str().expect("a job").to_owned();
    let with_isa = ["--isa", "scalar"];
    let worker = farm.worker("old", "cache", &with_isa);
    wait_for("the job to run", || {
        (farm.ask(&["status", &job])["state"] == "running").then_some(())
    });
    farm.ask(&["workers", "drain", "old"]);
    let refused = farm.refusal(&["workers", "drain", "no-such"]);
    assert!(refused.contains("no-such"), "{refused}");
    wait_for("the worker to be drained", || {
        let workers = farm.ask(&["workers", "list"]);
        (workers["workers"][0]["state"] == "drained").then_some(())
    });
    worker.signal("TERM");
    farm.coordinator.signal("TERM");
    wait_for("the coordinator's end", || {
        (!farm.coordinator.is_running()).then_some(())
    });
    farm.restart();
    let _worker = farm.worker("new", "cache", &with_isa);
    assert_eq!(farm.ask(&["watch", &job])["state"], "done");
}
