//! Addresses as people write them, brought to one form: where to listen, and where the bus is. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The bus's port when none is given.
pub const DEFAULT_BUS_PORT: u16 = 4222;
/// The tunnels' UDP port when none is given.
pub const DEFAULT_TUNNEL_PORT: u16 = 6120;

/// Reads an address to listen on: `127.0.0.1:4222`, `[::1]:0`, `localhost:4222`, or `:4222` for all interfaces.
///
/// # Errors
/// What was found and how to write it.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{text:?} is not an address to listen on; write it like 127.0.0.1:{DEFAULT_BUS_PORT} or :0");
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = match host {
        "" => Ipv4Addr::UNSPECIFIED,
        "localhost" => Ipv4Addr::LOCALHOST,
        _ => return Err(wrong()),
    };
    Ok(SocketAddr::new(IpAddr::V4(host), port.parse().map_err(|_| wrong())?))
}

/// Reads where the bus is and writes it in full: `host` and `host:port` gain what they lack. They mean TLS; plain text
/// is only spoken where `nats://` says so. Several addresses, separated by commas, are the members of one cluster.
///
/// # Errors
/// What was found and how to write it.
pub fn normalise_bus_url(text: &str) -> Result<String, String> {
    let urls: Vec<String> = text.split(',').map(|one| normalise_one(one.trim())).collect::<Result<_, _>>()?;
    let plain = urls.iter().filter(|url| url.starts_with(PLAIN)).count();
    if plain != 0 && plain != urls.len() {
        return Err(format!("{text:?} mixes tls:// and nats://; write all of them the same way"));
    }
    Ok(urls.join(","))
}

/// What an address begins with where plain text is spoken.
const PLAIN: &str = "nats://";

/// Whether plain text is spoken at `url`, which is as [`normalise_bus_url`] writes it.
pub fn is_plain(url: &str) -> bool {
    url.starts_with(PLAIN)
}

fn normalise_one(text: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("{text:?} is not the address of a controller: {why}; write tls://HOST:PORT");
    let (scheme, rest) = text.split_once("://").unwrap_or(("tls", text));
    if !matches!(scheme, "nats" | "tls") {
        return Err(wrong(&format!("{scheme:?} is not spoken there")));
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err(wrong("user and password do not belong into it"));
    }
    let (host, port) = split_host(rest).ok_or_else(|| wrong("the port is not a number from 1 to 65535"))?;
    if host.is_empty() || host.contains(['/', ' ', '?', '#']) {
        return Err(wrong("the host is missing or not a host name"));
    }
    Ok(format!("{scheme}://{host}:{}", port.unwrap_or(DEFAULT_BUS_PORT)))
}

/// Host (an IPv6 one in its brackets) and port.
fn split_host(text: &str) -> Option<(String, Option<u16>)> {
    if let Ok(IpAddr::V6(bare)) = text.parse() {
        return Some((format!("[{bare}]"), None));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse().ok().filter(|port| *port > 0)?;
            Some((host.to_owned(), Some(port)))
        }
        _ => Some((text.to_owned(), None)),
    }
}

/// The host of a bus URL as [`normalise_bus_url`] writes it, without brackets; of several, that of the first.
pub fn host_of(url: &str) -> Option<&str> {
    let rest = url.split(',').next()?.split_once("://")?.1;
    let host = rest.rsplit_once(':')?.0;
    Some(host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host))
}

/// The port of a bus URL as [`normalise_bus_url`] writes it; of several, that of the first.
pub fn port_of(url: &str) -> Option<u16> {
    url.split(',').next()?.rsplit_once(':')?.1.parse().ok()
}

/// Whether `url`, as [`normalise_bus_url`] writes it, leads to nothing but the machine that uses it.
pub fn is_loopback(url: &str) -> bool {
    url.split(',').all(|one| match host_of(one) {
        Some("localhost") => true,
        Some(host) => host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_lacks_is_added() {
        for (given, full) in [
            ("ctl", "tls://ctl:4222"),
            ("ctl:1", "tls://ctl:1"),
            ("tls://ctl.example/", "tls://ctl.example:4222"),
            ("nats://10.0.0.1:9", "nats://10.0.0.1:9"),
            ("::1", "tls://[::1]:4222"),
            ("[::1]", "tls://[::1]:4222"),
            ("nats://[::1]:7", "nats://[::1]:7"),
            ("a, b:5", "tls://a:4222,tls://b:5"),
            ("nats://a,nats://b", "nats://a:4222,nats://b:4222"),
        ] {
            assert_eq!(normalise_bus_url(given).as_deref(), Ok(full), "{given}");
            assert_eq!(normalise_bus_url(full).as_deref(), Ok(full), "{full} again");
        }
        for bad in
            ["", "https://ctl:6120", "nats://", "ctl:0", "ctl:x", "nats://u:p@ctl", "nats://a/b", "a,,b", "a,nats://b"]
        {
            assert!(normalise_bus_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_host_of_an_address_is_found() {
        assert_eq!(host_of("nats://ctl:4222"), Some("ctl"));
        assert_eq!(host_of("nats://[::1]:4222,nats://b:1"), Some("::1"));
        assert_eq!((port_of("nats://[::1]:4222,nats://b:1"), port_of("tls://b:1")), (Some(4222), Some(1)));
    }

    #[test]
    fn plain_text_and_loopback_addresses_are_told_apart() {
        assert!(is_plain("nats://ctl:4222") && !is_plain("tls://ctl:4222"));
        for url in ["tls://127.0.0.1:1", "tls://[::1]:1", "nats://localhost:1", "tls://127.0.0.1:1,tls://127.1.2.3:1"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["tls://ctl:1", "tls://10.0.0.1:1", "tls://127.0.0.1:1,tls://ctl:1", "tls://localhost.example:1"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn addresses_to_listen_on_are_read() {
        for (text, full) in
            [(":0", "0.0.0.0:0"), ("localhost:5", "127.0.0.1:5"), ("[::1]:6", "[::1]:6"), ("1.2.3.4:7", "1.2.3.4:7")]
        {
            assert_eq!(parse_listen(text).map(|address| address.to_string()).as_deref(), Ok(full));
        }
        for bad in ["", "4222", "host:1", ":x", "1.2.3.4", ":70000"] {
            assert!(parse_listen(bad).is_err(), "{bad}");
        }
    }
}
