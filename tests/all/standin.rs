//! What answers in the place of a controller, in tests of what clients do before they trust one: a broker with TLS and a few
//! users, a service that says what a controller would, and strangers.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use orchard::broker::Broker;
use orchard::broker::auth::{Exchangeable, StaticUsers};
use orchard::broker::permission::Permissions;
use orchard::broker::tls::Tls;
use orchard::bus::access::{Join, Joined};
use orchard::bus::client::{Bus, BusOptions, Login, Trust};
use orchard::bus::message::{self, Answer, ControllerInfo};
use orchard::config::join::BootstrapToken;
use orchard::identity::ca::{Fingerprint, Identity};
use orchard::identity::{self, tls};
use orchard::model::account::JoinId;
use orchard::model::secret::Secret;
use orchard::task::{self, Task};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::harness::any_port;

/// The account that is let in, with its token.
pub const ACCOUNT: (&str, &str) = ("ann", "the-token-of-ann-that-nobody-else-may-see");
/// The join token that is accepted, with its secret.
const JOIN: (&str, &str) = ("0123456789abcdef", "the-join-secret-of-the-tests-0123456789");
const OWN: (&str, &str) = ("controller/self", "own");

/// A broker with TLS and something like a controller on it.
pub struct StandIn {
    pub addr: SocketAddr,
    pub fingerprint: Fingerprint,
    /// Every request to join, in order.
    pub joins: Arc<Mutex<Vec<Join>>>,
    users: Arc<Exchangeable<StaticUsers>>,
    broker: Broker,
    _service: Task,
}

impl StandIn {
    /// With a certificate that it made itself.
    pub async fn start() -> Self {
        let identity = Identity::generate().unwrap();
        let tls = Tls::new(Arc::new(tls::server_config(&identity, &[]).unwrap()), false);
        Self::with(tls, identity.fingerprint()).await
    }

    /// With a certificate and key in PEM.
    pub async fn with_pem(certificate: &str, key: &str) -> Self {
        let tls = Tls::from_pem(certificate.as_bytes(), key.as_bytes(), None).unwrap();
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        Self::with(tls, Fingerprint::of(&der)).await
    }

    async fn with(tls: Tls, fingerprint: Fingerprint) -> Self {
        let users = Arc::new(Exchangeable::new(list_of(&[])));
        let broker = Broker::builder().tls(tls).authenticator(users.clone()).bind(any_port()).await.unwrap();
        let addr = broker.local_addr();
        let bus = Bus::connect(BusOptions {
            url: format!("tls://{addr}"),
            trust: Trust::Certificate(fingerprint),
            user: OWN.0.into(),
            login: Login::Password(Secret::new(OWN.1)),
            client_name: "stand-in".into(),
            patient: false,
        });
        let bus = bus.await.unwrap();
        let joins = Arc::new(Mutex::new(Vec::new()));
        let mut infos = bus.subscribe("orchard.v1.api.*.controller.info").await.unwrap();
        let mut asked = bus.subscribe("orchard.v1.join.*").await.unwrap();
        let (known, list) = (users.clone(), joins.clone());
        let service = task::spawn(async move {
            loop {
                let (request, answer) = tokio::select! {
                    Some(request) = infos.next() => {
                        let info = ControllerInfo { version: "stand-in".into(), last_event: 0, roles: None, outside_bus: false };
                        (request, message::encode(&Answer::Ok(info)))
                    }
                    Some(request) = asked.next() => {
                        let join: Join = message::decode(&request.payload).unwrap();
                        known.replace(list_of(&[&join.public_key]));
                        list.lock().unwrap().push(join);
                        (request, message::encode(&Answer::Ok(Joined {})))
                    }
                    else => return,
                };
                let reply = request.reply.unwrap().to_string();
                bus.publish(reply, None, answer.unwrap().into()).await.unwrap();
            }
        });
        // What was subscribed last is known to the broker before anybody is let in to ask.
        crate::wait::until("the stand-in to listen", crate::harness::LIMIT, || async {
            if broker.stats().subscriptions >= 2 { Ok(()) } else { Err("not yet") }
        })
        .await;
        Self { addr, fingerprint, joins, users, broker, _service: service }
    }

    pub fn url(&self) -> String {
        format!("tls://{}", self.addr)
    }

    /// A token with which machines can join here.
    pub fn bootstrap_token(&self) -> BootstrapToken {
        BootstrapToken {
            url: self.url(),
            fingerprint: Some(self.fingerprint),
            id: JOIN.0.parse::<JoinId>().unwrap(),
            secret: Secret::new(JOIN.1),
        }
    }

    /// Lets in no worker any more.
    pub fn revoke(&self) {
        self.users.replace(list_of(&[]));
        self.broker.recheck_all();
    }
}

fn list_of(keys: &[&str]) -> StaticUsers {
    let everything = Permissions::default;
    let users = StaticUsers::default().with(OWN.0, OWN.1, everything()).with(ACCOUNT.0, ACCOUNT.1, everything()).with(
        &format!("join/{}", JOIN.0),
        JOIN.1,
        everything(),
    );
    keys.iter().fold(users, |users, key| users.with_nkey(key, everything()))
}

/// A stranger that greets as a NATS server without TLS would, and keeps whatever it is told.
pub struct PlainStranger {
    pub addr: SocketAddr,
    pub heard: Arc<Mutex<Vec<u8>>>,
    _task: Task,
}

impl PlainStranger {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
        let kept = heard.clone();
        let task = task::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let info = r#"{"server_id":"x","version":"2.10.0","proto":1,"headers":true,"max_payload":1048576}"#;
                // One that was killed meanwhile is not there to be greeted, and others come.
                let _ = stream.write_all(format!("INFO {info}\r\n").as_bytes()).await;
                let mut chunk = [0; 4096];
                // One at a time is enough, and a client that waits for more than it gets hangs up by itself.
                while let Ok(count) = stream.read(&mut chunk).await
                    && count > 0
                {
                    kept.lock().unwrap().extend_from_slice(&chunk[..count]);
                }
            }
        });
        Self { addr, heard, _task: task }
    }

    /// Nothing of `secret` was told to it.
    pub fn learnt_nothing_of(&self, secret: &str) {
        let heard = self.heard.lock().unwrap();
        assert!(!String::from_utf8_lossy(&heard).contains(secret), "the stranger was told the secret");
        assert!(!String::from_utf8_lossy(&heard).contains("CONNECT"), "the stranger was told more than a TLS hello");
    }
}

/// The real binary with a home folder and nothing of the caller's environment.
pub fn orchard(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchard"));
    command.args(arguments).env_clear().env("ORCHARD_HOME", home).env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub async fn run(command: Command) -> Ran {
    let output = crate::harness::finish(command).await;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs `command` with `input` as its standard input.
pub async fn run_with(mut command: Command, input: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that ends before it has read all is judged by what it says.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let ended = tokio::time::timeout(crate::harness::LIMIT, child.wait_with_output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{command:?} hangs")).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A new secret that nobody has.
pub fn secret() -> String {
    identity::new_token().expose().to_owned()
}
