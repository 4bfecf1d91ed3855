//! Every kernel compiles for every architecture that it is meant for. Needs NVRTC and no GPU;
//! `cargo xtask test` installs it under the target folder.

use longtake_cuda::compile::{Arch, Compiler};
use longtake_cuda::kernels::known_kernels;

/// Stack bytes and spills that `ptxas -v` reports, summed over a kernel's functions.
fn spills(log: &str) -> u64 {
    let spilled = |line: &str| -> Option<u64> {
        let before = line.split(" bytes spill stores").next()?;
        before.rsplit(' ').next()?.parse().ok()
    };
    log.lines()
        .filter(|line| line.contains("spill stores"))
        .filter_map(spilled)
        .sum()
}

#[test]
fn every_kernel_compiles_without_spilling() {
    let mut wrong = Vec::new();
    for arch in [Arch(80), Arch(89), Arch(90)] {
        let compiler = Compiler::new(arch, None).unwrap_or_else(|e| {
            panic!("{e}; `cargo xtask test` installs it and sets LONGTAKE_CUDA_LIBS")
        });
        for spec in known_kernels(arch) {
            match compiler.compile(&spec, &["--ptxas-options=-v"]) {
                Err(error) => wrong.push(format!("sm_{}: {error}", arch.0)),
                Ok((cubin, log)) => {
                    assert!(cubin.starts_with(b"\x7fELF"), "{}", spec.name());
                    if std::env::var_os("LONGTAKE_KERNEL_LOG").is_some() {
                        println!("sm_{} {}\n{log}", arch.0, spec.name());
                    }
                    let spilled = spills(&log);
                    if spilled > 0 {
                        wrong.push(format!(
                            "sm_{} {}: {spilled} bytes spilled",
                            arch.0,
                            spec.name()
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
