//! `orchard vnc`: the screen of a VM, or of a worker's own machine, in a viewer of this machine or as a picture.
//!
//! The viewer connects to a local port that leads to port 5900 of the VM: for QEMU the worker takes it to the screen that QEMU
//! draws, for Tart to the guest's own server; of a worker to its machine's server. A picture needs neither port nor viewer:
//! [`crate::vnc`] takes it from the stream.

mod file;
mod viewer;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use self::file::Destination;
use self::viewer::{Viewer, Wanted};
use super::client::Client;
use super::connect::Place;
use super::serve::signals::{Signals, Stop};
use super::target::{Failure, Target};
use super::{Interrupted, forward, listen, output};
use crate::config::duration;
use crate::model::secret::Secret;
use crate::model::vm::{DEFAULT_GUEST_PASSWORD, DEFAULT_GUEST_USER};
use crate::model::{VmName, WorkerName};
use crate::vnc::Login;
use crate::vnc::client::{self, VncError};
use crate::vnc::conversation::ProtocolError;
use crate::vnc::picture::Picture;

/// Where screens are.
const VNC_PORT: u16 = 5900;
/// How long a server may take to greet, which it does first of all.
const GREETING: Duration = Duration::from_secs(10);

#[derive(Debug, Subcommand)]
pub(super) enum Vnc {
    /// Show the screen of a VM in the system's viewer, or take a picture of it
    #[command(after_help = "\
Examples:
  orchard vnc vm build-1
      # opens the viewer, and leads there until Ctrl-C
  orchard vnc vm build-1 --no-viewer --listen 5901
      # for a viewer of your own, at 127.0.0.1:5901
  orchard vnc vm build-1 --screenshot build-1.png
      # a picture without viewer, - is standard output

A VM in QEMU shows its screen from its first moment and asks for no password. With Tart, a server
in the guest shows it (in macOS: System Settings, General, Sharing, Screen Sharing), which asks for
a user of the guest or for a password of its own: give them with -u and -p. Without these, a
picture is tried as user admin with password admin, and a viewer asks you. A viewer that is started
by an address finds them in that, where others on this machine can see them, as they can what you
have typed here.

The viewer is `open` on a Mac; elsewhere `vncviewer`, or else what `xdg-open` has for vnc:. Where
there is none, or no screen to show it on, the address is printed and can be opened by hand.")]
    Vm(VmArgs),
    /// Show the screen of a worker's own machine, or take a picture of it, with the role admin:write
    #[command(after_help = "\
Examples:
  orchard vnc worker mini-1 -u ops -p secret
  orchard vnc worker mini-1 -u ops -p secret --screenshot mini-1.png

The machine's own VNC server decides who gets in (on a Mac: System Settings, General, Sharing, Screen
Sharing, which asks for a user of the machine): this only leads to --port of its loopback address. Without
-u and -p a viewer asks you, and a picture is had only of a server that asks for nothing. Both can be seen by
others on this machine. A worker that runs with --no-host-access lets nobody in.")]
    Worker(WorkerArgs),
}

#[derive(Debug, Args)]
pub(super) struct VmArgs {
    #[command(flatten)]
    options: Options,
    /// How long to wait for the VM to show its screen
    #[arg(long, short, default_value = "60s", value_parser = duration::parse)]
    wait: Duration,
    /// The VM's name
    name: VmName,
}

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    #[command(flatten)]
    options: Options,
    /// Where the machine's VNC server listens
    #[arg(long, default_value_t = VNC_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// How long to wait for the machine to show its screen
    #[arg(long, short, default_value = "0s", value_parser = duration::parse)]
    wait: Duration,
    /// The worker's name
    name: WorkerName,
}

