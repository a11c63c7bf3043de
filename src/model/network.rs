//! Where peers are, as far as bounds on strangers go: the network that one machine has to itself, and how many of
//! something each network has. Used by the broker, the relay and the controller's tables of failed logins.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The part of `address` by which strangers are told apart: a whole IPv4 address, and the /64 of an IPv6 one, all of
/// which one machine has for the asking.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// Counts by network, bounded for each. A network without any is not in it, so it is no larger than what it counts.
#[derive(Clone, Debug)]
pub struct PerNetwork {
    most: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One that counts, until it is dropped.
#[derive(Debug)]
pub struct Place {
    of: PerNetwork,
    network: IpAddr,
}

impl PerNetwork {
    /// At most `most` for each network.
    pub fn new(most: usize) -> Self {
        Self { most, counts: Arc::default() }
    }

    /// A place for one more at `address`; none when its network has as many as it may.
    pub fn enter(&self, address: IpAddr) -> Option<Place> {
        let network = network_of(address);
        let mut counts = self.lock();
        let count = counts.get(&network).copied().unwrap_or(0);
        if count >= self.most {
            return None;
        }
        counts.insert(network, count + 1);
        Some(Place { of: self.clone(), network })
    }

    /// Whether the network of `address` has more than half of what it may.
    pub fn is_crowded(&self, address: IpAddr) -> bool {
        self.count(address) > self.most / 2
    }

    /// How many the network of `address` has.
    pub fn count(&self, address: IpAddr) -> usize {
        self.lock().get(&network_of(address)).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Nothing panics while it is held.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of.lock();
        if let Some(count) = counts.get_mut(&self.network) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_machine_cannot_multiply_by_its_addresses() {
        assert_eq!(network_of(ip("2001:db8::1")), network_of(ip("2001:db8::ffff:1")));
        assert_ne!(network_of(ip("2001:db8::1")), network_of(ip("2001:db8:0:1::1")));
        assert_eq!(network_of(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_ne!(network_of(ip("192.0.2.1")), network_of(ip("192.0.2.2")));
    }

    #[test]
    fn a_full_network_keeps_no_other_out_and_nothing_is_left_behind() {
        let places = PerNetwork::new(2);
        let (one, two) = (places.enter(ip("2001:db8::1")).unwrap(), places.enter(ip("2001:db8::2")).unwrap());
        assert!(places.enter(ip("2001:db8::3")).is_none() && places.count(ip("2001:db8::9")) == 2);
        assert!(places.is_crowded(ip("2001:db8::9")) && !places.is_crowded(ip("192.0.2.1")));
        let other = places.enter(ip("192.0.2.1")).unwrap();
        drop(one);
        let three = places.enter(ip("2001:db8::3")).unwrap();
        drop((two, three, other));
        assert!(places.lock().is_empty());
    }
}
