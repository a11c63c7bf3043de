//! Identities of a cluster, and a raw client that notes what the broker refuses it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{ConnectOptions, Event};
use orchard::bus::access::{CreateAccount, NewToken};
use orchard::bus::client::{BusOptions, Login, Trust};
use orchard::bus::subject;
use orchard::identity::tls;
use orchard::model::access::Role;

use crate::harness::{Access, Cluster, LIMIT};
use crate::wait;

/// Makes an account with `roles`.
pub async fn account(cluster: &Cluster, name: &str, roles: &[Role]) -> Access {
    let request = CreateAccount {
        name: name.parse().unwrap(),
        roles: roles.iter().copied().collect(),
        expires_at: None,
        token: None,
        ssh_keys: Vec::new(),
    };
    let NewToken { token, .. } = cluster.access.call(&request).await.unwrap();
    cluster.access.of(name, &token)
}

/// How an account logs in.
pub fn as_account(access: &Access) -> BusOptions {
    access.options(access.account.as_str(), Login::Password(access.token.clone()))
}

/// A stock client, and what the broker said of what it tried.
pub struct Raw {
    pub client: async_nats::Client,
    told: Arc<Mutex<Vec<String>>>,
}

impl Raw {
    pub async fn connect(options: &BusOptions) -> Result<Self, async_nats::ConnectError> {
        let login = match &options.login {
            Login::Password(password) => {
                ConnectOptions::with_user_and_password(options.user.clone(), password.expose().to_owned())
            }
            Login::Key(seed) => ConnectOptions::with_nkey(seed.expose().to_owned()),
        };
        let told = Arc::new(Mutex::new(Vec::new()));
        let noted = told.clone();
        let mut connect = login
            .custom_inbox_prefix(subject::inbox(&options.user))
            .subscription_capacity(64 * 1024)
            .event_callback(move |event| {
                match event {
                    Event::ServerError(error) => noted.lock().unwrap().push(error.to_string()),
                    Event::Disconnected => noted.lock().unwrap().push("disconnected".to_owned()),
                    _ => {}
                }
                std::future::ready(())
            });
        if let Trust::Certificate(fingerprint) = options.trust {
            let config = tls::client_config(fingerprint, &[]).unwrap();
            connect = connect.tls_client_config(config).require_tls(true);
        }
        let client = connect.connect(&options.url).await?;
        Ok(Self { client, told })
    }

    /// All that the broker has said so far.
    pub fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    /// Subjects that were refused, for publishing or subscribing as `what` says, up to now: a last refused one shows that
    /// all before it have been told.
    pub async fn refused(&self, what: &str) -> Vec<String> {
        let last = "orchard.last.to.be.refused";
        match what {
            "Publish" => self.client.publish(last, "".into()).await.unwrap(),
            _ => drop(self.client.subscribe(last).await.unwrap()),
        }
        let begin = format!("Permissions Violation for {what} to \"");
        wait::until("the last refusal", LIMIT, || async {
            let told = self.told();
            let subjects = told.iter().filter_map(|said| said.split_once(begin.as_str())?.1.split('"').next());
            let subjects: Vec<String> = subjects.map(str::to_owned).collect();
            match subjects.iter().position(|subject| subject == last) {
                Some(end) => Ok(subjects[..end].to_vec()),
                None => Err(told),
            }
        })
        .await
    }

    /// Waits until the broker has ended the connection, and says how long that took.
    pub async fn ended(&self) -> Duration {
        let started = std::time::Instant::now();
        wait::until("the end of the connection", LIMIT, || async {
            let told = self.told();
            if told.iter().any(|said| said == "disconnected") { Ok(()) } else { Err(told) }
        })
        .await;
        started.elapsed()
    }
}
