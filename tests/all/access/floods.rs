//! Floods: what one login sends, as fast as its sockets take it, reaches nobody but itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orchard::broker::BindError;
use orchard::bus::client::Login;
use orchard::bus::message::{GetInfo, ListEvents, ListVms, encode};
use orchard::bus::subject::{self, WorkerVerb};
use orchard::controller::cluster::Timing;
use orchard::controller::{BusSource, Controller, ControllerOptions, StartError};
use orchard::identity::new_token;
use orchard::model::access::Role;
use orchard::model::event::{EventObject, EventType};
use orchard::task::{self, Task};
use orchard::worker::runtime::synthetic::Synthetic;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;

use super::people::account;
use crate::harness::{self, Cluster, LIMIT, any_port, controller_options};
use crate::wait::until;

/// How long the flood goes on: longer than a worker may be silent.
const FLOOD: Duration = Duration::from_secs(24);
/// Longer than usual in these tests: what is measured is the flood, not how busy the machine is besides.
const TIMING: Timing =
    Timing { heartbeat: Duration::from_millis(500), unseen: Duration::from_secs(20), ..harness::TIMING };

/// Whoever floods.
#[derive(Clone)]
pub struct Flooder {
    pub user: String,
    pub login: Login,
    /// Where it publishes.
    pub subject: String,
    pub payload: Vec<u8>,
}

impl Flooder {
    /// One line of CONNECT, for a broker that sent `info`.
    pub fn connect(&self, info: &str) -> String {
        let info: serde_json::Value = serde_json::from_str(info.trim_start_matches("INFO ")).unwrap();
        let mut options = serde_json::json!({ "verbose": false, "protocol": 1, "user": self.user });
        match &self.login {
            Login::Password(password) => options["pass"] = password.expose().into(),
            Login::Key(seed) => {
                let pair = nkeys::KeyPair::from_seed(seed.expose()).unwrap();
                let signature = pair.sign(info["nonce"].as_str().unwrap().as_bytes()).unwrap();
                options["nkey"] = pair.public_key().into();
                options["sig"] = data_encoding::BASE64URL_NOPAD.encode(&signature).into();
            }
        }
        format!("CONNECT {options}\r\n")
    }

