//! Where peers are, as far as bounds on strangers go: the network that one machine has to itself, and how many of
//! something each network has. Used by the broker, the relay and the controller's tables of failed logins.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Networks' worth of places that the whole /48 of an IPv6 address has: who is given one /64 is often given 65,536.
const NETWORKS_PER_SITE: usize = 4;
/// The fewest places that strangers of all networks together have, however small the room is.
const MIN_IN_ALL: usize = 64;

/// The part of `address` by which strangers are told apart: a whole IPv4 address, and the /64 of an IPv6 one, all of
/// which one machine has for the asking. This machine's own addresses are one.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        own if own.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) => IpAddr::V6(prefix(v6, 64)),
        v4 => v4,
    }
}

/// The /48 that `network` is in; none for IPv4, where nobody is given so many.
fn site_of(network: IpAddr) -> Option<Ipv6Addr> {
    match network {
        IpAddr::V6(v6) => Some(prefix(v6, 48)),
        IpAddr::V4(_) => None,
    }
}

/// The first `bits` of `address`, less than all.
fn prefix(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & !(u128::MAX >> bits))
}

/// How many of `room` strangers may have, those of all networks together: a quarter, so that however many networks they
/// have, those who have proven who they are keep the rest.
pub fn share_of_strangers(room: usize) -> usize {
    (room / 4).max(MIN_IN_ALL)
}

/// Counts by network, bounded for each, for the site around it and over all. A network without any is not in it, so it is
/// no larger than what it counts.
#[derive(Clone, Debug)]
pub struct PerNetwork {
    most: usize,
    most_in_all: usize,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    networks: HashMap<IpAddr, usize>,
    sites: HashMap<Ipv6Addr, usize>,
    all: usize,
}

impl Counts {
    fn of_network(&self, network: IpAddr) -> usize {
        self.networks.get(&network).copied().unwrap_or(0)
    }

    fn of_site(&self, network: IpAddr) -> usize {
        site_of(network).and_then(|site| self.sites.get(&site)).copied().unwrap_or(0)
    }
}

/// One that counts, until it is dropped.
#[derive(Debug)]
pub struct Place {
    of: PerNetwork,
    network: IpAddr,
}

impl PerNetwork {
    /// At most `most` for each network, four times as many for each /48 of IPv6, and `most_in_all` together.
    pub fn new(most: usize, most_in_all: usize) -> Self {
        Self { most, most_in_all, counts: Arc::default() }
    }

    /// A place for one more at `address`; none when its network, its site, or all together have as many as they may.
    pub fn enter(&self, address: IpAddr) -> Option<Place> {
        let network = network_of(address);
        let mut counts = self.lock();
        let full = counts.of_network(network) >= self.most
            || counts.of_site(network) >= self.most_per_site()
            || counts.all >= self.most_in_all;
        if full {
            return None;
        }
        *counts.networks.entry(network).or_default() += 1;
        if let Some(site) = site_of(network) {
            *counts.sites.entry(site).or_default() += 1;
        }
        counts.all += 1;
        Some(Place { of: self.clone(), network })
    }

    /// Whether the network of `address`, its site, or all together have more than half of what they may.
    pub fn is_crowded(&self, address: IpAddr) -> bool {
        let (network, counts) = (network_of(address), self.lock());
        counts.of_network(network) > self.most / 2
            || counts.of_site(network) > self.most_per_site() / 2
            || counts.all > self.most_in_all / 2
    }

    /// How many the network of `address` has.
    pub fn count(&self, address: IpAddr) -> usize {
        self.lock().of_network(network_of(address))
    }

    fn most_per_site(&self) -> usize {
        self.most.saturating_mul(NETWORKS_PER_SITE)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics while it is held.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of.lock();
        one_less(&mut counts.networks, self.network);
        if let Some(site) = site_of(self.network) {
            one_less(&mut counts.sites, site);
        }
        counts.all = counts.all.saturating_sub(1);
    }
}

fn one_less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() = count.get().saturating_sub(1);
        if *count.get() == 0 {
            count.remove();
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
        for own in ["127.0.0.1", "127.200.3.4", "::ffff:127.0.0.9", "::1"] {
            assert_eq!(network_of(ip(own)), ip("127.0.0.1"));
        }
    }

    #[test]
    fn a_full_network_keeps_no_other_out_and_nothing_is_left_behind() {
        let places = PerNetwork::new(2, 100);
        let (one, two) = (places.enter(ip("2001:db8::1")).unwrap(), places.enter(ip("2001:db8::2")).unwrap());
        assert!(places.enter(ip("2001:db8::3")).is_none() && places.count(ip("2001:db8::9")) == 2);
        assert!(places.is_crowded(ip("2001:db8::9")) && !places.is_crowded(ip("192.0.2.1")));
        let other = places.enter(ip("192.0.2.1")).unwrap();
        drop(one);
        let three = places.enter(ip("2001:db8::3")).unwrap();
        drop((two, three, other));
        let counts = places.lock();
        assert!(counts.networks.is_empty() && counts.sites.is_empty() && counts.all == 0);
    }

    #[test]
    fn a_site_of_many_networks_takes_only_so_many_places() {
        let places = PerNetwork::new(2, 100);
        let taken: Vec<_> = (0..1000).filter_map(|n| places.enter(ip(&format!("2001:db8:1:{n:x}::1")))).collect();
        assert_eq!(taken.len(), 8);
        assert!(places.is_crowded(ip("2001:db8:1:ffff::1")));
        assert!(places.enter(ip("2001:db8:2::1")).is_some());
    }

    #[test]
    fn however_many_networks_there_are_they_take_only_their_share() {
        let places = PerNetwork::new(2, share_of_strangers(400));
        let mut taken: Vec<_> = (0..1000u32).filter_map(|n| places.enter(IpAddr::V4(n.into()))).collect();
        assert_eq!(taken.len(), 100);
        assert!(places.is_crowded(ip("192.0.2.1")) && places.enter(ip("192.0.2.1")).is_none());
        taken.pop();
        assert!(places.enter(ip("192.0.2.1")).is_some());
    }
}
