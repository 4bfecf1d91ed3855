//! Several machines on one: network namespaces with addresses of their own, plugged into a switch
//! that can pull a plug. They have no names and end with the processes in them, so nothing is left
//! behind, whatever happens to a test.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the environment of a process that is in a network of its own already.
const MARK: &str = "LONGTAKE_TEST_NETWORK";
const SWITCH: &str = "switch";
/// Where this process is, as seen by the other machines.
pub const HUB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// Longest wait for a namespace to come into being.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts this program anew in a network of its own, in which it is at [`HUB`], beside a switch that
/// nothing is plugged into yet. Call it first thing in `main`. Root may do that; others may where
/// the kernel lets them be root in a namespace.
///
/// # Panics
/// When the system refuses.
pub fn isolate() {
    if std::env::var_os(MARK).is_none() {
        let mut command = Command::new("unshare");
        // With process ids of its own, nothing that it has started outlives it.
        command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        if !is_root() {
            command.arg("--map-root-user");
        }
        let me = std::env::current_exe().expect("the path of this executable");
        let error = command
            .arg(me)
            .args(std::env::args_os().skip(1))
            .env(MARK, "1")
            .exec();
        panic!("start unshare: {error}; install util-linux");
    }
    ip("link set lo up");
    ip(&format!("link add {SWITCH} type bridge"));
    ip(&format!("address add {HUB}/24 dev {SWITCH}"));
    ip(&format!("link set {SWITCH} up"));
}

pub(crate) fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

/// Waits until a process that was started by `unshare --net` is in a network of its own.
pub(crate) fn wait_for_namespace(keeper: &Child) {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let (ours, started) = (namespace("self"), Instant::now());
    while namespace(&keeper.id().to_string()).is_none_or(|its| Some(its) == ours) {
        assert!(started.elapsed() < PATIENCE, "no network namespace");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `ip` with arguments that hold no spaces.
#[track_caller]
fn ip(args: &str) {
    let out = Command::new("ip").args(args.split(' ')).output();
    let out = out.unwrap_or_else(|error| panic!("start ip: {error}; install iproute2"));
    let story = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "ip {args}: {story}; network namespaces need root, or a kernel that lets users make them"
    );
}

/// How a machine is cut off. Neither tells the programs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its cable is pulled: its network card notices.
    Cable,
    /// The switch forgets its port: everything is sent and nothing arrives.
    Port,
}

/// Another machine.
pub struct Machine {
    /// Keeps the namespace; ends when its standard input does, that is with us at the latest.
    keeper: Child,
    address: IpAddr,
    /// Our end of its cable.
    port: String,
}

impl Machine {
    /// Plugs one in. `number` is the last part of its address, from 2 on.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn new(number: u8) -> Self {
        let keeper = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        let keeper = keeper.expect("unshare starts, it did before");
        let machine = Self {
            keeper,
            address: IpAddr::V4(Ipv4Addr::new(10, 77, 0, number)),
            port: format!("port{number}"),
        };
        wait_for_namespace(&machine.keeper);
        let Self { address, port, .. } = &machine;
        let pid = machine.keeper.id();
        ip(&format!(
            "link add {port} type veth peer name eth0 netns {pid}"
        ));
        ip(&format!("link set {port} master {SWITCH} up"));
        machine.ip("link set lo up");
        machine.ip(&format!("address add {address}/24 dev eth0"));
        machine.ip("link set eth0 up");
        machine
    }

    #[track_caller]
    fn ip(&self, args: &str) {
        let out = self.command(Path::new("ip")).args(args.split(' ')).output();
        let out = out.expect("nsenter runs");
        let story = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "ip {args} on {}: {story}", self.port);
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// A program that will run there. It becomes the process that is started, so signals reach it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.keeper.id().to_string();
        command
            .args(["--net", "--target", &target, "--"])
            .arg(program);
        command
    }

    /// Cuts it off.
    pub fn cut(&self, how: Cut) {
        let port = &self.port;
        match how {
            Cut::Cable => ip(&format!("link set {port} down")),
            Cut::Port => ip(&format!("link set {port} nomaster")),
        }
    }

    /// Undoes any cut.
    pub fn mend(&self) {
        ip(&format!("link set {} master {SWITCH} up", self.port));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