#[derive(Debug, Args)]
struct Options {
    /// User there, if the VNC server asks for one
    #[arg(long, short, allow_hyphen_values = true)]
    username: Option<String>,
    /// The password, if the VNC server asks for one
    #[arg(long, short, allow_hyphen_values = true)]
    password: Option<String>,
    /// Write a picture of the screen as PNG, and end; a file that is there is left alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["no_viewer", "listen"])]
    screenshot: Option<PathBuf>,
    /// Replace the picture's file if it is there
    #[arg(long, requires = "screenshot")]
    force: bool,
    /// Start no viewer, only print the address
    #[arg(long)]
    no_viewer: bool,
    /// Where the viewer is to connect; without it, a free port is taken, and without ADDR, only this machine gets in
    #[arg(long, value_name = "[ADDR:]PORT", default_value = "0", value_parser = parse_listen)]
    listen: SocketAddr,
}

/// A screen: whose, at which port there, and how long to wait for it.
struct Screen {
    target: Arc<Target>,
    port: u16,
    wait: Duration,
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    listen::parse_local(text).ok_or_else(|| format!("{text:?} is not [ADDR:]PORT, such as 5901 or 0.0.0.0:5901"))
}

pub(super) async fn run(command: Vnc, client: &Client) -> anyhow::Result<()> {
    let (place, options, port, wait) = match command {
        Vnc::Vm(VmArgs { options, wait, name }) => (Place::Vm(name), options, VNC_PORT, wait),
        Vnc::Worker(WorkerArgs { options, port, wait, name }) => (Place::Worker(name), options, port, wait),
    };
    let mut signals = Signals::install()?;
    let destination = options.screenshot.as_ref().map(|file| Destination::choose(file, options.force)).transpose()?;
    let screen = Screen { target: Arc::new(Target::find(client, place).await?), port, wait };
    let work = async {
        match destination {
            Some(destination) => take(&screen, &options, destination).await,
            None => show(&screen, &options).await,
        }
    };
    let ended = tokio::select! {
        ended = work => ended,
        error = client.shut_out() => Err(error.into()),
        stop = signals.wait() => match stop {
            Stop::Interrupted => Err(Interrupted.into()),
            Stop::Terminated => Ok(()),
        },
    };
    screen.target.dialer.close().await;
    ended
}

/// Takes a picture and writes it down.
async fn take(screen: &Screen, options: &Options, destination: Destination) -> anyhow::Result<()> {
    let login = login(options, &screen.target.place);
    let attempt = async |deadline| attempt(screen, &login, deadline).await;
    let picture = screen.target.until("show its screen", screen.wait, attempt).await?;
    let size = picture.size();
    let written = tokio::task::spawn_blocking(move || destination.write(&picture)).await;
    if let Some(file) = written.context("the writing was cut short")?? {
        output::line(&format!("{}: {} x {}", output::clean(&file.display().to_string()), size.width, size.height))?;
    }
    Ok(())
}

async fn attempt(screen: &Screen, login: &Login, deadline: Instant) -> Result<Picture, Failure> {
    let opened = screen.target.open(screen.port, deadline).await?;
    let taken = client::take_picture(opened.stream, login.clone(), patience(deadline)).await;
    taken.map_err(|error| match error {
        VncError::Protocol(error) => unlet(error),
        error => failure(error),
    })
}

/// Why the server let nobody in, with the options that help.
fn unlet(error: ProtocolError) -> Failure {
    match error {
        ProtocolError::UserNeeded => {
            Failure::Final(anyhow::anyhow!("the VNC server there asks for a user, too: give it with -u"))
        }
        ProtocolError::PasswordNeeded => Failure::Final(anyhow::anyhow!(
            "the VNC server there asks for a password: give it with -p, and a user with -u"
        )),
        error @ ProtocolError::Refused { .. } => {
            Failure::Final(anyhow::anyhow!("{error}; give what it knows with -u and -p"))
        }
        error => failure(VncError::Protocol(error)),
    }
}

fn failure(error: VncError) -> Failure {
    match error.is_passing() {
        true => Failure::Passing(format!("{:#}", anyhow::Error::new(error))),
        false => Failure::Final(error.into()),
    }
}

fn patience(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).min(GREETING)
}

