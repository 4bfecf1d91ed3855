//! CUDA C++ to cubin through NVRTC, kept on disk.
//!
//! A cubin is found again by the hash of everything that determines it: source, definitions,
//! architecture and compiler version. A cache that cannot be written to costs time, nothing else.

use crate::error::{CudaError, Result};
use crate::kernels::KernelSpec;
use cudarc::nvrtc::{result as nvrtc, sys};
use std::ffi::{CStr, CString};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A real architecture, such as 90 for `sm_90`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch(pub u32);

/// Compiles kernels and remembers the results.
#[derive(Debug)]
pub struct Compiler {
    arch: Arch,
    version: (i32, i32),
    folder: Option<PathBuf>,
}

impl Compiler {
    /// A compiler for `arch` that keeps cubins in `folder`, if there is one.
    pub fn new(arch: Arch, folder: Option<PathBuf>) -> Result<Self> {
        crate::libs::require_compiler()?;
        let mut version = (0, 0);
        // SAFETY: both are valid for writing; NVRTC is loaded.
        unsafe { sys::nvrtcVersion(&mut version.0, &mut version.1) };
        Ok(Self {
            arch,
            version,
            folder,
        })
    }

    /// The cubin of a kernel, from the cache when it is there.
    pub fn cubin(&self, spec: &KernelSpec) -> Result<Vec<u8>> {
        let Some(folder) = &self.folder else {
            return self.compile(spec, &[]).map(|(cubin, _)| cubin);
        };
        let path = folder.join(format!("{}.cubin", self.key(spec)));
        if let Some(cubin) = read_entry(&path) {
            return Ok(cubin);
        }
        let (cubin, _) = self.compile(spec, &[])?;
        if let Err(error) = write_entry(folder, &path, &cubin) {
            tracing::warn!(
                path = %path.display(), %error,
                "the compiled kernel is not kept: the next start compiles it again"
            );
        }
        Ok(cubin)
    }

    /// Hash of what determines the cubin.
    fn key(&self, spec: &KernelSpec) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(spec.source().as_bytes());
        for define in spec.defines() {
            hash.update(&[0]);
            hash.update(define.as_bytes());
        }
        let (Arch(arch), (major, minor)) = (self.arch, self.version);
        hash.update(format!("\0sm_{arch} nvrtc {major}.{minor}").as_bytes());
        format!("{}-{}", spec.name(), &hash.finalize().to_hex()[..32])
    }

    /// Compiles, without looking at the cache; the cubin and the compiler's log.
    pub fn compile(&self, spec: &KernelSpec, more: &[&str]) -> Result<(Vec<u8>, String)> {
        let failed = |log: String| CudaError::Compile {
            kernel: spec.name(),
            log,
        };
        let source = CString::new(spec.source()).map_err(|e| failed(e.to_string()))?;
        let program =
            Program(nvrtc::create_program(&source, None).map_err(|e| failed(format!("{e:?}")))?);
        let mut options = vec![
            format!("--gpu-architecture=sm_{}", self.arch.0),
            "--std=c++17".to_owned(),
            "-default-device".to_owned(),
        ];
        options.extend(spec.defines().iter().map(|define| format!("-D{define}")));
        options.extend(more.iter().map(|&option| option.to_owned()));
        // SAFETY: the program is valid until it is dropped.
        let outcome = unsafe { nvrtc::compile_program(program.0, &options) };
        let log = program.log();
        outcome.map_err(|_| failed(log.clone()))?;
        let mut size = 0;
        // SAFETY: the program is valid and `size` is for writing.
        let status = unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) };
        if status != sys::nvrtcResult::NVRTC_SUCCESS || size == 0 {
            return Err(failed(format!("no cubin came out ({status:?})")));
        }
        let mut cubin = vec![0u8; size];
        // SAFETY: `cubin` has the size that was asked for.
        let status = unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) };
        if status != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(failed(format!("no cubin came out ({status:?})")));
        }
        Ok((cubin, log))
    }
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program is valid; its log ends with a zero.
        let log = unsafe { nvrtc::get_program_log(self.0) }.unwrap_or_default();
        if log.is_empty() {
            return String::new();
        }
        // SAFETY: NVRTC ends the log with a zero inside the buffer.
        let text = unsafe { CStr::from_ptr(log.as_ptr().cast()) };
        text.to_string_lossy().into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `create_program`, destroyed once.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

/// The folder of compiled kernels: `LONGTAKE_KERNEL_CACHE`, else below the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("LONGTAKE_KERNEL_CACHE") {
        return (!folder.is_empty()).then(|| PathBuf::from(folder));
    }
    let user = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    user.map(|folder| folder.join("longtake/kernels"))
}

/// Bytes of an entry's check: the first half of the hash of what follows.
const CHECK_BYTES: usize = 16;

fn check(cubin: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::hash(cubin).as_bytes()[..CHECK_BYTES]);
    check
}

/// An entry whose check fits; a damaged one counts as missing.
fn read_entry(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (found, cubin) = bytes.split_at_checked(CHECK_BYTES)?;
    (found == check(cubin)).then(|| cubin.to_vec())
}

/// Writes an entry beside its name and renames it, so that nobody reads half of one.
fn write_entry(folder: &Path, path: &Path, cubin: &[u8]) -> Result<()> {
    let cache = |source| CudaError::Cache {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(folder).map_err(cache)?;
    let beside = path.with_extension(format!("part-{}", std::process::id()));
    let written = fs::File::create(&beside).and_then(|mut file| {
        file.write_all(&check(cubin))?;
        file.write_all(cubin)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    });
    written.map_err(|source| {
        // What is left of it only takes room.
        let _ = fs::remove_file(&beside);
        cache(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_and_damaged_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.cubin");
        assert_eq!(read_entry(&path), None);
        write_entry(folder.path(), &path, b"code").unwrap();
        assert_eq!(read_entry(&path).unwrap(), b"code");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(read_entry(&path), None);
        fs::write(&path, b"short").unwrap();
        assert_eq!(read_entry(&path), None);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let below = file.join("kernels");
        let error = write_entry(&below, &below.join("k.cubin"), b"code").unwrap_err();
        assert!(error.to_string().contains("k.cubin"), "{error}");
    }
}
