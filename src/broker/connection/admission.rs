//! Who a client is: asked when it connects, and again when the embedder says that users have changed.

use std::sync::atomic::Ordering;

use super::super::auth::{Credentials, Denied, User};
use super::super::client::Subscription;
use super::super::protocol::connect::ConnectOptions;
use super::super::protocol::{Fault, encode};
use super::super::session::Revised;
use super::{COSTLY_PER_TURN, Connection};

use std::sync::Arc;

impl Connection {
    /// Checks what CONNECT shows.
    pub(super) fn authenticate(&mut self, options: ConnectOptions) -> Option<Fault> {
        let user = loop {
            let revocations = self.router.revocations();
            let user = match self.ask_who(&options) {
                Ok(user) => user,
                Err(denied) => {
                    match denied.quiet {
                        true => tracing::debug!(client = self.client.id, peer = %self.peer, %denied, "client refused"),
                        false => tracing::info!(client = self.client.id, peer = %self.peer, %denied, "client refused"),
                    }
                    self.penalty = denied.delay;
                    return Some(Fault::Authorization);
                }
            };
            self.client.belongs_to(&user);
            // Rights taken away while we asked may have been these, and the search may have missed us.
            if self.router.revocations() == revocations {
                break user;
            }
        };
        if !self.take_seat(user.pace.as_ref()) {
            tracing::info!(client = self.client.id, peer = %self.peer, user = user.name, "too many connections");
            return Some(Fault::Connections);
        }
        self.unproven = None;
        if self.seat.is_some() {
            self.costly = COSTLY_PER_TURN; // whoever comes back in debt pays before anything else is performed
        }
        self.client.headers.store(options.headers, Ordering::Relaxed);
        self.client.late_info.store(options.protocol >= 1, Ordering::Relaxed);
        self.delivery.echo = options.echo;
        let revised = self.session.connected(options, user);
        self.apply(revised);
        self.client.admitted.store(true, Ordering::Release);
        self.client.changed.notify_one();
        if self.client.late_info.load(Ordering::Relaxed) && self.router.is_lame() {
            let info = self.info(); // it was not among those who were told
            self.delivery.answer(|out| encode::info(out, &info));
        }
        self.accept();
        None
    }

    fn ask_who(&self, options: &ConnectOptions) -> Result<User, Denied> {
        let Some(authenticator) = &self.router.authenticator else { return Ok(User::anonymous()) };
        authenticator.authenticate(&Credentials {
            user: options.user.as_deref(),
            password: options.pass.as_deref(),
            token: options.auth_token.as_deref(),
            nkey: options.nkey.as_deref(),
            sig: options.sig.as_deref(),
            jwt: options.jwt.as_deref(),
            nonce: self.nonce.as_deref(),
            peer: self.peer,
        })
    }

    /// Asks the authenticator what has become of the user, if someone wants that: rights change, or the connection ends.
    pub(super) fn recheck(&mut self) -> Option<Fault> {
        if !self.client.take_recheck() {
            return None;
        }
        let (Some(authenticator), Some(user)) = (&self.router.authenticator, self.session.user()) else { return None };
        let Some(user) = authenticator.current(user) else {
            tracing::info!(client = self.client.id, peer = %self.peer, user = user.name, "no longer let in");
            return Some(Fault::Authorization);
        };
        if !self.take_seat(user.pace.as_ref()) {
            return Some(Fault::Connections);
        }
        self.client.belongs_to(&user);
        let revised = self.session.become_user(user);
        self.apply(revised);
        None
    }

    fn apply(&mut self, revised: Vec<Revised<Arc<Subscription>>>) {
        self.delivery.forget();
        self.count_subscriptions();
        for subscription in revised {
            match subscription {
                Revised::Kept(subscription, filter) => self.router.refilter(&subscription, filter),
                Revised::Ended(subscription, fault) => {
                    self.router.unsubscribe(&subscription);
                    self.delivery.answer(|out| encode::error(out, &fault));
                }
            }
        }
    }
}
