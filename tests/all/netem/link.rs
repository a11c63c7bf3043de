//! A bad cable into a network namespace: two TUN devices, and between them a [`Way`] for each direction. Everything takes it,
//! the bus's TCP and the tunnel's QUIC, and the kernels at both ends know nothing of it.

use std::sync::{Arc, Mutex};

use orchard::task::{self, Task};
use tokio::io;
use tokio::time::{Instant, timeout_at};
use tokio_tun::Tun;

use crate::netns::{Namespace, sh};
use crate::way::{Shape, Way};

/// The largest packet, as on Ethernet.
const MTU: usize = 1_500;

/// A namespace at the end of a bad cable. The near end is in the namespace of this process.
pub struct Link {
    ways: [Arc<Mutex<Way>>; 2],
    /// The near end's address.
    pub near: String,
    base: String,
    far_plug: String,
    // In this order: packets first, then the devices go with the namespace.
    _carriers: [Task; 2],
    pub space: Namespace,
}

impl Link {
    /// Lays cable number `net` of this process into a namespace of its own; it is a good one, for now.
    pub fn lay(role: &str, net: u32) -> Self {
        let id = std::process::id();
        let space = Namespace::new(role);
        // A /29 of the range that is set aside for tests of networks (RFC 2544), by process; cables without a fault take the
        // other half.
        let base = format!("198.19.{}.{{}}", id % 256);
        let at = |host: u32| base.replace("{}", &(net * 8 + host).to_string());
        let [near_plug, far_plug] = [format!("t{id}n{net}"), format!("t{id}f{net}")];
        let [near_tun, far_tun] = [&near_plug, &far_plug].map(|name| Arc::new(device(name)));
        sh(&format!("ip link set {far_plug} netns {}", space.name));
        sh(&format!("ip addr add {}/29 dev {near_plug}", at(1)));
        sh(&format!("ip link set {near_plug} up"));
        sh(&format!("ip -n {} addr add {}/29 dev {far_plug}", space.name, at(2)));
        sh(&format!("ip -n {} link set {far_plug} up", space.name));
        let ways = [1, 2].map(|seed| Arc::new(Mutex::new(Way::new(Shape::default(), seed, Instant::now()))));
        let carriers = [
            task::spawn(carry(far_tun.clone(), near_tun.clone(), ways[0].clone())),
            task::spawn(carry(near_tun, far_tun, ways[1].clone())),
        ];
        Self { ways, near: at(1), base: at(0), far_plug, _carriers: carriers, space }
    }

    /// Packets of both directions fare so from now on.
    pub fn set(&self, shape: Shape) {
        for way in &self.ways {
            way.lock().unwrap().set(shape);
        }
    }

    /// How many packets were carried and lost.
    pub fn counts(&self) -> (u64, u64) {
        let ways = self.ways.each_ref().map(|way| way.lock().unwrap());
        (ways.iter().map(|way| way.carried).sum(), ways.iter().map(|way| way.lost).sum())
    }

    /// Has the namespace reach another address of this host over the cable.
    pub fn route(&self, address: &str) {
        sh(&format!("ip -n {} route replace {address} via {}", self.space.name, self.near));
    }

    /// The namespace gets another address, and `reached` is reached from there.
    pub fn move_away(&self, reached: &str) {
        let (prefix, last) = self.base.rsplit_once('.').unwrap();
        let last: u32 = last.parse().unwrap();
        let (space, plug) = (&self.space.name, &self.far_plug);
        sh(&format!("ip -n {space} addr del {prefix}.{}/29 dev {plug}", last + 2));
        sh(&format!("ip -n {space} addr add {prefix}.{}/29 dev {plug}", last + 3));
        if reached != self.near {
            self.route(reached);
        }
    }

    /// Pulls the plug in the namespace: what is sent there fails at once.
    pub fn unplug(&self) {
        sh(&format!("ip -n {} link set {} down", self.space.name, self.far_plug));
    }

    /// Puts it back; `reached` is reached as before.
    pub fn plug(&self, reached: &str) {
        sh(&format!("ip -n {} link set {} up", self.space.name, self.far_plug));
        if reached != self.near {
            self.route(reached);
        }
    }
}

fn device(name: &str) -> Tun {
    let made = Tun::builder().name(name).mtu(MTU.try_into().unwrap()).close_on_exec().build();
    made.unwrap_or_else(|error| panic!("no TUN device; is there a /dev/net/tun? {error}")).remove(0)
}

/// Carries packets until a device is gone.
async fn carry(from: Arc<Tun>, to: Arc<Tun>, way: Arc<Mutex<Way>>) {
    let mut packet = [0; MTU];
    loop {
        let now = Instant::now();
        loop {
            let Some(out) = way.lock().unwrap().leave(now) else { break };
            // A plug that is pulled takes none.
            let _ = to.send(&out).await;
        }
        let next = way.lock().unwrap().next();
        let read: Option<io::Result<usize>> = match next {
            Some(next) => timeout_at(next, from.recv(&mut packet)).await.ok(),
            None => Some(from.recv(&mut packet).await),
        };
        match read {
            Some(Ok(length)) => way.lock().unwrap().enter(&packet[..length], Instant::now()),
            Some(Err(_)) => return,
            None => {}
        }
    }
}
