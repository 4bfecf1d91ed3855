//! Full disks, readers that leave, peers that say nothing, folders that are somebody else's: the
//! program says so and ends, and nothing that is not its own comes to harm.

mod support;

use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{
    SMALL_FILM, Service, json, longer_film, longtake, render_small, run, signal, start, stderr,
    wait_for,
};

/// The sentence of a run that failed as it should.
fn refusal(out: &Output, expected: &str) {
    let text = stderr(out);
    assert_eq!(out.status.code(), Some(1), "{expected}: {text}");
    assert!(
        text.contains(expected),
        "{text:?} does not say {expected:?}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = entries.map(|e| name(e.expect("an entry"))).collect();
    names.sort();
    names
}

/// The program under a shell that does `first`, then becomes the program. Writing more than a
/// file may hold kills a process unless it ignores the signal, which it inherits from the shell.
fn longtake_after(folder: &Path, first: &str) -> Command {
    let plain = longtake(folder);
    let mut shell = Command::new("sh");
    shell.arg("-c");
    shell.arg(format!("trap '' XFSZ; {first} exec \"$0\" \"$@\""));
    shell.arg(plain.get_program()).current_dir(folder);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null());
    shell.stdout(Stdio::piped()).stderr(Stdio::piped());
    shell
}

#[test]
fn a_disk_that_is_full_when_the_film_comes_leaves_no_film() {
    let folder = tempfile::tempdir().expect("a folder");
    let farm = Service::coordinator(folder.path(), &[]);
    let mut worker = longtake(folder.path());
    worker.args(["worker", "--coordinator", &farm.url]);
    let _worker = support::Guard(worker.stderr(Stdio::null()).spawn().expect("a worker"));
    let at = ["--coordinator", farm.url.as_str(), "--json"];
    let film: Vec<&str> = SMALL_FILM[1..].to_vec();
    let submit = |out| [&["submit", "--wait", "-o", out], &film[..]].concat();
    let whole = submit("whole.mp4");
    json(&run(folder.path(), whole.iter().chain(&at)));
    let size = fs::metadata(folder.path().join("whole.mp4")).expect("the film");

    let out_of = tempfile::tempdir().expect("a folder");
    // A limit on the size of files, in blocks of 512 bytes, stands for the full disk: the system
    // refuses the bytes beyond it in the same way.
    let full = |blocks: u64, args: &[&str]| {
        let limit = format!("ulimit -f {blocks};");
        let mut command = longtake_after(out_of.path(), &limit);
        command.args(args).args(at).output().expect("runs")
    };
    // Room for all but the very last bytes: nothing is written after the write that fails.
    let all_but_the_end = (size.len() - 1) / 512;
    refusal(&full(all_but_the_end, &submit("full.mp4")), "full.mp4");
    let render = [&["render", "-o", "full.mp4"], &film[..]].concat();
    refusal(&full(all_but_the_end, &render), "full.mp4");
    refusal(&full(1, &render), "full.mp4");
    let pictures = [&["render", "-o", "full/%06d.png"], &film[..]].concat();
    refusal(&full(1, &pictures), "full");
    let latents = [&render, &["--save-latents", "l.safetensors"][..]].concat();
    refusal(&full(1, &latents), "save the latents");
    assert_eq!(names(out_of.path()), Vec::<String>::new());
}

/// Runs the program with its outputs closed by their reader before it says anything.
fn unheard(folder: &Path, args: &[&str]) -> std::process::ExitStatus {
    let mut child = longtake(folder).args(args).spawn().expect("starts");
    drop((child.stdout.take(), child.stderr.take()));
    child.wait().expect("ends")
}

#[test]
fn nobody_has_to_listen() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = ["plan", "x", "--frames", "900000"];
    assert_eq!(unheard(folder.path(), &plan).code(), Some(0));
    let mut render = SMALL_FILM.to_vec();
    render.extend(["-o", "a.mp4", "--size=60x60", "--json"]);
    render.retain(|flag| *flag != "--size=64x64");
    assert_eq!(unheard(folder.path(), &render).code(), Some(0));
    assert!(
        folder.path().join("a.mp4").exists(),
        "the film was given up"
    );
    assert_eq!(unheard(folder.path(), &["status", "x"]).code(), Some(1));
    let logged = longtake(folder.path())
        .env("LONGTAKE_LOG", "trace")
        .args(["render", "x", "--size=32x32", "--frames=9", "-o", "b.mp4"])
        .stderr(
            File::options()
                .write(true)
                .open("/dev/full")
                .expect("opened"),
        )
        .status();
    assert_eq!(logged.expect("runs").code(), Some(0));
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    for flags in [&["plan", "x", "--json"][..], &["doctor"]] {
        let mut command = longtake(folder.path());
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("opened");
        let out = command.args(flags).stdout(full).output().expect("runs");
        refusal(&out, "cannot write the result to standard output");
    }
}

/// The address of something that answers everybody, but not as a coordinator does. It ends with
/// this process.
fn web_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    url
}

