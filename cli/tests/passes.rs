//! Films in two passes by real processes, against what Lightricks' code makes of the golden model
//! (`tests/golden/cases.py`): through files and flags alone.

mod support;

use longtake_common::Frame;
use longtake_common::media::{open_video, write_png_sequence_from};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use support::{json as report_of, root, run, stderr};

const LATENTS_ERROR_MAX: f64 = 1e-3;
const FRAMES_DB_MIN: f64 = 50.0;
/// Frames of a case of which one is kept.
const KEPT: usize = 4;

fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copied");
        }
    }
}

/// A tensor of a safetensors file: the range of its bytes.
fn tensor(file: &[u8], name: &str) -> (String, std::ops::Range<usize>) {
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("a header");
    let entry = &header[name];
    let at = |i: usize| 8 + length + entry["data_offsets"][i].as_u64().expect("an offset") as usize;
    let dtype = entry["dtype"].as_str().expect("a type").to_owned();
    (dtype, at(0)..at(1))
}

fn latents(path: &Path) -> Vec<f32> {
    let file = fs::read(path).expect("latents");
    let (dtype, range) = tensor(&file, "latents");
    assert_eq!(dtype, "F32");
    let values = file[range].chunks_exact(4);
    values
        .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
        .collect()
}

fn relative_error(ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let square = |v: f64| v * v;
    let pairs = ours.iter().zip(reference);
    let far: f64 = pairs
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    let norm: f64 = reference.iter().map(|&v| square(f64::from(v))).sum();
    (far / norm).sqrt()
}

fn frames_db(pattern: &Path, case: &Path) -> f64 {
    let frames = open_video(pattern)
        .expect("frames")
        .map(|f| f.expect("a frame"));
    let ours: Vec<u8> = frames
        .step_by(KEPT)
        .flat_map(|frame| frame.data().to_vec())
        .collect();
    let file = fs::read(case).expect("a case");
    let theirs = &file[tensor(&file, "frames").1];
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().zip(theirs);
    let squares: f64 = pairs.map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    -10.0 * (squares / ours.len() as f64 / 255f64.powi(2)).log10()
}

/// The first of the clips of `reference.py`, as a picture.
fn picture(folder: &Path, width: u32, height: u32) {
    let sample = |x: u32, y: u32, c: u32| {
        let wave = (x * (c + 2) + y * (5 - c) + 17 + c * 40) % 256;
        if wave < 128 { 2 * wave } else { 511 - 2 * wave }
    };
    let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let rgb = rows.flat_map(|(x, y)| [0, 1, 2].map(|c| sample(x, y, c) as u8));
    let frame = Frame::from_rgb8(width, height, rgb.collect()).expect("a picture");
    fs::create_dir(folder).expect("a folder");
    let frames = std::iter::once(Ok::<_, longtake_common::media::MediaError>(frame));
    write_png_sequence_from(&folder.join("%06d.png"), 1, frames).expect("written");
}

/// A folder with the golden model, the upscaler, and the pipeline file of a case.
struct Studio {
    folder: tempfile::TempDir,
    case: Value,
    name: &'static str,
}

impl Studio {
    fn new(name: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        copy_folder(&golden("model"), &folder.path().join("model"));
        fs::copy(
            golden("upscaler.safetensors"),
            folder.path().join("up.safetensors"),
        )
        .expect("copied");
        let case = fs::read(golden("cases").join(name).join("case.json")).expect("a case");
        let case: Value = serde_json::from_slice(&case).expect("JSON");
        let studio = Self { folder, case, name };
        studio.write("film.yaml", &studio.pipeline());
        studio
    }

