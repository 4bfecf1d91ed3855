//! Artifacts that are damaged or gone: what is needed of them is made again, with the same bytes.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use support::{Guard, SMALL_FILM, Service, json, longtake, render_small, run, stderr};

/// All artifacts below `folder`, by name.
fn artifacts(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(artifacts(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Changes one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("an artifact");
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
        fs::write(path, bytes).expect("damaged");
    }
}

#[test]
fn a_render_makes_again_what_was_damaged_or_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["--state", "state", "--save-latents", "l.safetensors"];
    let again = |name: &str| {
        let end = ["-o", name, "--json"];
        let out = run(folder.path(), SMALL_FILM.iter().chain(&flags).chain(&end));
        json(&out);
        let film = fs::read(folder.path().join(name)).expect("the film");
        (film, stderr(&out))
    };
    let (film, _) = again("a.mp4");
    let store = folder.path().join("state/artifacts");
    let all = artifacts(&store);
    assert!(all.len() > 20, "{all:?}");

    all.iter().for_each(|path| flip(path));
    let (damaged, log) = again("b.mp4");
    assert!(damaged == film, "damaged artifacts changed the film");
    assert!(log.contains("an artifact is damaged"), "{log}");
    assert!(store.join("damaged").is_dir(), "what was damaged is kept");

    for (index, path) in all.iter().enumerate() {
        match index % 3 {
            0 => fs::remove_file(path).expect("removed"),
            1 => flip(path),
            _ => fs::write(path, b"").expect("cut"),
        }
    }
    let (mixed, _) = again("c.mp4");
    assert!(mixed == film, "lost artifacts changed the film");

    fs::remove_dir_all(&store).expect("removed");
    let (removed, log) = again("d.mp4");
    assert!(removed == film, "a lost store changed the film");
    assert!(log.contains("an artifact is missing"), "{log}");
    // Nothing is left to be made.
    let (_, log) = again("e.mp4");
    assert!(!log.contains("artifact"), "{log}");
}

#[test]
fn a_farm_makes_again_what_a_user_wants_to_fetch() {
    let folder = tempfile::tempdir().expect("a folder");
    let (alone, _) = render_small(folder.path(), "alone.mp4", &[]);
    let farm = Service::coordinator(folder.path(), &[]);
    let worker = || {
        let mut worker = longtake(folder.path());
        worker.args(["worker", "--coordinator", &farm.url]);
        worker.stderr(std::process::Stdio::null());
        Guard(worker.spawn().expect("a worker"))
    };
    let ask = |args: &[&str]| {
        let at = ["--coordinator", &farm.url, "--json"];
        run(folder.path(), args.iter().chain(&at))
    };
    let first = worker();
    let submit = [&["submit", "--wait"], &SMALL_FILM[1..]].concat();
    let job = json(&ask(&submit))["job"]
        .as_str()
        .expect("a job")
        .to_owned();
    drop(first);
    fs::remove_dir_all(folder.path().join("artifacts")).expect("removed");
    let download = ["download", &job, "-o", "a.mp4"];
    let out = ask(&download);
    assert_eq!(out.status.code(), Some(1));
    let expected = format!("wait for it with 'longtake watch {job}'");
    assert!(stderr(&out).contains(&expected), "{}", stderr(&out));
    assert!(!folder.path().join("a.mp4").exists());
    assert_eq!(json(&ask(&["status", &job]))["state"], "running");
    let _second = worker();
    json(&ask(&["watch", &job]));
    json(&ask(&download));
    let film = fs::read(folder.path().join("a.mp4")).expect("the film");
    assert!(film == alone, "what was made again differs");
}
