//! What a container engine does with a command, as far as tests need one: a network of its own in
//! which every name is this machine, and a root folder of its own for each program, with the files,
//! users and volumes that it expects. So commands run as they are written, under their own paths,
//! names and ports, and touch nothing outside. No engine and no image has to be at hand: the
//! programs are this machine's.
//!
//! Root may do that; others may where the kernel lets them be root in a namespace.

use crate::network::{is_root, wait_for_namespace};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where programs are looked for inside.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Users that the images in question have, besides those that a test makes.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// A network with a loopback and nothing else. It ends with this value.
pub struct Network {
    /// Keeps the namespace; ends when its standard input does, that is with us at the latest.
    keeper: Child,
    /// Names that all stand for this network's only address.
    hosts: String,
}

impl Network {
    /// Makes one in which `names` can be found.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn new(names: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        if !is_root() {
            command.args(["--user", "--map-root-user", "--map-auto"]);
        }
        let keeper = command
            .args(["--net", "sh", "-ec", "ip link set lo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start unshare: {error}; install util-linux"));
        wait_for_namespace(&keeper);
        let hosts = format!("127.0.0.1 localhost {}\n", names.join(" "));
        Self { keeper, hosts }
    }

    /// A command of this machine's that runs in the network.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        if !is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        let target = self.keeper.id().to_string();
        command.args(["--net", "--target", &target, "--", program]);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A root folder with what is mounted in it while a command runs. Nothing is mounted for anybody
/// else, so that the folder can be removed as it is.
#[derive(Clone)]
pub struct Container {
    root: PathBuf,
    /// Commands that mount it all.
    mounts: String,
    environment: Vec<(String, String)>,
    workdir: String,
    user: Option<String>,
}

impl Container {
    /// Makes one in `root`, with the programs of this machine and nothing below `/usr/local`,
    /// `/usr/share`, `/var` and `/etc` but what is put there.
    ///
    /// # Panics
    /// When the folder cannot be filled.
    pub fn new(network: &Network, root: &Path) -> Self {
        let mut container = Self {
            root: root.to_owned(),
            mounts: String::new(),
            environment: vec![("PATH".to_owned(), PATH.to_owned())],
            workdir: "/".to_owned(),
            user: None,
        };
        for folder in ["root", "tmp", "etc", "usr/local/bin", "var/lib"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let shared = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(root.join("tmp"), shared).expect("open to all");
        let programs = fs::read_dir("/usr").expect("/usr").flatten();
        let programs = programs.map(|entry| entry.path());
        for folder in programs.filter(|path| !path.ends_with("local") && !path.ends_with("share")) {
            container = container.mirrored(&folder, true);
        }
        for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
            container = container.mirrored(&Path::new("/").join(name), true);
        }
        for name in ["ssl", "alternatives", "ld.so.cache", "login.defs"] {
            container = container.mirrored(&Path::new("/etc").join(name), true);
        }
        for name in ["proc", "sys", "dev"] {
            container = container.mirrored(&Path::new("/").join(name), false);
        }
        let files = [
            ("hosts", network.hosts.as_str()),
            ("passwd", PASSWD),
            ("group", GROUP),
            ("nsswitch.conf", "hosts: files\n"),
        ];
        for (name, text) in files {
            fs::write(root.join("etc").join(name), text).expect("written");
        }
        container
    }

    /// Puts what this machine has at `path`, if it has it, at the same place.
    fn mirrored(self, path: &Path, read_only: bool) -> Self {
        let inside = self.outside(path.to_str().expect("UTF-8"));
        if let Ok(target) = fs::read_link(path) {
            let _ = symlink(target, inside);
            return self;
        }
        if path.exists() {
            return self.mounted(path, path.to_str().expect("UTF-8"), read_only);
        }
        self
    }

    /// Where a path inside is outside. What is mounted there does not show.
    pub fn outside(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// Puts a file or folder at `inside`.
    ///
    /// # Panics
    /// When there is no such file or folder.
    #[must_use]
    pub fn mounted(mut self, source: &Path, inside: &str, read_only: bool) -> Self {
        let target = self.outside(inside);
        if source.is_dir() {
            fs::create_dir_all(&target).expect("a folder");
        } else {
            assert!(source.exists(), "no {}", source.display());
            fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
            fs::write(&target, "").expect("a file to mount over");
        }
        let (source, target) = (quoted(source), quoted(&target));
        self.mounts += &format!("mount --rbind {source} {target}\n");
        if read_only {
            self.mounts += &format!("mount -o remount,bind,ro {target}\n");
        }
        self
    }

    /// Puts a volume at `inside`. As with an engine, a new one belongs to whoever the folder of the
    /// image does.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn with_volume(self, volume: &Path, inside: &str) -> Self {
        let new = !volume.exists();
        fs::create_dir_all(volume).expect("a folder");
        if let (true, Ok(image)) = (new, fs::metadata(self.outside(inside))) {
            chown(volume, Some(image.uid()), Some(image.gid())).expect("given away");
        }
        self.mounted(volume, inside, false)
    }

    /// Sets variables for what runs in it. It has no others.
    #[must_use]
    pub fn with_environment(
        mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        self.environment.extend(variables);
        self
    }

    /// Sets the working folder and the user (a name or number) of what runs in it.
    #[must_use]
    pub fn for_user(mut self, user: &str, workdir: &str) -> Self {
        self.workdir = workdir.to_owned();
        self.user = Some(format!("{user}:"));
        self
    }

    /// The command `words` in it. It becomes the process that is started, so signals reach it.
    pub fn command(&self, network: &Network, words: &[String]) -> Command {
        let mut command = network.command("unshare");
        let script = format!("{}exec \"$@\"", self.mounts);
        command.args(["--mount", "sh", "-ec", &script, "sh", "chroot"]);
        if let Some(user) = &self.user {
            command.arg(format!("--userspec={user}"));
        }
        command.arg(&self.root);
        command.args(["env", "--ignore-environment", "--chdir", &self.workdir]);
        for (name, value) in &self.environment {
            command.arg(format!("{name}={value}"));
        }
        command.args(words);
        command
    }
}

fn quoted(path: &Path) -> String {
    let path = path.to_str().expect("UTF-8");
    format!("'{}'", path.replace('\'', r"'\''"))
}
