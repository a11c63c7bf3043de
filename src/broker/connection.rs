//! One client's task: greets it, reads and performs what it sends, writes what waits for it, and looks whether it is
//! still there. Spawned by the accept loop, which knows nothing of handshakes.
//!
//! Three futures run side by side in the one task: reading, writing and the heartbeat. The first to end ends the others;
//! then what is still queued goes out within a bounded time.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::auth::{Credentials, Denied, User};
use super::backlog::Batch;
use super::delivery::{Body, Delivery};
use super::outbound::{LINGER, Outbound};
use super::protocol::connect::ConnectOptions;
use super::protocol::parse::{Bounds, Parser};
use super::protocol::{Fault, Op, Publish, ServerInfo, encode};
use super::router::{Client, Router, Subscription};
use super::session::{Session, Step};
use super::transport::Transport;

/// Room for the first read: enough for CONNECT, little for ten thousand idle clients.
const MIN_READ: usize = 4 * 1024;
/// Room for a read of a client that fills it every time.
const MAX_READ: usize = 64 * 1024;
/// Reads after which a client that always has more lets others run: half a megabyte.
const READS_PER_TURN: u32 = 8;
/// Bodies from here on are shared between receivers instead of copied: below, counting references and writing in more
/// pieces costs more than the copy, and a small body would keep a whole read buffer alive.
const SHARE_FROM: usize = 16 * 1024;
/// Bytes read and thrown away after a fault, so that the client gets to read why before its own writes fail.
const MAX_DISCARD: usize = 4 * 1024 * 1024;
/// Subject on which a client asks who it is.
const USER_INFO: &[u8] = b"$SYS.REQ.USER.INFO";

/// Serves `stream` until it ends. Whatever the client does, and even if this panics, its traces vanish from the router.
pub async fn serve(router: Arc<Router>, stream: TcpStream, peer: SocketAddr) {
    let transport = Arc::new(Transport::plain(stream));
    let outbound = Outbound::new(transport.clone(), router.limits.max_pending);
    let admitted = router.authenticator.is_none();
    let client = Arc::new(Client::new(router.next_id(), outbound, admitted));
    let nonce = router.authenticator.as_ref().filter(|a| a.wants_nonce()).map(|_| new_nonce());
    let mut connection = Connection {
        session: Session::new(!admitted, router.limits.max_subscriptions),
        delivery: Delivery::new(router.clone(), client.clone()),
        bounds: Bounds { control_line: router.limits.max_control_line, payload: router.limits.max_payload },
        parser: Parser::default(),
        router: router.clone(),
        client: client.clone(),
        peer,
        nonce,
    };
    let greeting = connection.info();
    connection.delivery.answer(|out| encode::info(out, &greeting));
    connection.delivery.commit();
    if !router.register(&client) {
        client.outbound.finish(Some(&Fault::Connections));
    }
    let writing = async {
        if client.outbound.run(&transport, router.limits.write_deadline).await.is_err() {
            router.counters.slow_consumers.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(client = client.id, %peer, "slow consumer cut off: write deadline");
        }
    };
    tokio::pin!(writing);
    let ended = tokio::select! {
        () = &mut writing => None,
        fault = connection.read(&transport) => Some(fault),
        fault = heartbeat(&client, &router) => Some(Some(fault)),
    };
    if let Some(fault) = ended {
        if let Some(fault) = &fault {
            tracing::debug!(client = client.id, %peer, %fault, "closing");
        }
        client.outbound.finish(fault.as_ref());
        let _ = tokio::time::timeout(LINGER, &mut writing).await;
    }
    drop(connection); // nobody counts or routes to it any more
    transport.shutdown_write();
    discard(&transport).await;
}

