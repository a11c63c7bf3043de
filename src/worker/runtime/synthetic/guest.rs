//! The SSH server of a synthetic guest: password login, commands and shells with or without a terminal, run by the
//! [`shell`](super::shell). Called by `dial` for port 22.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::server::{self, Auth, ChannelOpenHandle, Msg};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, MethodKind, MethodSet, Preferred, Pty, Sig,
};
use tokio::io::DuplexStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::host::{Guest, SyntheticHost};
use super::parse::Target;
use super::shell::{End, Input, Shell};
use crate::identity::same_secret;
use crate::model::CopyId;
use crate::model::secret::Secret;
use crate::ssh::cut::Cut;
use crate::ssh::terminal::Size;

/// Packets from a client that wait for the command which reads them: 32 MiB at most. Generous, because while it is
/// full the connection reads nothing, not even that the client has room for the command's output again.
const INPUT_QUEUE: usize = 1024;

/// Bytes on their way between client and server in each direction. Both ends are the same library, whose connection
/// task does not read while it waits to write: two that wait for each other would wait for ever. So more fits than
/// several channels' windows (2 MiB each) let them send; only what is under way takes memory.
const CONNECTION_BUFFER: usize = 16 * 1024 * 1024;

/// Starts to serve one connection and returns the client's end.
pub(super) fn serve(host: &Arc<SyntheticHost>, guest: Guest) -> Cut<DuplexStream> {
    let (near, far) = tokio::io::duplex(CONNECTION_BUFFER);
    let (near, far) = (Cut::new(near, &guest.process.gone), Cut::new(far, &guest.process.gone));
    let config = guest.server.get_or_init(config).clone();
    let connection = Connection {
        host: Arc::downgrade(host),
        id: guest.spec.id,
        vm: guest.spec.name.to_string(),
        user: guest.spec.spec.guest_user().to_owned(),
        password: guest.spec.spec.guest_password(),
        channels: JoinSet::new(),
    };
    let mut connections = host.connections.lock().unwrap_or_else(PoisonError::into_inner);
    while connections.try_join_next().is_some() {} // forget those that have ended
    connections.spawn(async move {
        if let Ok(running) = server::run_stream(config, far, connection).await {
            let _ = running.await;
        }
    });
    near
}

fn config() -> Arc<server::Config> {
    let mut seed = [0; 32];
    // without randomness the guest has a guessable key, which guards nothing here
    let _ = getrandom::fill(&mut seed);
    Arc::new(server::Config {
        methods: MethodSet::from([MethodKind::Password].as_slice()),
        auth_rejection_time: Duration::ZERO,
        keys: vec![PrivateKey::from(Ed25519Keypair::from_seed(&seed))],
        inactivity_timeout: None,
        // the cheapest: nothing leaves this process, and thousands of guests may be dialled
        preferred: Preferred { kex: Cow::Borrowed(&[russh::kex::CURVE25519]), ..Preferred::default() },
        ..server::Config::default()
    })
}

struct Connection {
    host: Weak<SyntheticHost>,
    id: CopyId,
    vm: String,
    user: String,
    password: Secret,
    channels: JoinSet<()>,
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, russh::Error> {
        let known = user == self.user && same_secret(password, self.password.expose());
        let again = Some(MethodSet::from([MethodKind::Password].as_slice())); // as real servers let one try again
        Ok(if known { Auth::Accept } else { Auth::Reject { proceed_with_methods: again, partial_success: false } })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        while self.channels.try_join_next().is_some() {}
        let (host, id) = (self.host.clone(), self.id);
        let power_off = move || {
            host.upgrade().map(|host| host.power_off(id));
        };
        let (vm, user) = (self.vm.clone(), self.user.clone());
        self.channels.spawn(serve_channel(channel, vm, user, Box::new(power_off)));
        reply.accept().await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: &str,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut server::Session) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }
}

