//! Who may connect to `orchard broker run` and how: what its options and the files they name say, read at the start and
//! again on SIGHUP.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::broker::auth::{Exchangeable, StaticUsers, nkey};
use crate::broker::tls::{Tls, TlsFirst};
use crate::broker::{Broker, Builder};
use crate::cli::{UsageError, files};

/// The variable that may hold the password of `--user`: what stands on a command line, others on the machine can read.
const PASSWORD: &str = "ORCHARD_BROKER_PASSWORD";

#[derive(Clone, Debug, Args)]
pub(super) struct AccessArgs {
    /// Let in this user
    #[arg(long, value_name = "USER", group = "who", help_heading = "Who may connect")]
    user: Option<String>,
    /// That user's password [default: what ORCHARD_BROKER_PASSWORD holds]
    // The conflicts are those of `--user`: where that cannot be, clap drops the requirement, and the password with it.
    #[arg(
        long,
        value_name = "PASSWORD",
        allow_hyphen_values = true,
        requires = "user",
        conflicts_with_all = ["auth_token", "nkey", "users_file", "no_auth"],
        help_heading = "Who may connect"
    )]
    password: Option<String>,
    /// Let in whoever has this token
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true, group = "who", help_heading = "Who may connect")]
    auth_token: Option<String>,
    /// Let in the owner of this key, named by its public half
    #[arg(long, value_name = "PUBLIC_KEY", group = "who", help_heading = "Who may connect")]
    nkey: Option<String>,
    /// Let in the users of this JSON file, with the permissions in it
    #[arg(long, value_name = "FILE", group = "who", help_heading = "Who may connect")]
    users_file: Option<PathBuf>,
    /// Let in everybody, without a warning; on a loopback address only
    #[arg(long, group = "who", help_heading = "Who may connect")]
    no_auth: bool,
    /// Encrypt: the server's certificate and those that lead to its CA, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Encryption")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Encryption")]
    tls_key: Option<PathBuf>,
    /// Require client certificates that one of these CAs has signed, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Encryption")]
    tls_ca: Option<PathBuf>,
    /// Begin with the handshake: always, or with clients that do so themselves [default: after INFO]
    #[arg(long, value_name = "WHEN", requires = "tls_cert", help_heading = "Encryption")]
    tls_first: Option<First>,
}

impl AccessArgs {
    /// Whether someone is named who may connect.
    fn says_who(&self) -> bool {
        self.user.is_some() || self.auth_token.is_some() || self.nkey.is_some() || self.users_file.is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum First {
    Always,
    Auto,
}

/// What was read.
pub(super) struct Access {
    arguments: AccessArgs,
    users: Option<Arc<Exchangeable<StaticUsers>>>,
    tls: Option<Tls>,
}

/// What was read again.
pub(super) struct Fresh {
    users: Option<StaticUsers>,
    tls: Option<Tls>,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.users.is_some() { "known users" } else { "anybody on this machine" };
        write!(f, "{who}, {}", if self.tls.is_some() { "over TLS" } else { "in plain text" })
    }
}

impl Access {
    /// Checks that the options go together, and reads the files that they name.
    pub(super) fn open(arguments: AccessArgs, listen: SocketAddr) -> anyhow::Result<Self> {
        if arguments.no_auth && !listen.ip().is_loopback() {
            return Err(usage(format!("--no-auth is for loopback addresses such as 127.0.0.1, not for {listen}")));
        }
        let users = match arguments.says_who() {
            true => Some(Arc::new(Exchangeable::new(users(&arguments)?))),
            false if arguments.no_auth => None,
            false => {
                open_to_all(listen)?;
                None
            }
        };
        let tls = tls(&arguments)?;
        if tls.is_none() && !listen.ip().is_loopback() {
            tracing::warn!("without --tls-cert and --tls-key, passwords and messages cross the network in plain text");
        }
        Ok(Self { arguments, users, tls })
    }

    /// Sets users and encryption of a broker.
    pub(super) fn guard(&self, mut broker: Builder) -> Builder {
        if let Some(users) = &self.users {
            broker = broker.authenticator(users.clone());
        }
        match &self.tls {
            Some(tls) => broker.tls(tls.clone()),
            None => broker,
        }
    }

