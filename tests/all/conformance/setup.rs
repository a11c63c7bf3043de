//! The two servers in each configuration: ours in this process, nats-server in Docker.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use orchard::broker::auth::{Authenticator, StaticUsers};
use orchard::broker::tls::Tls;
use orchard::broker::{Broker, Limits};
use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{GenericImage, ImageExt};

use super::{certificate, keys};

/// A configuration that both servers are started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setup {
    /// Everybody may do everything.
    Open,
    /// The same with little room: payload 100, control line 256, 3 subscriptions.
    Small,
    /// Users with passwords and permissions.
    Users,
    /// One token, `t0ken`.
    Token,
    /// One nkey.
    Nkey,
    /// Two connections and no more.
    Crowded,
    /// Pings every 200 ms of which one may go unanswered, 300 ms to say who one is (user `u`, password `p`).
    Impatient,
    /// TLS after INFO, with the certificate of `certificate`.
    Tls,
}

/// A running server.
pub struct Server {
    pub port: u16,
    /// Whether a play may fail because connections of the one before are not gone yet.
    pub crowded: bool,
    /// Stops the server when dropped.
    _keep: Box<dyn Any + Send + Sync>,
}

/// Lists of users, as both servers read them.
const USERS: &str = r#"[
  { "user": "free", "password": "pw" },
  { "user": "strict", "password": "pw", "permissions": {
      "publish": { "allow": ["foo.>", "s.*.ok", "_INBOX.>"], "deny": ["foo.no.>", "foo.*.secret"] },
      "subscribe": { "allow": ["foo.>", "s.*.ok", "q.* workers", "v.> dev.*"], "deny": ["foo.no.>", "v.*.bad dev.a"] } } },
  { "user": "mute", "password": "pw", "permissions": { "publish": { "deny": ">" } } },
  { "user": "deaf", "password": "pw", "permissions": { "subscribe": { "deny": ">" } } },
  { "user": "one", "password": "pw", "permissions": { "publish": "one.>", "subscribe": "one.>" } },
  { "user": "nodeny", "password": "pw", "permissions": {
      "publish": { "deny": ["*.hidden.>"] }, "subscribe": { "deny": ["*.hidden.>"] } } },
  { "user": "helper", "password": "pw", "permissions": { "subscribe": "ask.>", "allow_responses": true } },
  { "user": "helper3", "password": "pw", "permissions": {
      "publish": { "allow": "own.>", "deny": "own.no" }, "subscribe": ["ask.>", "own.>"],
      "allow_responses": { "max": 3, "expires": "1m" } } },
  { "user": "endless", "password": "pw", "permissions": {
      "subscribe": "ask.>", "allow_responses": { "max": -1, "expires": "1m" } } },
  { "user": "late", "password": "pw", "permissions": {
      "subscribe": "ask.>", "allow_responses": { "max": 1, "expires": "1ms" } } }
]"#;
const TOKEN: &str = r#"{ "token": "t0ken" }"#;
const IMPATIENT: &str = r#"{ "user": "u", "password": "p" }"#;

impl Setup {
    /// The setup that a table calls `name`.
    pub fn named(name: &str) -> Option<Self> {
        super::PLAYED.iter().copied().find(|setup| format!("{setup:?}") == name)
    }

    fn nats_config(self) -> String {
        match self {
            Self::Open => String::new(),
            Self::Tls => "tls { cert_file: /cert.pem, key_file: /key.pem, timeout: 30 }".into(),
            Self::Small => "max_payload: 100\nmax_control_line: 256\nmax_subscriptions: 3\n".into(),
            Self::Users => authorization(&format!("timeout: 30, users: {USERS}")),
            Self::Token => authorization("timeout: 30, token: t0ken"),
            Self::Nkey => authorization(&format!("timeout: 30, users: {}", nkey_users())),
            Self::Crowded => "max_connections: 2".into(),
            Self::Impatient => {
                format!("ping_interval: 200ms\nping_max: 1\n{}", authorization("timeout: 0.3, user: u, password: p"))
            }
        }
    }

    fn limits(self) -> Limits {
        let limits = Limits { auth_timeout: Duration::from_secs(30), ..Limits::default() };
        match self {
            Self::Small => Limits { max_payload: 100, max_control_line: 256, max_subscriptions: 3, ..limits },
            Self::Crowded => Limits { max_connections: 2, ..limits },
            Self::Impatient => Limits {
                ping_interval: Duration::from_millis(200),
                max_pings_out: 1,
                auth_timeout: Duration::from_millis(300),
                ..limits
            },
            _ => limits,
        }
    }

    fn authenticator(self) -> Option<Arc<dyn Authenticator>> {
        let users = match self {
            Self::Open | Self::Small | Self::Crowded | Self::Tls => return None,
            Self::Users => USERS.to_owned(),
            Self::Token => format!("[{TOKEN}]"),
            Self::Nkey => nkey_users(),
            Self::Impatient => format!("[{IMPATIENT}]"),
        };
        Some(Arc::new(StaticUsers::from_json(&format!("{{ \"users\": {users} }}")).unwrap()))
    }
}

fn authorization(block: &str) -> String {
    format!("authorization {{ {block} }}")
}

fn nkey_users() -> String {
    format!(r#"[{{ "nkey": "{}" }}]"#, keys::public())
}

/// Our broker.
pub async fn orchard(setup: Setup) -> Server {
    let mut builder = Broker::builder().limits(setup.limits());
    if let Some(authenticator) = setup.authenticator() {
        builder = builder.authenticator(authenticator);
    }
    if setup == Setup::Tls {
        let (certificate, key) = certificate::pem();
        builder = builder.tls(Tls::from_pem(certificate.as_bytes(), key.as_bytes(), None).unwrap());
    }
    let broker = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = broker.local_addr().port();
    Server { port, crowded: setup == Setup::Crowded, _keep: Box::new(broker) }
}

/// The real one; `None`, loudly, where Docker or the image cannot be had, unless `CI` is set.
pub async fn nats(setup: Setup) -> Option<Server> {
    let image = std::env::var("ORCHARD_TEST_NATS_IMAGE").unwrap_or_else(|_| "nats:2.12".to_owned());
    let (name, tag) = image.split_once(':').unwrap_or((&image, "latest"));
    let started = GenericImage::new(name, tag)
        .with_exposed_port(4222.tcp())
        .with_wait_for(WaitFor::message_on_stderr("Server is ready"))
        .with_copy_to("/nats.conf", setup.nats_config().into_bytes())
        .with_copy_to("/cert.pem", certificate::pem().0.into_bytes())
        .with_copy_to("/key.pem", certificate::pem().1.into_bytes())
        .with_cmd(["-c", "/nats.conf"])
        .with_startup_timeout(Duration::from_secs(60))
        .start()
        .await;
    let container = match started {
        Ok(container) => container,
        Err(error) if std::env::var_os("CI").is_some() => panic!("no nats-server to compare with: {error}"),
        Err(error) => {
            eprintln!("SKIPPED: no nats-server to compare with (tests/run.sh provides one): {error}");
            return None;
        }
    };
    let port = container.get_host_port_ipv4(4222.tcp()).await.unwrap();
    Some(Server { port, crowded: setup == Setup::Crowded, _keep: Box::new(container) })
}
