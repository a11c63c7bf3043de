//! A guest's place in the network of its host: a network card of its own on one of the host's bridges. Asked by `mod.rs`
//! before a VM is made, and by `launch.rs` at each start.
//!
//! Who may join which bridge is for the host to say: QEMU's `qemu-bridge-helper` makes the card and obeys
//! `/etc/qemu/bridge.conf`, whoever runs it. QEMU would start it by itself (`-netdev bridge`), but QEMU's sandbox lets it
//! start nothing and gain no rights. So the worker starts it, is sent the card, and hands it on as QEMU's standard input,
//! for which QEMU has no other use: to any other number a descriptor comes only by unsafe code, or by a moment in which it
//! leaks into all else that is being started. The card is there for as long as QEMU holds it. Whoever crashes leaves none.
//!
//! The guest keeps its first card, in QEMU's user network, for what Orchard itself needs: SSH and tunnels work before the
//! guest has an address on the bridge, without learning which, where a guest does not answer its own host, and where that
//! network has no DHCP. There the user network is shut (`restrict`): it names no router and no name server, so that the
//! guest's way out is the bridge alone, and what listens on the worker's loopback address is out of reach.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::super::RuntimeError;

/// Where the packages that bring QEMU keep the helper.
const HELPERS: [&str; 4] = [
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/lib64/qemu/qemu-bridge-helper",
    "/usr/local/libexec/qemu-bridge-helper",
];
/// Where Linux tells of its network interfaces; those that are bridges have a folder `bridge`.
const NETWORKS: &str = "/sys/class/net";

/// Makes a card on the bridge `name`. Dropped, it is gone again.
///
/// # Errors
/// What is in the way, and what to do about it.
pub async fn join(name: &str) -> Result<OwnedFd, RuntimeError> {
    let networks = std::fs::read_dir(NETWORKS).into_iter().flatten().flatten().map(|entry| entry.path());
    check(name, &networks.collect::<Vec<_>>(), Path::exists)?;
    let helper = HELPERS.iter().map(Path::new).find(|path| path.exists());
    let helper = helper.ok_or_else(|| {
        refusal(name, &format!("qemu-bridge-helper is not installed. Looked for {}", HELPERS.join(", ")))
    })?;
    linux::card(helper, name).await
}

/// Whether there is such a bridge. Pure.
fn check(name: &str, networks: &[PathBuf], exists: impl Fn(&Path) -> bool) -> Result<(), RuntimeError> {
    let is_bridge = |path: &PathBuf| exists(&path.join("bridge"));
    let bridges: Vec<_> = networks.iter().filter(|path| is_bridge(path)).filter_map(|path| path.file_name()).collect();
    if bridges.iter().any(|bridge| *bridge == name) {
        return Ok(());
    }
    let found = networks.iter().any(|path| path.file_name().is_some_and(|found| found == name));
    let what = if !found && cfg!(not(target_os = "linux")) {
        "with QEMU this works on Linux hosts only".to_owned()
    } else if !found {
        "this worker's host has no such interface".to_owned()
    } else {
        format!(
            "this interface of the worker's host is no bridge. QEMU needs one; to put the interface on a new one: \
             ip link add br0 type bridge; ip link set {name} master br0 (its addresses then belong on br0)"
        )
    };
    let names: Vec<_> = bridges.iter().map(|bridge| bridge.to_string_lossy()).collect();
    Err(refusal(
        name,
        &if names.is_empty() { what } else { format!("{what}. There are bridges: {}", names.join(", ")) },
    ))
}

/// What to do about what the helper said.
fn explain(said: &str, name: &str, helper: &Path) -> RuntimeError {
    let helper = helper.display();
    let what = if said.contains("denied by acl") || said.contains("acl file") {
        format!(
            "this worker's host does not allow it. Who runs that host can: with the line `allow {name}` in \
             /etc/qemu/bridge.conf ({said})"
        )
    } else if said.contains("Operation not permitted") || said.contains("Permission denied") {
        format!(
            "the worker may make no network cards: run it as root, or have root give QEMU's helper the right with \
             `chmod u+s {helper}` ({said})"
        )
    } else if said.contains("create tun device") {
        format!("the kernel of this worker's host makes no network cards; load its module with `modprobe tun` ({said})")
    } else {
        said.to_owned()
    };
    refusal(name, &what)
}

