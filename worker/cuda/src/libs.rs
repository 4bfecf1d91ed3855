//! The libraries that are looked up when the backend is opened.
//!
//! Nothing of CUDA is linked. `cudarc` asks the loader for each library by name when it is first used
//! and panics when there is none, so each is asked for here before. Folders named by
//! `LONGTAKE_CUDA_LIBS` are searched first: what is found there is loaded by its path, after which
//! the loader finds it by name too.

use crate::error::{CudaError, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Folders (separated by `:`) that the libraries are looked for in, before the loader's own.
pub const LIBRARY_FOLDERS: &str = "LONGTAKE_CUDA_LIBS";

/// A library, what it is for, and how to get it.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    /// Its name in messages.
    pub name: &'static str,
    /// How to get it.
    pub hint: &'static str,
    present: fn() -> bool,
}

// SAFETY of the four probes: each only asks the loader to open a library, which runs the
// initialisers of NVIDIA's libraries; they have no preconditions.
const LIBRARIES: [Library; 4] = [
    Library {
        name: "the NVIDIA driver",
        hint: "install driver 580 or newer for this GPU (libcuda.so.1 comes with it)",
        // SAFETY: see above.
        present: || unsafe { cudarc::driver::sys::is_culib_present() },
    },
    Library {
        name: "NVRTC",
        hint: "install CUDA 13's nvrtc (package cuda-nvrtc-13-0, or `pip install nvidia-cuda-nvrtc`) \
               and name its folder in LONGTAKE_CUDA_LIBS or LD_LIBRARY_PATH",
        // SAFETY: see above.
        present: || unsafe { cudarc::nvrtc::sys::is_culib_present() },
    },
    Library {
        name: "cuBLASLt",
        hint: "install CUDA 13's cublas (package libcublas-13-0, or `pip install nvidia-cublas`) \
               and name its folder in LONGTAKE_CUDA_LIBS or LD_LIBRARY_PATH",
        // SAFETY: see above.
        present: || unsafe { cudarc::cublaslt::sys::is_culib_present() },
    },
    Library {
        name: "cuDNN",
        hint: "install cuDNN 9.13 or newer (package cudnn9-cuda-13, or `pip install \
               nvidia-cudnn-cu13`) and name its folder in LONGTAKE_CUDA_LIBS or LD_LIBRARY_PATH",
        // SAFETY: see above.
        present: || unsafe { cudarc::cudnn::sys::is_culib_present() },
    },
];

/// Index of NVRTC in [`LIBRARIES`].
const NVRTC: usize = 1;

/// Loads what the folders of [`LIBRARY_FOLDERS`] have, once in a process.
fn preload() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let folders = std::env::var_os(LIBRARY_FOLDERS).unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
        // The driver comes with the system alone; a builtins library belongs to NVRTC.
        for stem in ["nvrtc-builtins", "nvrtc", "cublasLt", "cudnn"] {
            if let Some(path) = folders.iter().find_map(|folder| find(folder, stem)) {
                open(&path);
            }
        }
    });
}

/// The file `lib<stem>.so*` in `folder` with the shortest name.
fn find(folder: &Path, stem: &str) -> Option<PathBuf> {
    let prefix = format!("lib{stem}.so");
    let names = std::fs::read_dir(folder).ok()?.flatten();
    names
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&prefix))
        })
        .min_by_key(|path| (path.as_os_str().len(), path.clone()))
}

/// Loads a library for the rest of the process; one that does not load is found missing later.
fn open(path: &Path) {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the operator named the folder; NVIDIA's libraries' initialisers have no preconditions.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => std::mem::forget(library),
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot load"),
    }
}

/// Every library and whether it can be loaded.
pub fn survey() -> Vec<(Library, bool)> {
    preload();
    LIBRARIES.iter().map(|l| (*l, (l.present)())).collect()
}

/// Runs `f`, in which bindings panic when a library is too old to have what they look for.
pub(crate) fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    // Nothing of a half opened device is used after a panic.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    outcome.unwrap_or_else(|payload| {
        let words = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        Err(CudaError::Library {
            name: "a library of CUDA's",
            hint: format!(
                "driver 580, CUDA 13.0 and cuDNN 9.13 or newer are needed ({})",
                words.unwrap_or("one of them is older")
            ),
        })
    })
}

fn require_all(needed: &[Library]) -> Result<()> {
    preload();
    match needed.iter().find(|library| !(library.present)()) {
        None => Ok(()),
        Some(missing) => Err(CudaError::Library {
            name: missing.name,
            hint: missing.hint.to_owned(),
        }),
    }
}

/// Fails with the first library that is missing.
pub(crate) fn require() -> Result<()> {
    require_all(&LIBRARIES)
}

/// Fails when kernels cannot be compiled.
pub(crate) fn require_compiler() -> Result<()> {
    require_all(&LIBRARIES[NVRTC..=NVRTC])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_name_is_the_one_to_load() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "libnvrtc.so.13.0.88",
            "libnvrtc.so.13",
            "libnvrtc-builtins.so.13.0",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = |stem| find(folder.path(), stem).map(|p| p.file_name().unwrap().to_owned());
        assert_eq!(found("nvrtc").unwrap(), "libnvrtc.so.13");
        assert_eq!(
            found("nvrtc-builtins").unwrap(),
            "libnvrtc-builtins.so.13.0"
        );
        assert_eq!(found("cudnn"), None);
    }
}
