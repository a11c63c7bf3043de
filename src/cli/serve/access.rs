//! Who may connect to `orchard broker run`, as its options say.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;

use crate::broker::auth::StaticUsers;
use crate::broker::{Broker, Builder};
use crate::cli::UsageError;

/// The variable that may hold the password of `--user`: what stands on a command line, others on the machine can read.
const PASSWORD: &str = "ORCHARD_BROKER_PASSWORD";

#[derive(Debug, Args)]
pub(super) struct AccessArgs {
    /// Let in this user
    #[arg(long, value_name = "USER", group = "who")]
    user: Option<String>,
    /// That user's password [default: what ORCHARD_BROKER_PASSWORD holds]
    #[arg(long, value_name = "PASSWORD", requires = "user")]
    password: Option<String>,
    /// Let in everybody; on a loopback address only
    #[arg(long, group = "who")]
    no_auth: bool,
}

/// Who may connect.
#[derive(Debug)]
pub(super) struct Access {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Anybody,
    Users(Arc<StaticUsers>),
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Anybody => "anybody on this machine",
            Kind::Users(_) => "one user with a password",
        })
    }
}

impl Access {
    /// Checks that the options go together, and reads the files that they name.
    pub(super) fn open(arguments: &AccessArgs, listen: SocketAddr) -> anyhow::Result<Self> {
        let kind = match &arguments.user {
            Some(user) => {
                let password = password(arguments)?;
                Kind::Users(Arc::new(StaticUsers::default().with(user, &password, Default::default())))
            }
            None if arguments.no_auth && listen.ip().is_loopback() => Kind::Anybody,
            None if arguments.no_auth => {
                return Err(usage(format!("--no-auth is for loopback addresses such as 127.0.0.1, not for {listen}")));
            }
            None => return Err(usage("nobody could connect: say who may with --user, or --no-auth for anybody")),
        };
        Ok(Self { kind })
    }

    /// Sets the users of a broker.
    pub(super) fn guard(&self, broker: Builder) -> Builder {
        match &self.kind {
            Kind::Anybody => broker,
            Kind::Users(users) => broker.authenticator(users.clone()),
        }
    }

    /// Reads the files again.
    pub(super) fn reload(&self, _broker: &Broker) -> anyhow::Result<()> {
        Ok(())
    }
}

fn password(arguments: &AccessArgs) -> anyhow::Result<String> {
    let given = arguments.password.clone().or_else(|| std::env::var(PASSWORD).ok());
    given
        .filter(|password| !password.is_empty())
        .ok_or_else(|| usage(format!("--user needs --password, or the password in {PASSWORD}")))
}

fn usage(text: impl Into<String>) -> anyhow::Error {
    UsageError(text.into()).into()
}
