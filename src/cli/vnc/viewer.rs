//! The viewer of this machine, and what it is told.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;

use tokio::process::{Child, Command};

/// Where it is to connect, and as whom.
pub(super) struct Wanted<'a> {
    pub(super) address: SocketAddr,
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a str>,
}

impl Wanted<'_> {
    /// The address for people: without the password.
    pub(super) fn shown(&self) -> String {
        self.url(None)
    }

    fn url(&self, password: Option<&str>) -> String {
        let login = match (self.user, password) {
            (None, None) => String::new(),
            (user, None) => format!("{}@", escaped(user.unwrap_or_default())),
            (user, Some(password)) => format!("{}:{}@", escaped(user.unwrap_or_default()), escaped(password)),
        };
        format!("vnc://{login}{}", self.reachable())
    }

    /// Where to connect to what listens there: at every address means at that of this machine, too.
    fn reachable(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }

    /// The programs that may show it, the best first.
    fn programs(&self) -> Vec<Command> {
        let opener = |name| {
            let mut command = Command::new(name);
            command.arg(self.url(self.password));
            command
        };
        if cfg!(target_os = "macos") {
            return vec![opener("open")];
        }
        // TigerVNC's and RealVNC's; the former takes its login from here.
        let mut viewer = Command::new("vncviewer");
        let reachable = self.reachable();
        viewer.arg(match reachable.ip() {
            IpAddr::V4(ip) => format!("{ip}::{}", reachable.port()),
            IpAddr::V6(ip) => format!("[{ip}]::{}", reachable.port()),
        });
        for (name, value) in [("VNC_USERNAME", self.user), ("VNC_PASSWORD", self.password)] {
            if let Some(value) = value {
                viewer.env(name, value);
            }
        }
        vec![viewer, opener("xdg-open")]
    }
}

/// Text within an address.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            _ => {
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
        escaped
    })
}

/// A viewer that was started. It lives on when this is dropped, without the way to its VM.
pub(super) struct Viewer {
    name: String,
    child: Child,
}

impl Viewer {
    /// Starts one, if there is one and a screen to show it on; tells why not.
    pub(super) fn start(wanted: &Wanted<'_>) -> Option<Self> {
        let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
        if !cfg!(target_os = "macos") && !has_screen {
            eprintln!(
                "there is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set); open the address yourself"
            );
            return None;
        }
        for mut command in wanted.programs() {
            let name = command.as_std().get_program().to_string_lossy().into_owned();
            match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
                Ok(child) => return Some(Self { name, child }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => eprintln!("cannot start {name}: {error}"),
            }
        }
        eprintln!("there is no viewer here (neither vncviewer nor xdg-open); open the address yourself");
        None
    }

    /// Waits until it has ended, and tells of a failure. Cancel safe.
    pub(super) async fn ended(&mut self) {
        match self.child.wait().await {
            Ok(status) if !status.success() => {
                eprintln!("{} ended with {status}; the address above is open until Ctrl-C", self.name);
            }
            Ok(_) => tracing::debug!("{} has ended", self.name),
            Err(error) => tracing::debug!("{} is not known any more: {error}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_says_who_logs_in_but_is_shown_without_the_password() {
        let wanted = |address: &str, user, password| Wanted { address: address.parse().unwrap(), user, password };
        let both = wanted("127.0.0.1:5901", Some("a b"), Some("p@s/s"));
        assert_eq!(both.shown(), "vnc://a%20b@127.0.0.1:5901");
        assert_eq!(both.url(both.password), "vnc://a%20b:p%40s%2Fs@127.0.0.1:5901");
        assert_eq!(wanted("[::]:1", None, None).shown(), "vnc://[::1]:1");
        let alone = wanted("0.0.0.0:5901", None, Some("x"));
        assert_eq!(
            (alone.shown().as_str(), alone.url(alone.password).as_str()),
            ("vnc://127.0.0.1:5901", "vnc://:x@127.0.0.1:5901")
        );
    }
}
