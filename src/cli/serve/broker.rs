//! `orchard broker run`: the embedded broker as a program of its own, for a separate host or as a stand-in for nats-server
//! in tests. What it serves is `broker`'s business; who may connect is put together in `access`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::access::{Access, AccessArgs, Fresh};
use super::ports::PortsFile;
use super::raise_file_limit;
use super::reload::Reloading;
use super::signals::{Signals, Stop};
use crate::broker::{Broker, Limits};
use crate::cli::{FAILED, UsageError, output};
use crate::config::address::parse_listen;
use crate::config::duration;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum BrokerCommand {
    /// Run the NATS broker alone until Ctrl-C or SIGTERM
    #[command(after_help = HELP)]
    Run(RunArgs),
}

const HELP: &str = r#"Examples:
  orchard broker run
  orchard broker run --user ann --password s3cret
  orchard broker run --listen :4222 --users-file users.json \
      --tls-cert cert.pem --tls-key key.pem
  orchard broker run --listen 127.0.0.1:0 --no-auth --ports-file ports.json

On a loopback address, as by default, nothing need be said: everybody on this machine is let in then, with a warning that
--no-auth, which says that this is meant, leaves out. On any other address, nobody is let in without saying who they are.

A users file names each user with one of password, token and nkey (the public half); permissions may be absent, and
then everything is allowed. What is denied wins; "jobs.> crew" speaks of queue group crew:
  { "users": [
      { "user": "ann", "password": "s3cret" },
      { "token": "t0ken", "expires": "2030-01-01T00:00:00Z" },
      { "nkey": "UCNGL4W5QX66CFX6A6DCBVDH5VOHMI7B2UZZU7TXAUQQSI2JPHULCKBR",
        "permissions": {
          "publish": { "allow": ["jobs.>"], "deny": ["jobs.secret"] },
          "subscribe": ["_INBOX.>", "jobs.> crew"],
          "allow_responses": { "max": 1, "expires": "2m" } } } ],
    "default_permissions": { "subscribe": "public.>" } }

Signals: SIGTERM and Ctrl-C end it; SIGHUP reads users and certificates again, also for those who are connected; SIGUSR2
makes it a lame duck, which lets nobody in, sends clients elsewhere over two minutes and then ends."#;

#[derive(Debug, Args)]
pub(in crate::cli) struct RunArgs {
    /// TCP address to serve NATS clients on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:4222", value_name = "ADDR", value_parser = parse_listen)]
    listen: SocketAddr,
    #[command(flatten)]
    access: AccessArgs,
    /// Largest message in bytes, headers included
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_payload, value_parser = payload)]
    max_payload: usize,
    /// Longest line of a protocol operation in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_control_line, value_parser = control_line)]
    max_control_line: usize,
    /// Time between pings to a client, such as 30s or 2m
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = interval)]
    ping_interval: Duration,
    /// Write the address in use to this file, as JSON, once clients can connect: {"client": "127.0.0.1:4222"}
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,
}

pub(in crate::cli) async fn run(command: BrokerCommand) -> anyhow::Result<u8> {
    let BrokerCommand::Run(arguments) = command;
    let limits = Limits {
        max_payload: arguments.max_payload,
        max_control_line: arguments.max_control_line,
        ping_interval: arguments.ping_interval,
        ..Limits::default()
    };
    check(&limits)?;
    let access = Access::open(arguments.access, arguments.listen)?;
    let mut signals = BrokerSignals::install()?;
    raise_file_limit();
    let broker = access.guard(Broker::builder().limits(limits)).bind(arguments.listen).await?;
    // Not before: whose address cannot be had must leave alone what tells of the broker that has it.
    let publish = |path| PortsFile::publish(path, broker.local_addr());
    let mut ports = arguments.ports_file.map(publish).transpose()?;
    tracing::info!(client = %broker.local_addr(), access = %access, "the broker is up");
    output::line(&format!("orchard broker is ready\n  client  nats://{}", broker.local_addr()))?;
    until_told(&broker, &access, &mut signals, &mut ports).await;
    drop(ports); // whoever reads it from now on would find nobody there
    tokio::select! {
        () = broker.shutdown() => Ok(0),
        name = signals.stop() => {
            say!("{name}: ending at once");
            Ok(FAILED)
        }
    }
}

