//! Files that take their name only when they are whole.

use super::{MediaError, Result};
use std::path::Path;
use tempfile::NamedTempFile;

/// A file in the folder of `path`, so that it can be renamed to it; gone when dropped.
pub(super) fn temporary_beside(path: &Path) -> Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".longtake-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What an ordinary file gets; the process's umask still applies.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
        .tempfile_in(folder)
        .map_err(MediaError::io("write into the folder of", path))
}
