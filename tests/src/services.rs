//! Real servers for the tests of a farm: etcd, and one that speaks S3. `cargo xtask test` installs
//! both.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longest wait for a server to answer.
const START: Duration = Duration::from_secs(30);
/// The bucket that [`S3::start`] makes.
pub const BUCKET: &str = "longtake-test";

/// What the server takes for a signature: it looks at the key alone.
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request";

/// A process that is killed when the test is through with it.
pub struct Process(Child);

impl Process {
    /// Starts `command` without input.
    ///
    /// # Panics
    /// When it cannot be started; `way_out` says what to do then.
    pub fn start(command: &mut Command, way_out: &str) -> Self {
        let started = command.stdin(Stdio::null()).spawn();
        Self(started.unwrap_or_else(|error| panic!("start {command:?}: {error}; {way_out}")))
    }

    /// Sends a signal, as `kill -NAME PID` does.
    ///
    /// # Panics
    /// When the process is gone already.
    pub fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(&pid)
            .status();
        assert!(status.expect("kill runs").success(), "kill -{name} {pid}");
    }

    /// Kills it, as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A loopback address that nobody listens on at the moment.
///
/// # Panics
/// When there is none.
pub fn free_address() -> SocketAddr {
    free_address_at(LOOPBACK)
}

/// An address of `host`, which is this machine, that nobody listens on at the moment.
///
/// # Panics
/// When there is none.
pub fn free_address_at(host: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind((host, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

/// The file `name` in `folder`, to be written to at its end.
pub(crate) fn log(folder: &Path, name: &str) -> std::fs::File {
    let path = folder.join(name);
    let opened = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path);
    opened.unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

/// Asks until something comes back.
pub(crate) fn wait_for(what: &str, process: &mut Process, mut ask: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ask() {
        assert!(
            process.is_running(),
            "{what} ended as soon as it was started"
        );
        assert!(started.elapsed() < START, "{what} does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first line of the answer to an HTTP request.
fn http(address: SocketAddr, request: &str) -> Option<String> {
    let second = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, second).ok()?;
    stream.set_read_timeout(Some(second)).ok()?;
    let head = format!("{request} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // An answer without an end is an answer, too.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    answer.lines().next().map(str::to_owned)
}

/// An etcd of one member.
pub struct Etcd {
    process: Process,
    folder: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
}

impl Etcd {
    /// Starts one on loopback that keeps its data in `folder`.
    ///
    /// # Panics
    /// When etcd is not installed or does not come up.
    pub fn start(folder: &Path) -> Self {
        Self::start_at(folder, LOOPBACK)
    }

    /// The same at another address of this machine.
    ///
    /// # Panics
    /// When etcd is not installed or does not come up.
    pub fn start_at(folder: &Path, host: IpAddr) -> Self {
        let (client, peer) = (free_address_at(host), free_address_at(host));
        let process = Self::run(folder, client, peer);
        Self {
            process,
            folder: folder.to_owned(),
            client,
            peer,
        }
    }

    fn run(folder: &Path, client: SocketAddr, peer: SocketAddr) -> Process {
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let mut command = Command::new("etcd");
        command
            .args(["--name", "test", "--log-level", "error", "--data-dir"])
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("test={peer_url}")])
            .stdout(log(folder, "etcd.log"))
            .stderr(log(folder, "etcd.log"));
        let mut process = Process::start(&mut command, "run `cargo xtask test`, which installs it");
        wait_for("etcd", &mut process, || {
            http(client, "GET /health").is_some_and(|line| line.contains(" 200"))
        });
        process
    }

    /// Its URL as a state store.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.client)
    }

    /// Stops it in the middle of whatever it does. Connections to it stay open.
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    /// Goes on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.process.signal("CONT");
    }

    /// Kills it; the data stay.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again with the same data and addresses.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = Self::run(&self.folder, self.client, self.peer);
    }
}

impl Etcd {
    /// Saves all that it holds, as an operator does.
    ///
    /// # Panics
    /// When `etcdctl` fails.
    pub fn save(&self, file: &Path) {
        let endpoint = self.client.to_string();
        etcdctl(&["--endpoints", &endpoint, "snapshot", "save"], file);
    }

    /// Kills it, destroys its data, and starts it with those of `file`.
    ///
    /// # Panics
    /// When `etcdctl` fails, or it does not come up.
    pub fn restore(&mut self, file: &Path) {
        self.process.kill();
        let data = self.folder.join("etcd");
        std::fs::remove_dir_all(&data).expect("removed");
        let (data, peer) = (data.display().to_string(), format!("http://{}", self.peer));
        let cluster = format!("test={peer}");
        let member = ["--name", "test", "--initial-cluster", &cluster];
        let place = ["--initial-advertise-peer-urls", &peer, "--data-dir", &data];
        etcdctl(
            &[&["snapshot", "restore"], &member[..], &place].concat(),
            file,
        );
        self.restart();
    }
}

fn etcdctl(args: &[&str], file: &Path) {
    let mut command = Command::new("etcdctl");
    let out = command
        .env("ETCDCTL_API", "3")
        .args(args)
        .arg(file)
        .output();
    let out = out
        .unwrap_or_else(|error| panic!("start etcdctl: {error}; `cargo xtask test` installs it"));
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// A server that speaks S3, with one bucket. It forgets everything when it ends.
pub struct S3 {
    process: Process,
    address: SocketAddr,
}

impl S3 {
    /// Starts one on loopback whose log is in `folder`.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start(folder: &Path) -> Self {
        Self::start_at(folder, LOOPBACK)
    }

    /// The same at another address of this machine.
    ///
    /// # Panics
    /// When it is not installed or does not come up.
    pub fn start_at(folder: &Path, host: IpAddr) -> Self {
        let address = free_address_at(host);
        let mut command = Command::new(tool("tools/moto/bin/moto_server"));
        command
            .args(["-H", &host.to_string()])
            .args(["-p", &address.port().to_string()])
            .stdout(log(folder, "s3.log"))
            .stderr(log(folder, "s3.log"));
        let mut process = Process::start(&mut command, "run `cargo xtask test`, which installs it");
        wait_for("the S3 server", &mut process, || {
            http(address, &format!("PUT /{BUCKET}")).is_some_and(|line| line.contains(" 200"))
        });
        Self { process, address }
    }

    /// The URL of its bucket.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/farm")
    }

    /// What a process has to find in its environment to use it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ];
        let mut pairs = Vec::from(pairs);
        if !self.address.ip().is_loopback() {
            pairs.push(("AWS_ALLOW_HTTP", "true".to_owned()));
        }
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        pairs.into_iter().map(owned).collect()
    }

    /// Replaces the bytes of an object behind everybody's back.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn overwrite(&self, key: &str, bytes: &str) {
        let request = format!(
            "PUT /{BUCKET}/{key} HTTP/1.0\r\nHost: {}\r\nAuthorization: {AUTHORIZATION}\r\nContent-Length: {}\r\n\r\n{bytes}",
            self.address,
            bytes.len()
        );
        let mut stream = TcpStream::connect(self.address).expect("the S3 server");
        stream.write_all(request.as_bytes()).expect("the request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("its answer");
        assert!(
            answer
                .lines()
                .next()
                .is_some_and(|line| line.contains(" 200")),
            "{answer}"
        );
    }

    /// Stops it in the middle of whatever it does.
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    /// Goes on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.process.signal("CONT");
    }
}

/// A program that `cargo xtask test` installs below the target folder that this runs from; its bare
/// name where it is not there.
pub fn tool(program: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the path of this executable");
    let mut found = me.ancestors().map(|folder| folder.join(program));
    let bare = || program.rsplit('/').next().unwrap_or(program).into();
    found.find(|program| program.is_file()).unwrap_or_else(bare)
}