/// Serves one session channel from its first request to its exit status.
async fn serve_channel(channel: Channel<Msg>, vm: String, user: String, power_off: Box<dyn Fn() + Send + Sync>) {
    let (mut from_client, to_client) = channel.split();
    let mut variables = BTreeMap::from([
        ("HOME".to_owned(), format!("/home/{user}")),
        ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
        ("USER".to_owned(), user),
    ]);
    let mut terminal = None;
    let program = loop {
        match from_client.wait().await {
            Some(ChannelMsg::RequestPty { term, col_width, row_height, .. }) => {
                variables.insert("TERM".to_owned(), term);
                terminal = Some(Size { columns: col_width, rows: row_height });
            }
            Some(ChannelMsg::SetEnv { variable_name, variable_value, .. }) => {
                variables.insert(variable_name, variable_value);
            }
            Some(ChannelMsg::RequestShell { .. }) => break None,
            Some(ChannelMsg::Exec { command, .. }) => break Some(String::from_utf8_lossy(&command).into_owned()),
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    };
    let (feed, chunks) = mpsc::channel(INPUT_QUEUE);
    let (resized, size) = watch::channel(terminal.unwrap_or(Size { columns: 0, rows: 0 }));
    let console = Arc::new(Console { to_client, terminal: terminal.is_some() });
    let interrupt = Arc::new(Notify::new());
    let mut shell = Shell {
        vm,
        variables,
        input: Input { chunks, buffer: Vec::new() },
        console: console.clone(),
        interrupt: interrupt.clone(),
        size,
        terminal: terminal.is_some(),
        power_off,
        last: 0,
        stop_on_error: false,
        no_input: false,
        depth: 0,
    };
    let run = async {
        match program {
            Some(command) => shell.run_text(&command).await,
            None => shell.run_input().await,
        }
    };
    let keyboard = Keyboard { console: console.clone(), interrupt, line: Vec::new() };
    let code = tokio::select! {
        ended = run => match ended {
            Ok(code) | Err(End::Exit(code)) => code,
            Err(End::Gone) => return,
        },
        signal = pump(&mut from_client, feed, &resized, keyboard) => match signal {
            Some(signal) => 128 + signal,
            None => return,
        },
    };
    let _ = console.to_client.exit_status(code).await;
    let _ = console.to_client.eof().await;
    let _ = console.to_client.close().await;
}

/// Hands what the client sends to the shell until it closes the channel (none) or sends a signal.
async fn pump(
    from_client: &mut ChannelReadHalf,
    feed: mpsc::Sender<Bytes>,
    resized: &watch::Sender<Size>,
    mut keyboard: Keyboard,
) -> Option<u32> {
    let mut feed = Some(feed);
    loop {
        let data = match from_client.wait().await? {
            ChannelMsg::Data { data } => data,
            ChannelMsg::Eof => {
                feed = None;
                continue;
            }
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                resized.send_replace(Size { columns: col_width, rows: row_height });
                continue;
            }
            ChannelMsg::Signal { signal: Sig::KILL } => return Some(9),
            ChannelMsg::Signal { signal: Sig::TERM } => return Some(15),
            ChannelMsg::Signal { signal: Sig::INT } => return Some(2),
            ChannelMsg::Close => return None,
            _ => continue,
        };
        let data = if keyboard.console.terminal {
            let typed = keyboard.typed(&data).await;
            if typed.end {
                feed = None;
            }
            typed.lines.into()
        } else {
            data
        };
        if let Some(feed) = feed.as_ref().filter(|_| !data.is_empty()) {
            let _ = feed.send(data).await; // a command that reads no more just leaves it
        }
    }
}

/// Where the shell writes.
pub(super) struct Console {
    to_client: ChannelWriteHalf<Msg>,
    terminal: bool,
}

impl Console {
    /// Writes `data`, held back by the client. A terminal has one stream and ends lines with `\r\n`.
    pub(super) async fn write(&self, to: Target, data: Bytes) -> Result<(), End> {
        let sent = match (to, self.terminal) {
            (Target::Nowhere, _) => Ok(()),
            (_, true) => {
                let text = data.iter().flat_map(|byte| match byte {
                    b'\n' => [Some(b'\r'), Some(b'\n')],
                    byte => [None, Some(*byte)],
                });
                self.to_client.data_bytes(text.flatten().collect::<Vec<u8>>()).await
            }
            (Target::Stdout, false) => self.to_client.data_bytes(data).await,
            (Target::Stderr, false) => self.to_client.extended_data_bytes(1, data).await,
        };
        sent.map_err(|_| End::Gone)
    }
}

/// A terminal's line editing: echo, erase, Ctrl-C and Ctrl-D.
struct Keyboard {
    console: Arc<Console>,
    interrupt: Arc<Notify>,
    line: Vec<u8>,
}

#[derive(Default)]
struct Typed {
    lines: Vec<u8>,
    end: bool,
}

impl Keyboard {
    async fn typed(&mut self, keys: &[u8]) -> Typed {
        let (mut typed, mut echo) = (Typed::default(), Vec::new());
        for key in keys {
            match key {
                b'\r' | b'\n' => {
                    self.line.push(b'\n');
                    echo.push(b'\n');
                    typed.lines.append(&mut self.line);
                }
                0x03 => {
                    self.line.clear();
                    echo.extend(b"^C\n");
                    self.interrupt.notify_waiters();
                }
                0x04 if self.line.is_empty() => typed.end = true,
                0x08 | 0x7f => {
                    if self.line.pop().is_some() {
                        echo.extend(b"\x08 \x08");
                    }
                }
                key => {
                    self.line.push(*key);
                    echo.push(*key);
                }
            }
        }
        let _ = self.console.write(Target::Stdout, echo.into()).await; // the channel's end is noticed elsewhere
        typed
    }
}
