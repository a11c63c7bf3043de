//! `orchard top`: the cluster on a whole screen, live: how busy workers are, where VMs stand, what happens.
//!
//! `state` decides and `view` (with `over`) shows, both without a terminal or a bus; `screen` has the terminal and `cluster` the
//! bus. Here they meet: what comes from either goes to the state, what that wants done is done, and a frame is drawn.

mod cluster;
mod cursor;
mod keys;
mod over;
mod screen;
mod state;
mod text;
mod view;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use rustix::process::{self, Signal as Posix};
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};

use self::cluster::Cluster;
use self::screen::{Keys, Screen};
use self::state::{Action, Event, Notice, State};
use self::view::Look;
use super::{Global, Interrupted, ToldToEnd, output};
use crate::config::Home;
use crate::model::Clock;

/// What may wait to be taken in: a burst of events is taken in before the next frame.
const QUEUE: usize = 256;
/// How often time is told to pass: the ages that are shown are of seconds.
const TICK: Duration = Duration::from_millis(250);

/// How long a command that has the terminal may take to give it back when this is told to end.
const FAREWELL: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  orchard top

Workers with how busy their machines are, VMs with where they stand and since when, and what happens. Keys:
  arrows, j k, PgUp PgDn, g G  move
  Tab        the next pane     d, Enter   describe, as `orchard get` does
  /          filter            l          the log of a VM's startup script
  Esc        close, unfilter   s          SSH into the VM, or to the worker
  ?          all keys          x          delete the VM, once confirmed
                               q, Ctrl-C  quit

It needs the role compute:read, and compute:write for deleting. While the controller does not answer, the first line says
so, what was known before stays, and it goes on by itself. Ctrl-Z suspends it, as it does other jobs of a shell. NO_COLOR
is honoured. What -v or RUST_LOG ask for is written where standard error is no terminal: orchard -v top 2> top.log. For
programs there are `orchard list` and `orchard events --follow`.")]
pub(super) struct TopArgs {}

/// Yields the exit code.
pub(super) async fn run(_arguments: TopArgs, home: &Home, global: &Global) -> anyhow::Result<u8> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        anyhow::bail!(
            "orchard top needs a terminal to show itself on; `orchard list vms`, `orchard list workers` and `orchard \
             events --follow` tell the same without one"
        );
    }
    let can = output::Screen::of_stdout();
    if !can.can_move {
        anyhow::bail!(
            "orchard top needs a terminal whose cursor moves, and TERM=dumb says that this one's does not; `orchard list \
             vms --watch`, `orchard list workers --watch` and `orchard events --follow` tell the same line by line"
        );
    }
    let (client, interrupt) = super::connect(home, global).await?;
    drop(interrupt);
    let clock = Clock::start();
    let mut ends = Ends::take_over()?;
    let target = client.target();
    let who = format!("{} at {}", target.account, target.url);
    let screen = Screen::take().context("cannot take the terminal")?;
    let state = State::new(who, screen.size()?, clock.now());
    let (told, mut events) = mpsc::channel(QUEUE);
    let cluster = Cluster::new(client, global.context.clone(), told);
    let mut top = Top { state, screen, keys: Keys::default(), cluster, look: Look { colours: can.colours } };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        top.draw()?;
        // Whatever of these is dropped is asked for again; nothing is lost with it.
        let event = tokio::select! {
            key = top.keys.next() => match key.context("cannot read the terminal")? {
                crossterm::event::Event::Key(key) => Event::Key(key),
                crossterm::event::Event::Resize(columns, rows) => Event::Resized(columns, rows),
                _ => continue,
            },
            Some(event) = events.recv() => event,
            _ = tick.tick() => Event::Tick,
            end = ends.told() => return end.code(),
        };
        let mut next = Some(event);
        while let Some(event) = next {
            for action in top.state.on(event, clock.now()) {
                if let Some(end) = top.act(action, &mut ends).await? {
                    return end.code();
                }
            }
            next = events.try_recv().ok();
        }
    }
}

/// What runs.
struct Top {
    state: State,
    screen: Screen,
    keys: Keys,
    cluster: Cluster,
    look: Look,
}

impl Top {
    fn draw(&mut self) -> anyhow::Result<()> {
        let (state, look) = (&self.state, self.look);
        self.screen.draw(|frame| view::draw(frame, state, look)).context("cannot write to the terminal")
    }