    /// What reads the files again; it blocks for as long as the disk takes, and fails when one of them cannot be used.
    pub(super) fn reader(&self) -> impl Fn() -> anyhow::Result<Fresh> + Send + Sync + 'static {
        let (arguments, known) = (self.arguments.clone(), self.users.is_some());
        move || {
            let tls = tls(&arguments)?;
            let users = if known { Some(users(&arguments)?) } else { None };
            Ok(Fresh { users, tls })
        }
    }

    /// What was read counts now: users also for those who are connected, certificates for new connections.
    pub(super) fn apply(&self, fresh: Fresh, broker: &Broker) {
        if let (Some(known), Some(users)) = (&self.users, fresh.users) {
            known.replace(users);
            broker.recheck_all();
        }
        if let Some(tls) = fresh.tls {
            broker.reload_tls(tls);
        }
    }
}

/// Why a broker that is not for this machine alone does not start.
const NOBODY: &str = "nobody could connect: say who may with --user, --auth-token, --nkey or --users-file; everybody may \
                      only on a loopback address such as 127.0.0.1, where --no-auth says that this is meant";

/// Whether a broker for which nobody said who may connect can let in everybody, as nats-server does: on this machine alone,
/// and with a warning.
fn open_to_all(listen: SocketAddr) -> anyhow::Result<()> {
    if !listen.ip().is_loopback() {
        return Err(usage(NOBODY));
    }
    if std::env::var_os(PASSWORD).is_some() {
        return Err(usage(format!("{PASSWORD} is set, but not whose password it is: add --user, or --no-auth")));
    }
    eprintln!(
        "warning: nothing says who may connect, so everybody on this machine may, and may do everything. Say who with \
         --user, --auth-token, --nkey or --users-file, or with --no-auth that this is meant."
    );
    Ok(())
}

fn users(arguments: &AccessArgs) -> anyhow::Result<StaticUsers> {
    let users = StaticUsers::default();
    if let Some(user) = &arguments.user {
        return Ok(users.with(user, &password(arguments)?, Default::default()));
    }
    if let Some(token) = &arguments.auth_token {
        return match token.as_str() {
            "" => Err(usage("--auth-token is empty")),
            token => Ok(users.with_token(token, Default::default())),
        };
    }
    if let Some(key) = &arguments.nkey {
        return match key {
            key if nkey::is_public_key(key) => Ok(users.with_nkey(key, Default::default())),
            key if key.starts_with('S') => {
                Err(usage("--nkey takes the public half of a user's key (U…), and this looks like the secret seed"))
            }
            key => Err(usage(format!("--nkey takes the public half of a user's key (U…), and {key:?} is none"))),
        };
    }
    match &arguments.users_file {
        Some(file) => {
            let cannot = || format!("cannot use the users file {}", file.display());
            files::look(file).with_context(cannot)?;
            warn_if_others_read(file);
            StaticUsers::read(file).with_context(cannot)
        }
        None => Err(usage(NOBODY)),
    }
}

fn password(arguments: &AccessArgs) -> anyhow::Result<String> {
    let given = arguments.password.clone().or_else(|| std::env::var(PASSWORD).ok());
    given
        .filter(|password| !password.is_empty())
        .ok_or_else(|| usage(format!("--user needs --password, or the password in {PASSWORD}")))
}

fn tls(arguments: &AccessArgs) -> anyhow::Result<Option<Tls>> {
    let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) else { return Ok(None) };
    for file in [certificate, key].into_iter().chain(&arguments.tls_ca) {
        files::look(file).with_context(|| format!("cannot encrypt: cannot read {}", file.display()))?;
    }
    let tls = Tls::read(certificate, key, arguments.tls_ca.as_deref()).context("cannot encrypt")?;
    Ok(Some(match arguments.tls_first {
        None => tls,
        Some(First::Always) => tls.first(TlsFirst::Always),
        Some(First::Auto) => tls.first(TlsFirst::Auto),
    }))
}

fn warn_if_others_read(file: &Path) {
    if std::fs::metadata(file).is_ok_and(|about| about.permissions().mode() & 0o077 != 0) {
        tracing::warn!("others may read {}, which may hold passwords; close it with chmod 600", file.display());
    }
}

fn usage(text: impl Into<String>) -> anyhow::Error {
    UsageError(text.into()).into()
}