/// Waits for the client to read and close, so that what we wrote last is not lost to a reset.
async fn discard(transport: &Transport) {
    let drain = async {
        let mut buffer = BytesMut::new();
        let mut total = 0;
        while total < MAX_DISCARD {
            buffer.clear();
            buffer.reserve(MIN_READ);
            match transport.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => total += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if transport.readable().await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drain).await;
}

/// Ends when the client has not said who it is in time, or leaves pings unanswered.
async fn heartbeat(client: &Client, router: &Router) -> Fault {
    let limits = &router.limits;
    if !client.admitted.load(Ordering::Relaxed) {
        tokio::time::sleep(limits.auth_timeout).await;
        if !client.admitted.load(Ordering::Relaxed) {
            return Fault::AuthTimeout;
        }
    }
    let mut unanswered = 0;
    loop {
        tokio::time::sleep(limits.ping_interval.max(Duration::from_millis(1))).await;
        if client.heard.swap(false, Ordering::Relaxed) {
            unanswered = 0;
        } else if unanswered >= limits.max_pings_out {
            return Fault::Stale;
        }
        unanswered += 1;
        let mut batch = Batch::default();
        batch.tail().extend_from_slice(encode::PING);
        if client.outbound.enqueue(&mut batch).is_ok() {
            client.outbound.flush_now();
        }
    }
}

fn new_nonce() -> String {
    let mut bytes = [0u8; 11];
    // Without randomness nobody can sign in; the nonce is then refused by whoever checks it.
    if getrandom::fill(&mut bytes).is_err() {
        return String::new();
    }
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}

struct Connection {
    router: Arc<Router>,
    client: Arc<Client>,
    peer: SocketAddr,
    nonce: Option<String>,
    session: Session<Arc<Subscription>>,
    delivery: Delivery,
    parser: Parser,
    bounds: Bounds,
}

impl Drop for Connection {
    fn drop(&mut self) {
        for subscription in self.session.take_subscriptions() {
            self.router.unsubscribe(&subscription);
        }
        self.client.outbound.abandon();
        self.router.unregister(self.client.id);
    }
}

impl Connection {
    fn info(&self) -> ServerInfo {
        ServerInfo {
            client_id: self.client.id,
            client_ip: self.peer.ip().to_canonical().to_string(),
            nonce: self.nonce.clone(),
            ..self.router.info.clone()
        }
    }

    /// Reads until the peer closes (`None`) or breaks a rule.
    async fn read(&mut self, transport: &Transport) -> Option<Fault> {
        let mut buffer = BytesMut::new();
        let mut room = MIN_READ;
        let mut turns = 0u32;
        loop {
            // A body on its way is given room step by step: announcing much costs the peer nothing.
            let missing = self.parser.need().saturating_sub(buffer.len()).min(buffer.len().max(MAX_READ));
            buffer.reserve(room.max(missing));
            match transport.try_read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => {
                    room = if count >= room { (room * 4).min(MAX_READ) } else { room };
                    self.client.heard.store(true, Ordering::Relaxed);
                    let fault = self.perform(&mut buffer);
                    self.delivery.commit();
                    if fault.is_some() {
                        return fault;
                    }
                    self.delivery.stall().await;
                    turns = turns.wrapping_add(1);
                    if turns.is_multiple_of(READS_PER_TURN) {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if buffer.is_empty() {
                        buffer = BytesMut::new(); // an idle client holds no buffer
                    }
                    if transport.readable().await.is_err() {
                        return None;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Performs every whole operation in `buffer` and leaves the rest in it.
    fn perform(&mut self, buffer: &mut BytesMut) -> Option<Fault> {
        let mut done = 0;
        loop {
            let input = buffer.get(done..).unwrap_or_default();
            if input.is_empty() {
                break;
            }
            if self.session.awaits_connect() && !matches!(input.first(), Some(b'C' | b'c')) {
                return Some(Fault::Authorization);
            }
            match self.parser.next(input, &self.bounds) {
                Err(fault) => return Some(fault),
                Ok(None) => break,
                Ok(Some((Op::Publish(message), used))) if message.body.len() >= SHARE_FROM => {
                    let frame = buffer.split_to(done + used).freeze();
                    let fault = self.perform_shared(&frame.slice(done..));
                    done = 0;
                    if fault.is_some() {
                        return fault;
                    }
                }
                Ok(Some((op, used))) => {
                    done += used;
                    if let Some(fault) = self.operation(op, None) {
                        return Some(fault);
                    }
                }
            }
        }
        let _ = buffer.split_to(done);
        None
    }

    /// Performs the one operation in `frame`, a message whose body is to be shared.
    fn perform_shared(&mut self, frame: &Bytes) -> Option<Fault> {
        match Parser::default().next(frame, &self.bounds) {
            Ok(Some((Op::Publish(message), _))) => {
                let body = frame.slice_ref(message.body);
                self.operation(Op::Publish(message), Some(&body))
            }
            Ok(_) => None,
            Err(fault) => Some(fault),
        }
    }

    #[inline]
    fn operation(&mut self, op: Op<'_>, shared: Option<&Bytes>) -> Option<Fault> {
        if !matches!(op, Op::Publish(_)) {
            self.forget_expired();
        }
        match self.session.handle(op) {
            Step::Publish(message) => self.publish(&message, shared),
            Step::Nothing => {}
            Step::Accepted => self.accept(),
            Step::Pong => self.delivery.answer(|out| out.extend_from_slice(encode::PONG)),
            Step::Subscribe(wanted) => {
                let made = self.router.subscribe(&self.client, wanted.sid, wanted.subject, wanted.queue, wanted.filter);
                self.session.subscribed(wanted.sid, made);
                self.accept();
            }
            Step::Unsubscribe { sid, max } => {
                let more = max > 0 && self.session.subscription(sid).is_some_and(|held| held.limit(max));
                if !more && let Some(held) = self.session.unsubscribe(sid) {
                    self.router.unsubscribe(&held);
                }
                self.accept();
            }
            Step::Authenticate(options) => return self.authenticate(*options),
            Step::Refuse(fault) if fault.closes() => return Some(fault),
            Step::Refuse(fault) => self.delivery.answer(|out| encode::error(out, &fault)),
        }
        None
    }

    /// Forgets subscriptions that had their last message.
    fn forget_expired(&mut self) {
        for (id, sid) in self.client.take_expired() {
            if self.session.subscription(&sid).is_some_and(|held| held.id == id) {
                self.session.unsubscribe(&sid);
            }
        }
    }

    fn accept(&mut self) {
        if self.session.options().verbose {
            self.delivery.answer(|out| out.extend_from_slice(encode::OK));
        }
    }

    #[inline]
    fn publish(&mut self, message: &Publish<'_>, shared: Option<&Bytes>) {
        self.delivery.count_in(message.body.len());
        let verdict = self.delivery.verdict(message.subject, |subject| self.session.judge(subject));
        let options = self.session.options();
        let (no_responders, pedantic) = (options.no_responders, options.pedantic);
        if pedantic && !verdict.literal {
            self.delivery.answer(|out| encode::error(out, &Fault::PublishSubject));
        }
        if !verdict.allowed {
            let fault = Fault::PublishDenied(String::from_utf8_lossy(message.subject).into_owned());
            return self.delivery.answer(|out| encode::error(out, &fault));
        }
        self.accept();
        let heard = self.delivery.publish(message, shared.map_or(Body::Copied, Body::Shared));
        if !heard && let Some(reply) = message.reply {
            if message.subject == USER_INFO {
                self.say_who(reply);
            } else if no_responders {
                self.delivery.no_responders(message.subject, reply);
            }
        }
    }

    /// Answers `$SYS.REQ.USER.INFO`.
    fn say_who(&mut self, reply: &[u8]) {
        let Some(user) = self.session.user().cloned() else { return };
        let info = &self.router.info;
        let mut data = serde_json::json!({ "user": user.name, "account": "$G", "account_name": "$G" });
        if user.permissions != Default::default()
            && let (Some(data), Ok(permissions)) = (data.as_object_mut(), serde_json::to_value(&user.permissions))
        {
            data.insert("permissions".into(), permissions);
        }
        let server = serde_json::json!({
            "name": info.server_name, "host": info.host, "id": info.server_id, "ver": info.version, "jetstream": false,
        });
        let body = serde_json::json!({ "server": server, "data": data }).to_string();
        let size = body.len().to_string();
        let message = Publish {
            subject: reply,
            reply: None,
            header_size: None,
            total_size: size.as_bytes(),
            body: body.as_bytes(),
            rest: None,
        };
        if let Some(listener) = self.delivery.own_listener(reply, true) {
            self.delivery.answer(|out| {
                encode::message_line(out, &message, &listener.sid);
                out.extend_from_slice(message.body);
                out.extend_from_slice(encode::CRLF);
            });
        }
    }

    fn authenticate(&mut self, options: ConnectOptions) -> Option<Fault> {
        let user = loop {
            let revocations = self.router.revocations();
            let user = match self.ask_who(&options) {
                Ok(user) => user,
                Err(denied) => {
                    tracing::info!(client = self.client.id, peer = %self.peer, %denied, "client refused");
                    return Some(Fault::Authorization);
                }
            };
            self.client.user.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&user.name);
            // Rights taken away while we asked may have been these, and the search may have missed us.
            if self.router.revocations() == revocations {
                break user;
            }
        };
        self.client.headers.store(options.headers, Ordering::Relaxed);
        self.client.late_info.store(options.protocol >= 1, Ordering::Relaxed);
        self.client.admitted.store(true, Ordering::Relaxed);
        self.delivery.echo = options.echo;
        self.delivery.forget();
        for held in self.session.connected(options, user) {
            self.router.unsubscribe(&held);
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
            nonce: self.nonce.as_deref(),
            peer: self.peer,
        })
    }
}