    /// Does it; yields why to end, if so.
    async fn act(&mut self, action: Action, ends: &mut Ends) -> anyhow::Result<Option<End>> {
        match action {
            Action::Refresh => self.cluster.list(),
            Action::Describe(ticket, place) => self.cluster.describe(ticket, &place),
            Action::Follow(ticket, uid) => self.cluster.follow(ticket, uid),
            Action::StopReading => self.cluster.stop_reading(),
            Action::Delete(name) => self.cluster.delete(name),
            Action::Ssh(place) => match self.cluster.ssh(&place) {
                Ok(command) => return self.lend(command, &format!("SSH to {place}"), ends).await,
                Err(error) => self.tell(format!("cannot run `orchard ssh`: {error}")),
            },
            Action::Suspend => {
                self.keys.pause().await;
                self.screen.give_back()?;
                // Stops here, with all that the shell takes for one job, until it is brought back.
                process::kill_current_process_group(Posix::TSTP)?;
                self.take_again()?;
            }
            Action::Quit => return Ok(Some(End::Asked)),
            Action::Fail(error) => return Err(error.into()),
        }
        Ok(None)
    }

    /// Has `command` use the terminal until it ends.
    async fn lend(&mut self, mut command: Command, what: &str, ends: &mut Ends) -> anyhow::Result<Option<End>> {
        self.keys.pause().await;
        self.screen.give_back()?;
        eprintln!("{what}");
        let ended = match command.spawn() {
            Ok(mut child) => tokio::select! {
                status = child.wait() => status,
                // Ctrl-C is for the command.
                end = ends.forced() => {
                    // It has the terminal to give back, and a session to end.
                    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(process::Pid::from_raw) {
                        let _ = process::kill_process(pid, Posix::TERM);
                    }
                    let _ = timeout(FAREWELL, child.wait()).await;
                    return Ok(Some(end));
                }
            },
            Err(error) => Err(error),
        };
        ends.forget_interrupts()?;
        let failed = match ended {
            Ok(status) if status.success() => None,
            Ok(status) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(how) = failed {
            // What it said would be gone with the next frame.
            eprintln!("\n{what}: {how}; press a key to go back to orchard top");
            crossterm::terminal::enable_raw_mode()?;
            tokio::select! {
                pressed = self.keys.pressed() => pressed?,
                end = ends.forced() => return Ok(Some(end)),
            }
        }
        self.take_again()?;
        Ok(None)
    }

    fn take_again(&mut self) -> anyhow::Result<()> {
        self.screen.take_again().context("cannot take the terminal again")?;
        let (columns, rows) = self.screen.size()?;
        self.state.resize(columns, rows);
        Ok(())
    }

    fn tell(&mut self, text: String) {
        self.state.tell(Notice { text, bad: true });
    }
}

/// Why to end.
#[derive(Clone, Copy, Debug)]
enum End {
    Asked,
    Interrupted,
    Told(SignalKind),
}

impl End {
    fn code(self) -> anyhow::Result<u8> {
        match self {
            End::Asked => Ok(0),
            End::Interrupted => Err(Interrupted.into()),
            End::Told(signal) => Err(ToldToEnd(signal).into()),
        }
    }
}

/// The signals that end it; Ctrl-C on its own screen is a key.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Ends {
    fn take_over() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot take over signals");
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hang_up: take(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them. Cancel safe.
    async fn told(&mut self) -> End {
        tokio::select! {
            _ = self.interrupt.recv() => End::Interrupted,
            _ = self.terminate.recv() => End::Told(SignalKind::terminate()),
            _ = self.hang_up.recv() => End::Told(SignalKind::hangup()),
        }
    }

    /// Waits for those that are not for the command that has the terminal. Cancel safe.
    async fn forced(&mut self) -> End {
        tokio::select! {
            _ = self.terminate.recv() => End::Told(SignalKind::terminate()),
            _ = self.hang_up.recv() => End::Told(SignalKind::hangup()),
        }
    }

    fn forget_interrupts(&mut self) -> anyhow::Result<()> {
        self.interrupt = signal(SignalKind::interrupt()).context("cannot take over signals")?;
        Ok(())
    }
}