/// Serves until a signal or the end of the lame duck's time, and does what signals say meanwhile.
async fn until_told(broker: &Broker, access: &Access, signals: &mut BrokerSignals, ports: &mut Option<PortsFile>) {
    let leaving = broker.lame_duck(LAME_DUCK);
    tokio::pin!(leaving);
    let mut lame = false;
    let mut reloading = Reloading::new(access.reader());
    loop {
        let told = tokio::select! {
            told = signals.wait() => told,
            read = reloading.next() => {
                reload(access, broker, read);
                continue;
            }
            () = &mut leaving, if lame => return,
        };
        match told {
            // Also for a lame duck: its last clients are there for two minutes, and a user taken away must not be.
            Told::Reload => reloading.request(),
            Told::LameDuck if lame => {}
            Told::LameDuck => {
                lame = true;
                *ports = None; // as below
                say!("lame duck: no new clients; those connected are sent away one by one");
            }
            Told::Stop(name) => return say!("{name}: stopping"),
        }
    }
}

/// How long the clients' leaving takes, as in nats-server.
const LAME_DUCK: Duration = Duration::from_secs(120);

/// Takes users and certificates as they are now. What cannot be read changes nothing.
fn reload(access: &Access, broker: &Broker, read: anyhow::Result<Fresh>) {
    match read {
        Ok(fresh) => {
            access.apply(fresh, broker);
            say!("reloaded: users and certificates are those of the files now");
        }
        Err(error) => tracing::error!("not reloaded, all stays as it was: {error:#}"),
    }
}

/// What a signal asks for.
enum Told {
    /// SIGHUP.
    Reload,
    /// SIGUSR2, as nats-server has it.
    LameDuck,
    /// SIGINT or SIGTERM.
    Stop(Stop),
}

/// All signals that the broker knows; from now on none of them ends the process by itself.
struct BrokerSignals {
    stop: Signals,
    hangup: Signal,
    lame_duck: Signal,
}

impl BrokerSignals {
    fn install() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot take over SIGHUP and SIGUSR2");
        Ok(Self {
            stop: Signals::install()?,
            hangup: take(SignalKind::hangup())?,
            lame_duck: take(SignalKind::user_defined2())?,
        })
    }

    /// Waits for any of them. Cancel safe.
    async fn wait(&mut self) -> Told {
        tokio::select! {
            name = self.stop.wait() => Told::Stop(name),
            _ = self.hangup.recv() => Told::Reload,
            _ = self.lame_duck.recv() => Told::LameDuck,
        }
    }

    /// Waits for one that ends the process. Cancel safe.
    async fn stop(&mut self) -> Stop {
        self.stop.wait().await
    }
}

/// The largest `--max-payload`: nats-server's own bound, and less than a client may have pending.
const MAX_PAYLOAD: usize = 64 * 1024 * 1024;

fn payload(text: &str) -> Result<usize, String> {
    let most = MAX_PAYLOAD.min(Limits::default().max_pending);
    bytes(text, 1..=most)
}

/// A message that is allowed must also reach whoever listens, and not cut it off.
fn check(limits: &Limits) -> Result<(), UsageError> {
    let most = limits.most_payload();
    if limits.max_payload <= most {
        return Ok(());
    }
    Err(UsageError(format!(
        "--max-payload can be {most} at most with --max-control-line {}: a whole message must fit into the {} bytes that may \
         wait for a client",
        limits.max_control_line, limits.max_pending
    )))
}

/// Less than 512 bytes would not let CONNECT through, more than 1 MiB is no line.
fn control_line(text: &str) -> Result<usize, String> {
    bytes(text, 512..=1024 * 1024)
}

fn bytes(text: &str, allowed: RangeInclusive<usize>) -> Result<usize, String> {
    let wrong = || format!("{text:?} is not a number of bytes from {} to {}", allowed.start(), allowed.end());
    text.parse().ok().filter(|bytes| allowed.contains(bytes)).ok_or_else(wrong)
}

/// The longest `--ping-interval`.
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

fn interval(text: &str) -> Result<Duration, String> {
    match duration::parse_any(text)? {
        Duration::ZERO => Err("pings need some time in between, such as 30s".to_owned()),
        interval if interval > MAX_INTERVAL => {
            Err(format!("{text:?} is more than a day: a client that is gone would hardly ever be missed; write 2m"))
        }
        interval => Ok(interval),
    }
}
