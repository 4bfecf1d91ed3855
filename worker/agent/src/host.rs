//! What the operating system knows about this process and machine.

use std::fs;
use std::path::Path;

/// Largest resident memory of this process so far, in bytes; 0 where the system does not say.
pub fn peak_rss_bytes() -> u64 {
    status_field("/proc/self/status", "VmHWM:")
}

/// The same of another process.
pub fn peak_rss_bytes_of(process: u32) -> u64 {
    status_field(&format!("/proc/{process}/status"), "VmHWM:")
}

/// Memory of this machine in bytes, or what a container lets this process have of it; 0 where the
/// system does not say.
pub fn memory_bytes() -> u64 {
    let machine = status_field("/proc/meminfo", "MemTotal:");
    let limit = group_limit_bytes().unwrap_or(u64::MAX);
    machine.min(limit)
}

/// The least memory that a control group of this process, or one that it is in, may take.
fn group_limit_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let place = root.join(own);
    let folders = place
        .ancestors()
        .take_while(|folder| folder.starts_with(root));
    let limits = folders.filter_map(|folder| {
        let text = fs::read_to_string(folder.join("memory.max")).ok()?;
        text.trim().parse().ok() // "max" where there is none
    });
    limits.min()
}

/// Tells apart machines, as far as addresses go: what shares a loopback interface is one. `None` where
/// the system does not say.
pub fn machine() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let network = fs::read_link("/proc/self/ns/net").ok()?;
    let network = network.to_string_lossy();
    let number = network.trim_matches(|c: char| !c.is_ascii_digit());
    Some(format!("{}-{number}", boot.trim()))
}

/// Memory that can still be had without swapping, in bytes; 0 where the system does not say.
pub fn memory_available_bytes() -> u64 {
    status_field("/proc/meminfo", "MemAvailable:")
}

/// Cores that this process may use, at least 1.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A `Name:   123 kB` line of a file under /proc, in bytes.
fn status_field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_peak_memory() {
        let before = peak_rss_bytes();
        let block = vec![1u8; 64 << 20];
        assert!(block.iter().map(|&b| u64::from(b)).sum::<u64>() == 64 << 20);
        assert!(peak_rss_bytes() >= before.max(64 << 20));
        assert!(memory_bytes() > memory_available_bytes());
    }
}
