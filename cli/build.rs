//! Keeps the binary small: equal functions are kept once (many generic ones come out the same for
//! several types), and relocations are packed where the C library knows how to read them.

use std::process::Command;

/// The first glibc that reads packed relocations (`DT_RELR`).
const GLIBC_MINOR_LEAST: u32 = 36;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |part: &str| std::env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    // Where Rust links with LLD by itself; GNU's linker does not know the flags.
    if target("ARCH") != "x86_64" || target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    if std::env::var("HOST") == std::env::var("TARGET") && glibc_minor() >= Some(GLIBC_MINOR_LEAST)
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// N of this machine's glibc 2.N, if it has one that says so.
fn glibc_minor() -> Option<u32> {
    let out = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.trim()
        .strip_prefix("glibc 2.")?
        .split('.')
        .next()?
        .parse()
        .ok()
}
