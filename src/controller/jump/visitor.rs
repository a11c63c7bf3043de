//! One client of the jump host: its login, and the ports that it opens. Who asks for a shell or a command is told what this is.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use russh::keys::PublicKeyBase64 as _;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument as _, Span, debug};

use super::Shared;
use super::login::Login;
use crate::controller::service::api::grant;
use crate::model::VmName;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::network::Place;
use crate::model::ssh_key::SshKey;

/// What RFC 4254 (section 5.1) calls `SSH_OPEN_CONNECT_FAILED`.
const CONNECT_FAILED: u32 = 2;
/// What RFC 4254 (section 5.2) calls `SSH_EXTENDED_DATA_STDERR`.
const STDERR: u32 = 1;
/// The exit status of a shell or a command that there is not.
const NO_SHELL: u32 = 1;
/// How many sessions of one connection are told so; further ones are refused without a word.
const SESSIONS: usize = 8;

pub(super) struct Visitor {
    peer: SocketAddr,
    /// Where it has found the jump host.
    here: SocketAddr,
    shared: Arc<Shared>,
    logged_in: Arc<OnceLock<Login>>,
    told: CancellationToken,
    /// Among those who have not logged in.
    place: Option<Place>,
    /// Sessions that were opened.
    sessions: usize,
    /// Those of them that were not yet told what this is, which each is once: who does not read would have it pile up here.
    untold: Vec<ChannelId>,
    /// Those whose text goes to a terminal that was set up for a shell.
    terminals: Vec<ChannelId>,
    /// Cancelled when the connection has ended.
    gone: CancellationToken,
    _gone: DropGuard,
}

/// How long what was under way may take to be delivered after its connection has ended.
const FAREWELL: Duration = Duration::from_secs(5);

impl Visitor {
    /// `here` is the address that it came to. `logged_in` is set and `told` cancelled once it has.
    pub(super) fn new(
        (peer, here): (SocketAddr, SocketAddr),
        place: Place,
        shared: Arc<Shared>,
        logged_in: Arc<OnceLock<Login>>,
        told: CancellationToken,
    ) -> Self {
        let gone = CancellationToken::new();
        let _gone = gone.clone().drop_guard();
        Self {
            peer,
            here,
            shared,
            logged_in,
            told,
            place: Some(place),
            sessions: 0,
            untold: Vec::new(),
            terminals: Vec::new(),
            gone,
            _gone,
        }
    }

    /// In place of a shell or a command: says what this is, and ends as a command that failed.
    fn explain(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        let untold = self.untold.iter().position(|one| *one == channel);
        let (Some(login), Some(untold)) = (self.logged_in.get(), untold) else {
            return session.channel_failure(channel);
        };
        self.untold.swap_remove(untold);
        let text = explanation(login.account.as_str(), self.shared.context.tunnel.host.as_deref(), self.here);
        // A terminal that was set up for a shell begins no new line by itself.
        let text = if self.terminals.contains(&channel) { text.replace('\n', "\r\n") } else { text };
        session.channel_success(channel)?;
        session.extended_data(channel, STDERR, text)?;
        session.exit_status_request(channel, NO_SHELL)?;
        session.eof(channel)?;
        session.close(channel)
    }

    async fn settle(&mut self, login: Result<Login, Duration>) -> Auth {
        match login {
            Ok(login) => {
                debug!(account = %login.account, "logged in");
                // SSH lets nobody log in twice.
                let _ = self.logged_in.set(login);
                self.place = None;
                self.told.cancel();
                Auth::Accept
            }
            Err(delay) => {
                tokio::time::sleep(delay).await;
                rejected()
            }
        }
    }
}

/// People may try again, with either.
fn rejected() -> Auth {
    let methods = MethodSet::from([MethodKind::PublicKey, MethodKind::Password].as_slice());
    Auth::Reject { proceed_with_methods: Some(methods), partial_success: false }
}

