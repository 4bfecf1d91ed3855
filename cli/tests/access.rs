//! TLS, tokens and addresses: who gets in, and what the others are told.

mod support;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use support::{Guard, SMALL_FILM, Service, json, longtake, render_small, run, stderr};

const USER: &str = "0123456789abcdef-user";
const WORKER: &str = "0123456789abcdef-worker";

/// An authority that makes certificates in a folder.
struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    pem: PathBuf,
}

/// A certificate and its key.
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = folder.join(format!("{name}.pem"));
        let cert = params.self_signed(&key).expect("signed");
        fs::write(&pem, cert.pem()).expect("written");
        Self {
            folder: folder.to_owned(),
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn certify(&self, name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("parameters");
        adjust(&mut params);
        let own = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&own, &self.issuer).expect("signed");
        let pair = Pair {
            cert: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
        };
        fs::write(&pair.cert, signed.pem()).expect("written");
        fs::write(&pair.key, own.serialize_pem()).expect("written");
        pair
    }
}

impl Pair {
    fn flags(&self) -> Vec<String> {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        vec![
            "--tls-cert".to_owned(),
            text(&self.cert),
            "--tls-key".to_owned(),
            text(&self.key),
        ]
    }
}

fn flag(name: &str, path: &Path) -> Vec<String> {
    vec![name.to_owned(), path.to_str().expect("UTF-8").to_owned()]
}

fn token_file(folder: &Path, name: &str, text: &str) -> Vec<String> {
    let path = folder.join(name);
    fs::write(&path, text).expect("written");
    flag("--token-file", &path)
}

/// Asks for the jobs.
fn list(folder: &Path, url: &str, flags: &[String]) -> Output {
    let mut command = longtake(folder);
    command
        .args(["list", "--json", "--coordinator", url])
        .args(flags);
    command.output().expect("runs")
}

/// Runs a command that should be turned away with a sentence that has `part` in it.
#[track_caller]
fn turned_away(out: &Output, part: &str) {
    let text = stderr(out);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("error: ") && text.contains(part),
        "{part:?} in {text}"
    );
    assert_eq!(text.lines().count(), 1, "one sentence: {text}");
}

#[test]
fn a_farm_with_mutual_tls_and_tokens_renders_and_keeps_others_out() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path();
    let ours = Authority::new(folder, "ca");
    let theirs = Authority::new(folder, "other-ca");
    let tokens = format!("worker {WORKER}\nuser {USER}\nviewer 0123456789abcdef-viewer\n");
    let tokens = token_file(folder, "tokens", &tokens);
    let server = ours.certify("server", |_| {}).flags();
    let asks = flag("--tls-client-ca", &ours.pem);
    let farm = Service::coordinator(folder, &[server, asks, tokens.clone()].concat());
    assert!(farm.url.starts_with("https://"), "{}", farm.url);

    let ca = flag("--tls-ca", &ours.pem);
    let mine = ours.certify("client", |_| {}).flags();
    let good = [ca.clone(), mine.clone(), tokens].concat();
    let (alone, _) = render_small(folder, "alone.mp4", &[]);
    let mut worker = longtake(folder);
    worker
        .args(["worker", "--threads=1", "--coordinator", &farm.url])
        .args(&good);
    let log = fs::File::create(folder.join("worker.log")).expect("a log");
    let _worker = Guard(worker.stderr(log).spawn().expect("a worker"));
    let mut submit = longtake(folder);
    submit.arg("submit").args(&SMALL_FILM[1..]);
    submit
        .args([
            "--wait",
            "-o",
            "farm.mp4",
            "--json",
            "--coordinator",
            &farm.url,
        ])
        .args(&good);
    json(&submit.output().expect("runs"));
    assert!(fs::read(folder.join("farm.mp4")).expect("the film") == alone);

    let user = token_file(folder, "user", USER);
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    };
    let old = ours.certify("old", expired).flags();
    let foreign = theirs.certify("foreign", |_| {}).flags();
    let other_ca = flag("--tls-ca", &theirs.pem);
    let wrong = token_file(folder, "wrong", "0123456789abcdef-wrong");
    let rows = [
        (vec![mine.clone(), user.clone()], "not trusted here"),
        (
            vec![other_ca, mine.clone(), user.clone()],
            "not trusted here",
        ),
        (
            vec![ca.clone(), user.clone()],
            "asks for a client certificate",
        ),
        (
            vec![ca.clone(), foreign, user.clone()],
            "does not accept our certificate",
        ),
        (
            vec![ca.clone(), old, user.clone()],
            "our certificate has expired",
        ),
        (vec![ca.clone(), mine.clone()], "asks for a token"),
        (
            vec![ca.clone(), mine.clone(), wrong],
            "not one of this coordinator's",
        ),
    ];
    for (flags, part) in rows {
        turned_away(&list(folder, &farm.url, &flags.concat()), part);
    }
    let plain = farm.url.replace("https://", "http://");
    turned_away(&list(folder, &plain, &user), "speaks TLS");

    let viewer = token_file(folder, "viewer", "viewer 0123456789abcdef-viewer");
    let sees = list(
        folder,
        &farm.url,
        &[ca.clone(), mine.clone(), viewer.clone()].concat(),
    );
    assert_eq!(json(&sees)["jobs"].as_array().map(Vec::len), Some(1));
    let mut submit = longtake(folder);
    submit
        .arg("submit")
        .args(&SMALL_FILM[1..])
        .args(["--coordinator", &farm.url]);
    let refused = submit
        .args([ca.clone(), mine.clone(), viewer].concat())
        .output();
    turned_away(
        &refused.expect("runs"),
        "a viewer's token cannot change anything",
    );
    let mut worker = longtake(folder);
    worker
        .args(["worker", "--coordinator", &farm.url])
        .env("LONGTAKE_LOG", "off");
    let refused = worker.args([ca, mine, user].concat()).output();
    turned_away(
        &refused.expect("runs"),
        "a user's token cannot attach workers",
    );
}

