//! Pictures that a film is held to: read where the user is, stored on the farm by hash, used by
//! workers that have never seen the files.

use longtake_common::media::open_video;
use longtake_tests::detect::look;
use longtake_tests::local::{Farm, product};
use std::fs;
use std::path::Path;

/// Shots of 20 and 30 frames; the second one begins where no latent of a film without cuts would.
const FILM: &str = "
seed: 3
shots:
  - prompt: a big red ball rolls slowly right over a navy background
    frames: 20
    keyframes:
      - {image: still.mp4, frame: 0}
  - prompt: a big red ball rolls slowly right over a navy background
    frames: 30
    transition: cut
    keyframes:
      - {video: still.mp4}
";

/// What the still shows, and no prompt of the film does.
const STILL: &str = "a big green square rolls slowly up over a brown background";

/// Colour of the shape in a frame.
fn colour(film: &Path, frame: usize) -> &'static str {
    let mut frames = open_video(film).expect("the film");
    let frame = frames.nth(frame).expect("so long").expect("a frame");
    look(&frame).expect("a shape").colour
}

#[test]
fn a_film_is_held_to_pictures_that_workers_do_not_have() {
    let farm = Farm::start(true);
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let config = home.join("configs/ltxv-tiny.yaml");
    let config = config.to_str().expect("UTF-8");
    let films = farm.path("films");
    fs::create_dir(&films).expect("a folder");
    let (still, film) = (films.join("still.mp4"), films.join("film.yaml"));
    fs::write(&film, FILM).expect("written");
    let alone = |args: &[&str], output: &Path| {
        let mut command = product(&farm.path(""));
        command.env("LONGTAKE_HOME", &home).args([
            "render",
            "--isa=scalar",
            "--config",
            config,
            "--workers=1",
        ]);
        let out = command.args(args).arg("-o").arg(output).output();
        let out = out.expect("runs");
        let story = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{story}");
        fs::read(output).expect("the film")
    };
    alone(&[STILL, "--frames=17"], &still);
    let film = film.to_str().expect("UTF-8");
    let expected = alone(&["-f", film], &farm.path("alone.mp4"));

    // The worker reads what it needs from the bucket; its folder is empty.
    farm.ask(&[
        "models",
        "add",
        &format!("{}/configs/models/ltxv-tiny", home.display()),
    ]);
    let _worker = farm.worker("w", "cache", &["--isa", "scalar"]);
    let there = farm.path("farm.mp4");
    let output = there.to_str().expect("UTF-8");
    farm.ask(&[
        "submit", "-f", film, "--config", config, "--wait", "-o", output,
    ]);
    assert!(
        fs::read(&there).expect("the film") == expected,
        "the farm's film differs"
    );
    // The second shot begins as the clip does, whatever its prompt says.
    assert_eq!(colour(&there, 20), "green");

    let prompt = "a big red ball rolls slowly right over a navy background";
    let submit = |name: &str, flags: &[&str]| {
        let output = farm.path(name);
        let output = output.to_str().expect("UTF-8");
        let film = ["--frames=17", "--config", config, "--wait", "-o", output];
        farm.ask(&[&["submit", prompt], flags, &film].concat());
        Path::new(output).to_owned()
    };
    let clip = still.to_str().expect("UTF-8");
    assert_eq!(colour(&submit("held.mp4", &["--video", clip]), 0), "green");
    assert_eq!(colour(&submit("free.mp4", &[]), 0), "red");
}