    fn write(&self, name: &str, pipeline: &Value) {
        // YAML reads JSON.
        fs::write(self.path(name), pipeline.to_string()).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pipeline(&self) -> Value {
        let case = &self.case;
        let pass = |timesteps: &str, skip: [(&str, &str); 1], guidance: Value| {
            let mut pass = json!({ "guidance_scale": guidance });
            if case[timesteps].is_null() {
                let [(key, value)] = skip;
                pass["num_inference_steps"] = case["steps"].clone();
                pass[key] = case[value].clone();
            } else {
                pass["timesteps"] = case[timesteps].clone();
            }
            pass
        };
        let first = ("skip_final_inference_steps", "skip_final");
        let second = ("skip_initial_inference_steps", "second_skip_initial");
        let mut second = pass("second_timesteps", [second], json!(1));
        second["tone_map_compression_ratio"] = case["tone_map"].clone();
        json!({
            "pipeline_type": "multi-scale",
            "checkpoint_path": "model",
            "spatial_upscaler_model_path": "up.safetensors",
            "downscale_factor": case["downscale_factor"],
            "decode_timestep": case["decode_timestep"],
            "decode_noise_scale": case["decode_noise_scale"],
            "text_tokens": case["text_tokens"],
            "first_pass": pass("timesteps", [first], case["guidance"].clone()),
            "second_pass": second,
        })
    }

    /// Renders with a pipeline file and more flags; the report.
    fn render(&self, config: &str, flags: &[&str]) -> Value {
        let number = |key: &str| self.case[key].to_string();
        let text = |key: &str| self.case[key].as_str().expect("a text").to_owned();
        let own = [
            vec!["render".to_owned(), text("prompt")],
            vec!["--config".to_owned(), config.to_owned()],
            vec!["--size".to_owned(), text("size")],
            vec!["--seed".to_owned(), number("seed")],
            vec!["--fps".to_owned(), number("fps")],
            vec![
                "--reference".to_owned(),
                "official".to_owned(),
                "--json".to_owned(),
            ],
        ];
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        report_of(&run(
            self.folder.path(),
            own.into_iter().flatten().chain(flags),
        ))
    }

    /// Renders the case itself and compares.
    fn check(&self, flags: &[&str]) {
        let frames = self.case["frames"].to_string();
        let own = [
            "--frames",
            frames.as_str(),
            "--continuity",
            "none",
            "--save-latents",
            "latents.safetensors",
            "-o",
            "film/%06d.png",
        ];
        let flags: Vec<&str> = own.iter().chain(flags).copied().collect();
        let report = self.render("film.yaml", &flags);
        let case = golden("cases").join(self.name).join("case.safetensors");
        let error = relative_error(&latents(&self.path("latents.safetensors")), &latents(&case));
        let db = frames_db(&self.path("film/%06d.png"), &case);
        println!("{}: latents {error:.1e}, frames {db:.1} dB", self.name);
        assert!(
            error <= LATENTS_ERROR_MAX && db >= FRAMES_DB_MIN,
            "{error} {db}"
        );
        for phase in ["pass1", "upsample", "pass2", "decode"] {
            let seconds = report["segments"][0]["seconds"][phase].as_f64();
            assert!(seconds.is_some_and(|s| s > 0.0), "{phase}: {report}");
        }
    }
}

#[test]
fn two_passes_match_lightricks_code() {
    let studio = Studio::new("official_multi_scale");
    picture(&studio.path("held"), 90, 120);
    studio.check(&["--image", "held/000001.png"]);
    Studio::new("official_multi_scale_dev").check(&[]);
    // The upscaler's norms add up over all ranks.
    Studio::new("official_multi_scale_dev").check(&["--ranks=2"]);
}

#[test]
fn windows_in_two_passes_go_on_and_are_seen_early() {
    let studio = Studio::new("official_multi_scale_dev");
    let windows = [
        "--frames=40",
        "--segment-frames=25",
        "--overlap-frames=9",
        "--workers=1",
        "--preview=early.mp4",
        "--state=state",
    ];
    let flags: Vec<&str> = windows.iter().chain(&["-o", "a.mp4"]).copied().collect();
    let report = studio.render("film.yaml", &flags);
    let preview = &report["preview"];
    assert_eq!(
        (&preview["width"], &preview["height"], &preview["frames"]),
        (&32.into(), &32.into(), &40.into()),
        "half of each side, in whole cells"
    );
    let first = preview["seconds_first"].as_f64().expect("a time");
    assert!(first < preview["seconds_whole"].as_f64().expect("a time"));
    let early = open_video(studio.path("early.mp4")).expect("a preview");
    assert_eq!((early.info().width, early.info().height), (32, 32));
    let early: Vec<_> = early.collect::<Result<_, _>>().expect("frames");
    assert_eq!(early.len(), 40);
    assert_eq!(report["segments"].as_array().map(Vec::len), Some(2));
    // Without a preview nothing is left to be denoised, and the film is the same.
    let again: Vec<&str> = windows[..4]
        .iter()
        .chain(&["--state=state", "-o", "b.mp4"])
        .copied()
        .collect();
    let report = studio.render("film.yaml", &again);
    assert!(
        report["segments"][1]["reused"].as_bool() == Some(true),
        "{report}"
    );
    let film = |name: &str| fs::read(studio.path(name)).expect("a film");
    assert_eq!(film("a.mp4"), film("b.mp4"));
}

/// Changes some weights of a model.
fn change(model: &Path) {
    let path = model.join("transformer/diffusion_pytorch_model-00002-of-00002.safetensors");
    let mut file = fs::read(&path).expect("weights");
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("a header");
    let names = header.as_object().expect("tensors").keys();
    let name = names
        .clone()
        .find(|name| header[name.as_str()]["dtype"] == "BF16");
    let (_, range) = tensor(&file, name.expect("a tensor of 16 bits"));
    for low in file[range].iter_mut().step_by(2) {
        *low ^= 0x40; // of the mantissa
    }
    fs::write(&path, file).expect("written");
}

#[test]
fn each_pass_may_have_a_checkpoint_of_its_own() {
    let studio = Studio::new("official_multi_scale_dev");
    copy_folder(&studio.path("model"), &studio.path("other"));
    change(&studio.path("other"));
    let pipeline = studio.pipeline();
    let with = |passes: &[&str]| {
        let mut pipeline = pipeline.clone();
        for pass in passes {
            pipeline[pass]["checkpoint_path"] = json!("other");
        }
        pipeline
    };
    let mut whole = pipeline.clone();
    whole["checkpoint_path"] = json!("other");
    let renders = [
        ("plain", pipeline.clone()),
        ("both", with(&["first_pass", "second_pass"])),
        ("second", with(&["second_pass"])),
        ("whole", whole),
    ];
    let [plain, both, second, whole] = renders.map(|(name, pipeline)| {
        studio.write("own.yaml", &pipeline);
        let file = format!("{name}.safetensors");
        let flags = [
            "--frames=9",
            "--save-latents",
            &file,
            "-o",
            "o.mp4",
            "--workers=1",
        ];
        studio.render("own.yaml", &flags);
        latents(&studio.path(&file))
    });
    assert!(both == whole, "both passes of a model are all of it");
    assert!(plain != second && second != whole && plain != whole);
}

#[test]
fn what_two_passes_cannot_do_is_said_at_once() {
    let studio = Studio::new("official_multi_scale_dev");
    let refused = |flags: &[&str], part: &str| {
        let begin = ["render", "a sea", "--reference=official", "-o", "a.mp4"];
        let out = run(studio.folder.path(), begin.iter().chain(flags));
        assert!(!out.status.success(), "{flags:?}");
        assert!(stderr(&out).contains(part), "{flags:?}: {}", stderr(&out));
    };
    let two = "--config=film.yaml";
    refused(&[two, "--size=32x32"], "too small for two passes");
    refused(
        &["--config=ltxv-tiny", "--preview=p.mp4"],
        "rendered in one",
    );
    refused(&[two, "--preview=p.gif"], "FILE.mp4");
    let mut foreign = studio.pipeline();
    foreign["second_pass"]["checkpoint_path"] = json!(root().join("configs/models/ltxv-tiny"));
    studio.write("foreign.yaml", &foreign);
    let words = "text states of 128 channels, and the film's model has 24";
    refused(&["--config=foreign.yaml", "--size=96x64"], words);
    fs::write(studio.path("up.safetensors"), b"short").expect("written");
    refused(&[two, "--size=96x64"], "up.safetensors");
    fs::remove_file(studio.path("up.safetensors")).expect("removed");
    refused(&[two, "--size=96x64"], "no model 'up.safetensors'");
}
