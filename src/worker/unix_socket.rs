//! Unix sockets in folders that may lie deep: their paths have a limit of some hundred bytes, which a folder's own has not.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// The longest path of a Unix socket that every system takes: macOS has 104 bytes with the closing zero, Linux 108.
pub(super) const MAX_SOCKET_PATH: usize = 103;

/// Connects to the socket `name` in `folder`, however deep the folder lies where the system allows it.
///
/// # Errors
/// Whatever the system says; a path that is too long is named as such.
pub(super) async fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let path = folder.join(name);
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return UnixStream::connect(path).await;
    }
    let (_open, path) = short(folder, name)?;
    UnixStream::connect(path).await
}

/// Listens on the socket `name` in `folder`, in the place of what is there.
///
/// # Errors
/// As for [`connect`].
pub(super) fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let path = folder.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return UnixListener::bind(path);
    }
    let (_open, path) = short(folder, name)?;
    UnixListener::bind(path)
}

/// A short name for a file in the folder, good while the folder is held open.
#[cfg(target_os = "linux")]
fn short(folder: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    use std::os::fd::AsRawFd;
    let folder = File::open(folder)?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    Ok((folder, path.into()))
}

#[cfg(not(target_os = "linux"))]
fn short(folder: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let path = folder.join(name);
    let why = format!("the path {} is longer than the {MAX_SOCKET_PATH} bytes a socket may have", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}
