//! Tells the service manager that a server is up, or stops, where systemd asks for it (`Type=notify`): `systemctl start`
//! returns when the controller answers, and not before. Called by `mod.rs`. Does nothing anywhere else.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::UnixDatagram;

/// The variable in which systemd says where it listens.
const SOCKET: &str = "NOTIFY_SOCKET";

/// It serves.
pub(super) fn ready() {
    tell("READY=1\n");
}

/// It was told to end, and does.
pub(super) fn stopping() {
    tell("STOPPING=1\n");
}

/// Whoever does not listen is not waited for: that would keep nobody from being served.
fn tell(state: &str) {
    let Some(path) = std::env::var_os(SOCKET).filter(|path| !path.is_empty()) else { return };
    if let Err(error) = send(&path, state) {
        tracing::warn!("cannot tell the service manager at {}: {error}", path.display());
    }
}

fn send(path: &OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    // An `@` stands for the zero byte of a name that is in no file system.
    #[cfg(target_os = "linux")]
    if let Some(name) = path.as_encoded_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(state.as_bytes(), &address).map(drop);
    }
    socket.send_to(state.as_bytes(), path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_arrives_at_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1\n").unwrap();
        let mut told = [0; 64];
        let length = manager.recv(&mut told).unwrap();
        assert_eq!(told.get(..length), Some(b"READY=1\n".as_slice()));
        assert!(send(dir.path().join("nobody").as_os_str(), "READY=1\n").is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_state_arrives_at_a_name_without_a_file() {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("orchard-notify-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_ref(), "STOPPING=1\n").unwrap();
        let mut told = [0; 64];
        let length = manager.recv(&mut told).unwrap();
        assert_eq!(told.get(..length), Some(b"STOPPING=1\n".as_slice()));
    }
}