fn refusal(name: &str, what: &str) -> RuntimeError {
    RuntimeError::State(format!("bridged network (net-bridged {name}): {what}"))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::IoSliceMut;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::time::Duration;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::super::super::RuntimeError;
    use super::super::super::tool::Call;
    use super::{explain, refusal};

    /// The helper takes some milliseconds.
    const LIMIT: Duration = Duration::from_secs(20);

    pub(super) async fn card(helper: &Path, name: &str) -> Result<OwnedFd, RuntimeError> {
        let (ours, theirs) = UnixStream::pair().map_err(RuntimeError::io("cannot be sent a network card"))?;
        // `vnet`: with packets come the notes on them that virtio has, so that neither side need finish checksums.
        let args = ["--use-vnet".to_owned(), format!("--br={name}"), "--fd=0".to_owned()];
        let input = Some(OwnedFd::from(theirs));
        let call = Call { program: helper, args: &args, cwd: None, limit: LIMIT, note: None, input };
        match call.run(&mut |_| {}).await {
            Ok(_) => {}
            Err(RuntimeError::Tool(said)) => return Err(explain(&said, name, helper)),
            Err(error) => return Err(error),
        }
        // It has ended, so what it sent is here, or never comes.
        received(&ours)?.ok_or_else(|| refusal(name, "QEMU's helper made no network card and did not say why"))
    }

    /// The descriptor that was sent over a socket.
    fn received(socket: &UnixStream) -> Result<Option<OwnedFd>, RuntimeError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let taken = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags);
        taken.map_err(|error| RuntimeError::io("cannot be sent a network card")(error.into()))?;
        let card = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sent) => sent.next(),
            _ => None,
        });
        Ok(card)
    }

    #[cfg(test)]
    mod tests {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

        use super::*;

        #[test]
        fn what_is_sent_is_taken_and_nothing_is_waited_for() {
            let (ours, theirs) = UnixStream::pair().unwrap();
            received(&ours).unwrap_err();
            let file = std::fs::File::open("/dev/null").unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            use std::os::fd::AsFd as _;
            let sent = [file.as_fd()];
            assert!(control.push(SendAncillaryMessage::ScmRights(&sent)));
            sendmsg(&theirs, &[std::io::IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
            let card = received(&ours).unwrap().unwrap();
            assert!(rustix::io::fcntl_getfd(&card).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            drop(theirs);
            assert!(received(&ours).unwrap().is_none());
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod linux {
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use super::super::super::RuntimeError;
    use super::explain;

    /// Never asked: a host without [`super::NETWORKS`] has no bridge that is known here.
    pub(super) async fn card(helper: &Path, name: &str) -> Result<OwnedFd, RuntimeError> {
        Err(explain("QEMU makes cards on Linux hosts only", name, helper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bridge_is_refused_with_those_that_are() {
        let networks: Vec<PathBuf> = ["lo", "eth0", "br0", "lan"].map(|name| Path::new(NETWORKS).join(name)).into();
        let bridges = |path: &Path| path.ends_with("br0/bridge") || path.ends_with("lan/bridge");
        let check = |name| check(name, &networks, bridges).map_err(|error| error.to_string());
        check("br0").unwrap();
        for (name, why) in [
            ("eth0", "ip link set eth0 master br0"),
            ("eth1", "no such interface. There are bridges: br0, lan"),
            ("..", "no such interface"),
            ("br0/../eth0", "no such interface"),
            ("", "no such interface"),
        ] {
            let error = check(name).unwrap_err();
            assert!(error.contains(why) && error.contains("net-bridged"), "{error}");
        }
    }

    #[test]
    fn what_the_helper_says_comes_with_what_to_do() {
        let explain = |said| explain(said, "br0", Path::new("/h/helper")).to_string();
        for (said, what) in [
            ("access denied by acl file", "`allow br0` in /etc/qemu/bridge.conf"),
            ("failed to parse default acl file `/etc/qemu/bridge.conf'", "`allow br0` in"),
            ("failed to create tun device: Operation not permitted", "`chmod u+s /h/helper`"),
            ("failed to create tun device: No such file or directory", "modprobe tun"),
            ("failed to get mtu of bridge `br0': No such device", "failed to get mtu"),
        ] {
            let error = explain(said);
            assert!(error.contains(what) && error.contains(said), "{error}");
        }
    }
}