impl Handler for Visitor {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, russh::Error> {
        let login = self.shared.logins.by_token(user, password, self.peer);
        Ok(self.settle(login).await)
    }

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        let key = SshKey::from_bytes(&offer.public_key.public_key_bytes());
        let known = key.is_ok_and(|key| self.shared.logins.knows(user, &key));
        Ok(if known { Auth::Accept } else { rejected() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let Ok(key) = SshKey::from_bytes(&key.public_key.public_key_bytes()) else { return Ok(rejected()) };
        let login = self.shared.logins.by_key(user, &key, self.peer);
        Ok(self.settle(login).await)
    }

    /// Plain `ssh`, without `-J`, opens one of these for its shell or command.
    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        // Dropped, the reply is a refusal.
        if self.logged_in.get().is_some() && self.sessions < SESSIONS {
            self.sessions += 1;
            self.untold.push(channel.id());
            reply.accept().await;
        }
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
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if !self.untold.contains(&channel) {
            return session.channel_failure(channel);
        }
        if !self.terminals.contains(&channel) {
            self.terminals.push(channel);
        }
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.explain(channel, session)
    }

    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        self.explain(channel, session)
    }

    /// As `sftp` asks for its own.
    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.explain(channel, session)
    }

    /// `ssh -J`, `-W` and `-L` open these; every other channel is refused by the library's own answer.
    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(login) = self.logged_in.get().cloned() else { return Ok(()) };
        let (shared, peer, host) = (self.shared.clone(), self.peer, host.to_owned());
        let sessions = shared.sessions.clone();
        // The connection goes on meanwhile; and its end is the usual end of a session, which is then still to be recorded.
        let gone = self.gone.clone();
        let session = async move {
            let mut session = std::pin::pin!(open(shared, login, (host, port), peer, channel, reply));
            tokio::select! {
                () = &mut session => return,
                () = gone.cancelled() => {}
            }
            let _ = timeout(FAREWELL, session).await;
        };
        let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        while sessions.try_join_next().is_some() {}
        sessions.spawn(session.instrument(Span::current()));
        Ok(())
    }
}

/// What somebody is told who has come to the jump host itself: how to get further, by the name that its operator gave it, or else
/// the address it was found at.
fn explanation(account: &str, host: Option<&str>, here: SocketAddr) -> String {
    let here = SocketAddr::new(here.ip().to_canonical(), here.port());
    let at = match host {
        Some(host) if host.contains(':') => format!("[{}]:{}", host.trim_matches(['[', ']']), here.port()),
        Some(host) => format!("{host}:{}", here.port()),
        None => here.to_string(),
    };
    format!(
        "This is the SSH jump host of an Orchard controller. It leads into VMs and has\n\
         no shell or files of its own. Into the VM NAME, as its user USER, leads\n  \
         ssh -J {account}@{at} USER@NAME\n\
         and `scp`, `sftp` and `rsync -e` take -J likewise.\n"
    )
}

/// Opens a port of a VM and copies until either side has ended.
async fn open(
    shared: Arc<Shared>,
    login: Login,
    (host, port): (String, u32),
    peer: SocketAddr,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
) {
    let granted = async {
        // Its connection ends within a second then, and nothing may begin until that.
        if !shared.logins.holds(&login) {
            let why = format!("account {} was changed since you logged in; log in again", login.account);
            return Err(ApiError::new(ErrorCode::Unauthenticated, why));
        }
        let vm = vm_of(&host)?;
        // 0 is none, and within Orchard stands for what only its own clients speak.
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| ApiError::new(ErrorCode::Invalid, "give a port from 1 to 65535"))?;
        grant(&shared.context, login.account, vm, port).await.map(|(grant, _)| grant)
    };
    let grant = match granted.await {
        Ok(grant) => grant,
        Err(refusal) => return refuse(reply, refusal).await,
    };
    let answer = |opened: Result<(), ApiError>| async move {
        match opened {
            Ok(()) => {
                reply.accept().await;
                Some(channel.into_stream())
            }
            Err(refusal) => {
                refuse(reply, refusal).await;
                None
            }
        }
    };
    shared.context.relay.join(&grant, peer, answer).await;
}

fn vm_of(host: &str) -> Result<VmName, ApiError> {
    host.parse().map_err(|why| {
        let what = format!("the jump host leads to VMs by their names, and {host:?} is none: {why}");
        ApiError::new(ErrorCode::Invalid, what)
    })
}

/// The reason is what the client shows: "open failed: connect failed: …".
async fn refuse(reply: ChannelOpenHandle, refusal: ApiError) {
    debug!(%refusal, "a port could not be opened");
    reply.reject(ChannelOpenFailure::Other { code: CONNECT_FAILED, reason: refusal.message }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_come_to_the_jump_host_itself_is_told_the_command_that_leads_further() {
        for (host, here, command) in [
            (None, "192.0.2.1:6122", "\n  ssh -J ann@192.0.2.1:6122 USER@NAME\n"),
            (None, "[::ffff:192.0.2.1]:6122", "\n  ssh -J ann@192.0.2.1:6122 USER@NAME\n"),
            (None, "[2001:db8::1]:22", "\n  ssh -J ann@[2001:db8::1]:22 USER@NAME\n"),
            (Some("ctl.example.com"), "10.0.0.1:6122", "\n  ssh -J ann@ctl.example.com:6122 USER@NAME\n"),
            (Some("2001:db8::1"), "10.0.0.1:6122", "\n  ssh -J ann@[2001:db8::1]:6122 USER@NAME\n"),
        ] {
            let told = explanation("ann", host, here.parse().unwrap());
            assert!(told.contains(command), "{told}");
            assert!(told.lines().all(|line| line.len() <= 80), "{told}");
        }
    }
}