#[test]
fn peers_that_say_nothing_are_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("http://{}", silent.local_addr().expect("an address"));
    let farm = Service::coordinator(folder.path(), &[]);
    signal(farm.process.0.id(), "STOP");
    let started = Instant::now();
    let ask = |url: &str, command: &[&str]| {
        let mut child = longtake(folder.path());
        child.args(command).args(["--coordinator", url]);
        child.spawn().expect("starts")
    };
    let web = web_server();
    let all = [
        ask(&silent, &["list"]),
        ask(&silent, &["watch", "j-0000000000"]),
        ask(&web, &["watch", "j-0000000000"]),
        ask(&web, &["submit", "a red ball"]),
        ask(&farm.url, &["status", "j-0000000000"]),
    ];
    for child in all {
        let out = child.wait_with_output().expect("ends");
        refusal(&out, "does not answer as a coordinator does");
        refusal(&out, "check --coordinator");
    }
    assert!(
        started.elapsed() < Duration::from_secs(40),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_film_is_made_by_one_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut film = longer_film();
    film.extend(["--state", "one"]);
    let mut first = start(folder.path(), &film, "a.mp4");
    let lock = folder.path().join(".a.mp4.lock");
    wait_for("the lock", || lock.exists().then_some(()));
    wait_for("workers", || {
        Some(support::children(first.id())).filter(|found| !found.is_empty())
    });
    let second = SMALL_FILM.iter().chain(&["--state", "two", "-o", "a.mp4"]);
    refusal(
        &run(folder.path(), second),
        "another longtake is making a.mp4",
    );
    assert!(!folder.path().join("two").exists());
    signal(first.id(), "KILL");
    first.wait().expect("killed");
    render_small(folder.path(), "a.mp4", &["--state", "three"]);
    assert_eq!(
        names(folder.path()),
        ["a.mp4", "a.mp4.json", "one", "three"]
    );
}

#[test]
fn folders_of_others_are_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let theirs = |path: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, b"theirs").expect("written");
        path
    };
    let kept = [
        theirs("mine/scratch/notes"),
        theirs("a.mp4.longtake/notes"),
        theirs("frames.longtake/scratch/notes"),
    ];
    let refused = |flags: &[&str], named: &str| {
        let out = run(folder.path(), SMALL_FILM.iter().chain(flags));
        refusal(&out, &format!("it holds {named}, which is not ours"));
    };
    refused(&["--state", "mine", "-o", "b.mp4"], "scratch");
    refused(&["-o", "a.mp4"], "notes");
    refused(&["-o", "frames/%06d.png"], "scratch");
    for path in kept {
        assert_eq!(fs::read(&path).expect("still there"), b"theirs");
    }
    // Beside our own files, too.
    render_small(folder.path(), "c.mp4", &["--state", "state"]);
    let beside = theirs("state/scratch/notes");
    render_small(folder.path(), "d.mp4", &["--state", "state"]);
    assert_eq!(fs::read(beside).expect("still there"), b"theirs");
}

#[test]
fn a_name_that_is_not_text_is_refused_before_anything_is_made() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().expect("a folder");
    let odd = std::ffi::OsStr::from_bytes(b"\xff.mp4");
    let mut command = longtake(folder.path());
    let out = command.args(SMALL_FILM).arg("-o").arg(odd).output();
    refusal(&out.expect("runs"), "choose another with -o");
    let mut command = longtake(folder.path());
    let out = command.args(SMALL_FILM).arg("--state").arg(odd).output();
    refusal(&out.expect("runs"), "choose another with --state");
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn a_coordinator_that_cannot_store_says_so_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = longtake_after(folder.path(), "");
    command.args(longer_film()).args(["-o", "a.mp4"]);
    let render = command.spawn().expect("starts");
    let pid = render.id();
    wait_for("workers", || {
        Some(support::children(pid)).filter(|found| !found.is_empty())
    });
    // From now on no file may grow; the workers have limits of their own.
    let limited = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), "--fsize=1"])
        .status();
    assert!(
        limited.expect("prlimit runs: install util-linux").success(),
        "prlimit failed"
    );
    let out = render.wait_with_output().expect("ends");
    refusal(
        &out,
        "the render's coordinator had to stop: cannot write the state",
    );
    assert!(!folder.path().join("a.mp4").exists());
    // Nothing that was stored is lost.
    let mut again = longer_film();
    again.extend(["-o", "a.mp4", "--json"]);
    let report: Value = json(&run(folder.path(), again));
    assert_eq!(report["frames"], 360);
}

#[test]
fn a_worker_without_room_rests_until_there_is_some() {
    let folder = tempfile::tempdir().expect("a folder");
    let (alone, _) = render_small(folder.path(), "alone.mp4", &[]);
    let farm = Service::coordinator(folder.path(), &[]);
    let mut worker = longtake_after(folder.path(), "");
    worker.args(["worker", "--coordinator", &farm.url]);
    let worker = support::Guard(worker.stderr(Stdio::null()).spawn().expect("a worker"));
    let limit = |bytes: &str| {
        let pid = worker.0.id().to_string();
        let limited = Command::new("prlimit")
            .args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")])
            .status();
        assert!(limited.expect("prlimit runs").success());
    };
    let ask = |args: &[&str]| {
        let at = ["--coordinator", farm.url.as_str(), "--json"];
        json(&run(folder.path(), args.iter().chain(&at)))
    };
    // The system refuses bytes beyond a limit as it does on a full disk.
    limit("4096");
    let submit = [&["submit"], &SMALL_FILM[1..]].concat();
    let job = ask(&submit)["job"].as_str().expect("a job").to_owned();
    let reasons = wait_for("the worker to rest", || {
        let reasons = ask(&["explain", &job])["reasons"].to_string();
        reasons.contains("has no room to work").then_some(reasons)
    });
    assert!(reasons.contains("cannot write artifact"), "{reasons}");
    assert!(reasons.contains("free some space"), "{reasons}");
    assert_eq!(ask(&["status", &job])["state"], "running");
    limit("unlimited");
    assert_eq!(ask(&["watch", &job])["state"], "done");
    ask(&["download", &job, "-o", "farm.mp4"]);
    let film = fs::read(folder.path().join("farm.mp4")).expect("the film");
    assert!(film == alone, "a full disk changed the film");
}