#[test]
fn bad_certificates_of_the_coordinator_are_explained() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path();
    let ours = Authority::new(folder, "ca");
    let ca = flag("--tls-ca", &ours.pem);
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    };
    let elsewhere = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName(
            "farm.example".try_into().expect("a name"),
        )];
    };
    let rows = [
        (ours.certify("expired", expired), "has expired"),
        (ours.certify("elsewhere", elsewhere), "is for another name"),
    ];
    for (pair, part) in rows {
        let farm = Service::coordinator(folder, &pair.flags());
        turned_away(&list(folder, &farm.url, &ca), part);
        let mut worker = longtake(folder);
        worker
            .args(["worker", "--coordinator", &farm.url])
            .args(&ca);
        let refused = worker.env("LONGTAKE_LOG", "off").output();
        turned_away(&refused.expect("runs"), part);
    }
    let farm = Service::coordinator(folder, &[]);
    let encrypted = farm.url.replace("http://", "https://");
    turned_away(&list(folder, &encrypted, &ca), "does not speak TLS");
}

#[test]
fn a_coordinator_does_not_start_unsafely_or_with_bad_files() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path();
    let ours = Authority::new(folder, "ca");
    let (one, two) = (ours.certify("one", |_| {}), ours.certify("two", |_| {}));
    let mixed = Pair {
        cert: one.cert.clone(),
        key: two.key,
    };
    let absent = Pair {
        cert: folder.join("absent.pem"),
        key: one.key.clone(),
    };
    let swapped = Pair {
        cert: one.key.clone(),
        key: one.cert.clone(),
    };
    let text = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let rows = [
        (text(&["--listen=0.0.0.0:0"]), "--insecure"),
        (
            text(&["--listen=127.0.0.1:0", "--http=0.0.0.0:0"]),
            "--insecure",
        ),
        (mixed.flags(), "the key is not the certificate's"),
        (absent.flags(), "absent.pem"),
        (swapped.flags(), "holds no PEM certificate"),
        (
            [one.flags(), flag("--tls-client-ca", &one.key)].concat(),
            "holds no PEM certificate",
        ),
        (
            token_file(folder, "bad", "root 0123456789abcdef"),
            "its first word is no role",
        ),
        (token_file(folder, "empty", "# nobody"), "holds no token"),
    ];
    for (flags, part) in rows {
        let flags = [text(&["coordinator"]), flags].concat();
        turned_away(&run(folder, flags), part);
    }
    // With certificates, or knowingly without, it may be reached from elsewhere.
    let open = text(&["--listen=0.0.0.0:0", "--insecure"]);
    drop(Service::coordinator(folder, &open));
    drop(Service::coordinator(
        folder,
        &[text(&["--listen=0.0.0.0:0"]), one.flags()].concat(),
    ));
}
