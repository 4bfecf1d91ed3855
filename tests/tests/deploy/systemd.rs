//! The units: what systemd would start, as the user and with the environment that they name, on a
//! machine that is set up as docs/operations.md says.

use crate::farm::{AUTHORITY, Farm, finished, operations};
use crate::files::{repository, text};
use longtake_tests::container::Container;
use longtake_tests::product;
use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

const COORDINATOR: &str = "longtake-coordinator.service";
const WORKER: &str = "longtake-worker@.service";
/// Who the units' user is on the machine of the tests.
const USER: u32 = 10001;

/// A unit's settings, in order.
struct Unit(Vec<(String, String)>);

impl Unit {
    /// Reads one; `instance` is what stands behind the name's `@`.
    fn read(name: &str, instance: &str) -> Self {
        let text = text(format!("systemd/{name}")).replace("\\\n", " ");
        let setting = |line: &str| {
            let (name, value) = line.split_once('=')?;
            let value = value.replace("%i", instance).replace("%H", "machine");
            assert!(!value.contains('%'), "{line}: nobody knows that");
            Some((name.to_owned(), value))
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(setting).collect())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of = move |(n, value): &'a (String, String)| (n == name).then_some(value.as_str());
        self.0.iter().filter_map(of)
    }

    fn one<'a>(&'a self, name: &'a str) -> &'a str {
        let mut all = self.all(name);
        let found = all.next().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(all.next(), None, "two {name}");
        found
    }

    fn words(&self) -> Vec<String> {
        let line = self.one("ExecStart").split_whitespace();
        line.map(str::to_owned).collect()
    }

    /// What its process finds in the environment, files included.
    fn environment(&self, machine: &Container) -> Vec<(String, String)> {
        let pair = |line: &str| {
            let (name, value) = line.split_once('=').expect("NAME=VALUE");
            (name.to_owned(), value.to_owned())
        };
        let mut variables: Vec<_> = self.all("Environment").map(pair).collect();
        for file in self.all("EnvironmentFile") {
            let text = fs::read_to_string(machine.outside(file.trim_start_matches('-')));
            let text = text.unwrap_or_else(|e| panic!("{file}: {e}"));
            variables.extend(text.lines().map(pair));
        }
        variables
    }

    /// Its process's place on the machine: its own folder, made for its user.
    fn place(&self, machine: &Container) -> Container {
        let folder = format!("/var/lib/{}", self.one("StateDirectory"));
        let outside = machine.outside(&folder);
        fs::create_dir_all(&outside).expect("a folder");
        chown(&outside, Some(USER), Some(USER)).expect("given away");
        machine
            .clone()
            .with_environment(self.environment(machine))
            .for_user(self.one("User"), self.one("WorkingDirectory"))
    }
}

/// A machine that is set up as the page says.
fn machine(farm: &Farm) -> Container {
    let page = operations().replace('\n', " ");
    for step in [
        "program into `/usr/local/bin`",
        "the folder `configs` into `/usr/share/longtake`",
        "files of `deploy/certs.sh` into `/etc/longtake`",
        "make a user `longtake`",
    ] {
        assert!(page.contains(step), "operations.md says no more: {step}");
    }
    let machine = farm.container("machine");
    let (etc, passwd) = (
        machine.outside("/etc/longtake"),
        machine.outside("/etc/passwd"),
    );
    fs::create_dir_all(&etc).expect("a folder");
    for entry in fs::read_dir(farm.path("secrets"))
        .expect("secrets")
        .flatten()
    {
        fs::copy(entry.path(), etc.join(entry.file_name())).expect("copied");
    }
    let coordinator = "LONGTAKE_COORDINATOR=https://coordinator:7341\n";
    fs::write(etc.join("environment"), coordinator).expect("written");
    let users = fs::read_to_string(&passwd).expect("users");
    let user = format!("longtake:x:{USER}:{USER}::/var/lib/longtake:/bin/sh\n");
    fs::write(&passwd, users + &user).expect("written");
    machine
        .mounted(&product::binary(), "/usr/local/bin/longtake", true)
        .mounted(
            &repository().join("configs"),
            "/usr/share/longtake/configs",
            true,
        )
}

#[test]
fn the_services_of_the_units_render() {
    let mut farm = Farm::new();
    let machine = machine(&farm);
    let coordinator = Unit::read(COORDINATOR, "");
    farm.start(
        "coordinator",
        &coordinator.place(&machine),
        &coordinator.words(),
    );
    // It asks for no token here, and is reached on its own machine only.
    let ready = "https://localhost:7342/readyz";
    farm.until(ready, |farm| farm.page(ready, &["--cacert", AUTHORITY]));
    for instance in ["1", "2"] {
        let worker = Unit::read(WORKER, instance);
        let name = format!("worker-{instance}");
        farm.start(&name, &worker.place(&machine), &worker.words());
    }
    farm.until("two workers", |farm| {
        let figures = farm.figures("https://localhost:7342/metrics", "viewer.token")?;
        figures.contains("longtake_workers 2\n").then_some(())
    });
    farm.render("https://coordinator:7341", 33);
    // What they leave lies where the units say, and nowhere else.
    for folder in ["state", "artifacts"] {
        let folder = machine.outside("/var/lib/longtake").join(folder);
        assert!(folder.is_dir(), "{}", folder.display());
    }
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let folder = tempfile::tempdir().expect("a folder");
    // It looks whether the program is there.
    let program = product::binary();
    let program = program.to_str().expect("UTF-8");
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for unit in [COORDINATOR, WORKER] {
        let text = text(format!("systemd/{unit}")).replace("/usr/local/bin/longtake", program);
        let copy = folder.path().join(unit);
        fs::write(&copy, text).expect("written");
        verify.arg(copy);
    }
    // Of a setting that it does not know, it only warns.
    let out = finished(&mut verify);
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}
