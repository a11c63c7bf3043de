//! Which port of the host leads to which port of a guest: what QEMU's `info usernet` tells, and the bounded table of
//! forwards made so far. Pure; used by `vm.rs`.

use core::net::Ipv4Addr;

use super::args::NETDEV;

/// How many guest ports of one VM are reachable at a time. Each costs QEMU a file descriptor, of which it has 1,024;
/// the one unused for longest is given up for the next, connections through it live on.
pub const MAX_FORWARDS: usize = 256;

/// The address that QEMU's own DHCP server gives its only client; ports are forwarded to it, too.
pub const FIRST_LEASE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Guest port and host port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// In the guest.
    pub guest: u16,
    /// On the host's loopback address.
    pub host: u16,
}

/// The forwards that `info usernet` lists.
pub fn parse(text: &str) -> Vec<Forward> {
    let forward = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        if words.next()? != "TCP[HOST_FORWARD]" {
            return None;
        }
        // file descriptor, host address, host port, guest address, guest port
        let host = words.nth(2)?.parse().ok()?;
        let guest = words.nth(1)?.parse().ok()?;
        Some(Forward { guest, host })
    };
    text.lines().filter_map(forward).collect()
}

/// The command that opens a forward to a guest port, on a host port that the kernel chooses.
pub fn add_command(guest: u16) -> String {
    format!("hostfwd_add {NETDEV} tcp:127.0.0.1:0-:{guest}")
}

/// The command that closes a forward.
pub fn remove_command(host: u16) -> String {
    format!("hostfwd_remove {NETDEV} tcp:127.0.0.1:{host}")
}

/// The forwards of one VM, the one used last at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwards(Vec<Forward>);

impl Forwards {
    /// Starts over from what QEMU lists.
    pub fn replace(&mut self, listed: Vec<Forward>) {
        self.0 = listed;
    }

    /// The host port for a guest port, which counts as a use.
    pub fn host_port(&mut self, guest: u16) -> Option<u16> {
        let at = self.0.iter().position(|f| f.guest == guest)?;
        let forward = self.0.remove(at);
        self.0.push(forward);
        Some(forward.host)
    }

    /// Takes out the one to give up before another is added, if the table is full.
    pub fn evict(&mut self) -> Option<Forward> {
        (self.0.len() >= MAX_FORWARDS).then(|| self.0.remove(0))
    }

    /// Notes a new one.
    pub fn add(&mut self, forward: Forward) {
        self.0.push(forward);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forwards_are_read_out_of_qemus_table() {
        let text = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
            TCP[HOST_FORWARD]  21       127.0.0.1 38455       10.0.2.15  8080     0     0\r\n  \
            TCP[ESTABLISHED]   22       127.0.0.1 38455       10.0.2.15  8080     0     0\r\n  \
            UDP[HOST_FORWARD]  23       127.0.0.1 1000        10.0.2.15    53     0     0\r\n  \
            TCP[HOST_FORWARD]  14       127.0.0.1 42111       10.0.2.15    22     0     0\r\n";
        let expected = [Forward { guest: 8080, host: 38455 }, Forward { guest: 22, host: 42111 }];
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn the_forward_unused_for_longest_goes_first() {
        let mut forwards = Forwards::default();
        for guest in 1..=u16::try_from(MAX_FORWARDS).unwrap() {
            assert_eq!(forwards.evict(), None);
            forwards.add(Forward { guest, host: 1000 + guest });
        }
        assert_eq!(forwards.host_port(1), Some(1001));
        assert_eq!(forwards.evict(), Some(Forward { guest: 2, host: 1002 }));
        assert_eq!((forwards.host_port(2), forwards.host_port(1)), (None, Some(1001)));
    }

    proptest! {
        #[test]
        fn no_text_upsets_the_parser(text in ".*") {
            parse(&text);
        }
    }
}
