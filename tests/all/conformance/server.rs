//! The two servers, started with a setup: ours in this process, nats-server in Docker.

use std::sync::Arc;
use std::time::Duration;

use orchard::broker::Broker;
use orchard::broker::auth::{Exchangeable, StaticUsers};
use orchard::task::{self, Task};
use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::process::Command;

use super::certificate;
use super::script::{Change, Side};
use super::setup::Setup;
use crate::wait;

/// Pulled where no image is named. The table was played against 2.12.8, 2.14.6 and 2.15.1; what the older ones say
/// otherwise is marked with `since`.
const OFFICIAL: &str = "nats:2.12";
/// How long our lame duck takes: as long as nats-server with its grace and three clients, about.
const LAME: Duration = Duration::from_secs(12);
/// How long nats-server may take to read its configuration again.
const RELOAD: Duration = Duration::from_secs(20);

/// A running server; dropping it stops it.
pub struct Server {
    pub port: u16,
    pub setup: Setup,
    kind: Kind,
}

enum Kind {
    Orchard { broker: Arc<Broker>, users: Option<Arc<Exchangeable<StaticUsers>>> },
    Nats(Box<ContainerAsync<GenericImage>>),
}

impl Server {
    /// The server of `side`. The real one is `None`, loudly, where Docker or the image cannot be had, unless `CI` is set.
    pub async fn start(side: Side, setup: Setup) -> Option<Self> {
        match side {
            Side::Orchard => Some(Self::orchard(setup).await),
            Side::Nats => Self::nats(setup).await,
        }
    }

    async fn orchard(setup: Setup) -> Self {
        let mut builder = setup.builder();
        let users = setup.users().map(|users| Arc::new(Exchangeable::new(users)));
        if let Some(users) = &users {
            builder = builder.authenticator(users.clone());
        }
        let broker = Arc::new(builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap());
        Self { port: broker.local_addr().port(), setup, kind: Kind::Orchard { broker, users } }
    }

    async fn nats(setup: Setup) -> Option<Self> {
        let image = std::env::var("ORCHARD_TEST_NATS_IMAGE").unwrap_or_else(|_| OFFICIAL.to_owned());
        let (name, tag) = image.split_once(':').unwrap_or((&image, "latest"));
        let (certificate, key, ca) = certificate::pem();
        let started = GenericImage::new(name, tag)
            .with_exposed_port(4222.tcp())
            .with_wait_for(WaitFor::message_on_stderr("Server is ready"))
            .with_copy_to(CONFIG, setup.nats_config().into_bytes())
            .with_copy_to("/cert.pem", certificate.into_bytes())
            .with_copy_to("/key.pem", key.into_bytes())
            .with_copy_to("/ca.pem", ca.into_bytes())
            .with_cmd(["-c", CONFIG])
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
        Some(Self { port, setup, kind: Kind::Nats(Box::new(container)) })
    }

    /// Does what a script asks for. The change goes on for as long as the task that may come of it lives.
    pub async fn change(&self, change: Change) -> Option<Task> {
        match (&self.kind, change) {
            (Kind::Orchard { broker, .. }, Change::Lame) => {
                let broker = broker.clone();
                Some(task::spawn(async move { broker.lame_duck(LAME).await }))
            }
            (Kind::Orchard { broker, users }, Change::Reload) => {
                users.as_ref().expect("users to exchange").replace(self.setup.users_after());
                broker.recheck_all();
                None
            }
            (Kind::Nats(container), Change::Lame) => {
                docker(&["kill", "--signal", "USR2", container.id()]).await;
                None
            }
            (Kind::Nats(container), Change::Reload) => {
                let config = tempfile::NamedTempFile::new().unwrap();
                std::fs::write(config.path(), self.setup.nats_config_after()).unwrap();
                let to = format!("{}:{CONFIG}", container.id());
                docker(&["cp", config.path().to_str().unwrap(), &to]).await;
                docker(&["kill", "--signal", "HUP", container.id()]).await;
                wait::until("nats-server to read its configuration again", RELOAD, || async {
                    let log = String::from_utf8(container.stderr_to_vec().await.unwrap()).unwrap();
                    if log.contains("Reloaded server configuration") { Ok(()) } else { Err(log) }
                })
                .await;
                None
            }
        }
    }
}

/// Where nats-server finds its configuration.
const CONFIG: &str = "/nats.conf";

async fn docker(arguments: &[&str]) {
    let done = Command::new("docker").args(arguments).output().await.expect("the docker command");
    assert!(done.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}