/// Who logs in for a picture. Somebody who gives a password alone means a server that knows no users, if it is one.
fn login(options: &Options, place: &Place) -> Login {
    let (user, password) = match place {
        Place::Vm(_) => (Some(DEFAULT_GUEST_USER), Some(DEFAULT_GUEST_PASSWORD)),
        // No password is everybody's there.
        Place::Worker(_) => (None, None),
    };
    let user = user.filter(|_| options.password.is_none());
    Login {
        user: options.username.as_deref().or(user).map(str::to_owned),
        password: options.password.as_deref().or(password).map(Secret::new),
    }
}

/// Leads a viewer there until somebody stops it.
async fn show(screen: &Screen, options: &Options) -> anyhow::Result<()> {
    let Screen { target, port, wait } = screen;
    // First of all, so that nobody waits for a port that is taken.
    let listener = listen::bind(options.listen).await?;
    let greets = async |deadline| greeted(screen, deadline).await;
    target.until("show its screen", *wait, greets).await?;
    let address = listener.local_addr().context("cannot find out the local port")?;
    let forward = forward::forward(listener, target.clone(), *port, Duration::ZERO);
    let wanted = Wanted { address, user: options.username.as_deref(), password: options.password.as_deref() };
    output::line(&wanted.shown())?;
    let mut viewer = match options.no_viewer {
        true => None,
        false => Viewer::start(&wanted),
    };
    let look = async {
        if let Some(viewer) = &mut viewer {
            viewer.ended().await;
        }
        std::future::pending().await
    };
    tokio::select! { never = forward => match never {}, () = look => Ok(()) }
}

/// Whether the screen can be had.
async fn greeted(screen: &Screen, deadline: Instant) -> Result<(), Failure> {
    let mut opened = screen.target.open(screen.port, deadline).await?;
    let greeted = client::probe(&mut opened.stream, patience(deadline)).await;
    let _ = opened.stream.shutdown().await;
    greeted.map_err(failure)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        vnc: VmArgs,
    }

    #[test]
    fn who_is_not_let_in_is_told_what_the_server_asks_for() {
        for (error, said) in [
            (ProtocolError::UserNeeded, "the VNC server there asks for a user, too: give it with -u"),
            (
                ProtocolError::PasswordNeeded,
                "the VNC server there asks for a password: give it with -p, and a user with -u",
            ),
        ] {
            assert!(matches!(unlet(error), Failure::Final(error) if error.to_string() == said), "{said}");
        }
    }

    fn parse(arguments: &[&str]) -> Result<VmArgs, clap::Error> {
        Only::try_parse_from(["vnc"].iter().chain(arguments)).map(|only| only.vnc)
    }

    #[test]
    fn the_options_are_those_that_people_know() {
        let vnc = parse(&["a", "-u", "ci", "-p", "-secret", "-w", "120"]).unwrap();
        assert_eq!((vnc.wait, vnc.options.listen.to_string()), (Duration::from_secs(120), "127.0.0.1:0".to_owned()));
        assert_eq!(parse(&["a", "--listen", "0.0.0.0:5901"]).unwrap().options.listen.to_string(), "0.0.0.0:5901");
        assert!(parse(&["a", "--screenshot", "-"]).is_ok());
        for bad in
            [&["a", "--force"][..], &["a", "--screenshot", "x", "--no-viewer"], &["a", "--listen", "host:1"], &[]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_password_alone_is_for_servers_that_know_no_users() {
        let at = |place: Place, arguments: &[&str]| {
            let Login { user, password } = login(&parse(&[arguments, &["a"]].concat()).unwrap().options, &place);
            (user, password.map(|password| password.expose().to_owned()))
        };
        let login = |arguments: &[&str]| at(Place::Vm("a".parse().unwrap()), arguments);
        assert_eq!(login(&[]), (Some("admin".into()), Some("admin".into())));
        assert_eq!(login(&["-p", "x"]), (None, Some("x".into())));
        assert_eq!(login(&["-u", "ci"]), (Some("ci".into()), Some("admin".into())));
        let on_worker = |arguments: &[&str]| at(Place::Worker("a".parse().unwrap()), arguments);
        assert_eq!(on_worker(&[]), (None, None), "nothing is tried there that was not given");
        assert_eq!(on_worker(&["-u", "ci", "-p", "x"]), (Some("ci".into()), Some("x".into())));
    }
}