    /// Floods over one connection until dropped; counts what the sockets took and what was answered.
    async fn flood(self, address: SocketAddr, sent: Arc<AtomicU64>, answered: Arc<AtomicU64>) {
        let (read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
        let mut read = BufReader::new(read);
        let mut info = String::new();
        read.read_line(&mut info).await.unwrap();
        write.write_all(self.connect(&info).as_bytes()).await.unwrap();
        let inbox = subject::inbox(&self.user);
        write.write_all(format!("SUB {inbox}.> 1\r\n").as_bytes()).await.unwrap();
        let mut frame = format!("PUB {} {inbox}.x {}\r\n", self.subject, self.payload.len()).into_bytes();
        frame.extend_from_slice(&self.payload);
        frame.extend_from_slice(b"\r\n");
        let frames = frame.repeat(64);
        let writing = async {
            while write.write_all(&frames).await.is_ok() {
                sent.fetch_add(64, Ordering::Relaxed);
            }
        };
        let reading = async {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(1..) = read.read(&mut buffer).await {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::join!(writing, reading);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_by_an_account_a_worker_and_a_join_token_stops_nobody_else() {
    let bus = BusSource::Embedded { listen: any_port(), tls: false, host: None };
    let mut cluster = Cluster::start_with(bus, new_token(), TIMING).await;
    cluster.add_worker("steady", Arc::new(Synthetic::new())).await;
    let thief = "thief".parse().unwrap();
    let stolen = cluster.access.join(&thief, &cluster.worker_dir("thief")).await;
    let flooder = account(&cluster, "flooder", &[Role::ComputeRead]).await;
    let other = account(&cluster, "other", &[Role::ComputeRead]).await;
    let made = cluster.controller.create_join_token(LIMIT, 1, None).await.unwrap();
    let id = made.id.parse().unwrap();

    let (list, junk) = (encode(&ListVms::default()).unwrap(), vec![0xc1; 1024]);
    let of = |user: &str, login: Login, subject: String, payload: &[u8]| Flooder {
        user: user.to_owned(),
        login,
        subject,
        payload: payload.to_owned(),
    };
    let by_account = |payload| {
        let verb = subject::api(&flooder.account, "vm", "list");
        of("flooder", Login::Password(flooder.token.clone()), verb, payload)
    };
    let worker = subject::worker_user(&thief);
    let heartbeat = subject::worker(&thief, WorkerVerb::Heartbeat);
    let flooders = [
        by_account(&junk),
        by_account(&junk),
        by_account(&list),
        by_account(&list),
        of(&worker, stolen.login.clone(), heartbeat.clone(), &junk),
        of(&worker, stolen.login, heartbeat, &junk),
        of(&subject::join_user(&id), Login::Password(made.secret), subject::join(&id), &junk),
    ];
    let address = cluster.controller.bus_addr().unwrap();
    let (sent, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let bus = other.bus().await;
    let started = Instant::now();
    let floods: Vec<Task> = flooders
        .into_iter()
        .map(|flooder| task::spawn(flooder.flood(address, sent.clone(), answered.clone())))
        .collect();
    let (mut slowest, mut requests) = (Duration::ZERO, 0);
    while started.elapsed() < FLOOD {
        let asked = Instant::now();
        bus.call(&other.account, &ListVms::default(), LIMIT).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        requests += 1;
    }
    let stats = cluster.controller.bus_stats().unwrap();
    let (sent, answered) = (sent.load(Ordering::Relaxed), answered.load(Ordering::Relaxed));
    println!(
        "{requests} requests of another account, the slowest in {slowest:?}; {sent} of the flood taken; {stats:?}"
    );
    assert!(floods.iter().all(|flood| !flood.is_finished()), "they wait, they are not cut off");
    assert!(sent > 1_000 && answered > 0, "{sent} sent, {answered} reads of answers");
    assert_eq!(stats.slow_consumers, 0, "no connection was lost, the controller's least of all");
    drop(floods);
    other.call(&GetInfo {}).await.unwrap();
    let page = cluster.access.call(&ListEvents::default()).await.unwrap();
    let lost = page.events.iter().find(|event| {
        event.kind == EventType::Unseen
            && matches!(&event.object, EventObject::Worker { name } if name.as_str() == "steady")
    });
    assert!(lost.is_none(), "{lost:?}");
    let trail = cluster.run(&["audit", "--output", "json"]).await;
    let refused = trail.lines().filter(|record| record.contains("requests under way")).count();
    // Of three, of which each has one at once, and one more at the end of each minute.
    let most = 3 * (1 + usize::try_from(started.elapsed().as_secs().div_ceil(60)).unwrap());
    assert!((1..=most).contains(&refused), "one record each for a minute: {trail}");
}

/// Some who connect and say nothing, again and again, until dropped. On a thread of their own, as if elsewhere: what is seen to
/// is the controller's port, not that it shares its threads with them.
struct Strangers(Option<Runtime>);

impl Strangers {
    fn at(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for _ in 0..400 {
            runtime.spawn(async move {
                loop {
                    let mut silent = until("somebody at the port", 2 * LIMIT, || connect(address)).await;
                    let _ = silent.read_to_end(&mut Vec::new()).await;
                }
            });
        }
        Self(Some(runtime))
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Not waited for: whoever drops them is a task.
            runtime.shutdown_background();
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // From another address, or a port with nobody behind it might be connected to itself.
    socket.bind("127.0.0.2:0".parse().unwrap())?;
    socket.connect(address).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_starts_however_many_strangers_are_at_its_port() {
    let dir = tempfile::tempdir().unwrap();
    let mut tries = 0_u32;
    let (strangers, listen, controller) = loop {
        // One that is free now and that the strangers know beforehand.
        let listen = TcpListener::bind(any_port()).await.unwrap().local_addr().unwrap();
        let strangers = Strangers::at(listen);
        let bus = BusSource::Embedded { listen, tls: true, host: None };
        let options = ControllerOptions { bus, ..controller_options(&dir.path().join(tries.to_string())) };
        match Controller::start(options).await {
            Ok(controller) => break (strangers, listen, controller),
            // Somebody else has got the port meanwhile: then another one.
            Err(StartError::Broker(BindError::Listen { source, .. }))
                if source.kind() == io::ErrorKind::AddrInUse && tries < 5 => {}
            Err(error) => panic!("{error:?}"),
        }
        tries += 1;
    };
    assert_eq!(controller.bus_addr(), Some(listen));
    drop(strangers);
    controller.shutdown().await;
}
