//! What the tests of the model share.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod manifest;
pub mod random;

use longtake_cpu::{CpuBackend, Isa};
use std::path::{Path, PathBuf};

/// A file or folder of the golden files.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

/// The model that is shipped.
pub fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/models/ltxv-tiny")
}

/// The CPU at its best level.
pub fn backend(threads: usize) -> CpuBackend {
    CpuBackend::new(threads, Isa::detect()).expect("the detected level is available")
}

/// Copies folder `from` with everything in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("folder") {
        let path = entry.expect("entry").path();
        let target = to.join(path.file_name().expect("name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copy");
        }
    }
}

/// A copy of the golden model to damage.
pub fn model_copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    copy_folder(&golden("model"), dir.path());
    dir
}
