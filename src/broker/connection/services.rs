//! What the broker itself answers: requests that nobody listens to, and the few subjects that clients expect a server to
//! know.

use std::time::SystemTime;

use super::super::protocol::{Publish, encode};
use super::Connection;

/// Subject on which a client asks who it is.
const USER_INFO: &[u8] = b"$SYS.REQ.USER.INFO";
/// Begin of the subjects of JetStream, which is not here.
const JETSTREAM: &[u8] = b"$JS.API.";
/// The only account there is, by nats-server's name for it.
const ACCOUNT: &str = "$G";
/// What nats-server says where JetStream is not enabled.
const NO_JETSTREAM: &str = r#"{"error":{"code":503,"err_code":10076,"description":"JetStream not enabled"}}"#;

impl Connection {
    /// Answers a request for what only the broker knows, whoever else listens there; whether it was one.
    #[inline]
    pub(super) fn serve(&mut self, subject: &[u8], reply: &[u8]) -> bool {
        if subject != USER_INFO {
            return false;
        }
        let who = self.who();
        self.answer_to(reply, &who);
        true
    }

    /// Nobody heard a request on `subject`: tells the client so.
    pub(super) fn unheard(&mut self, subject: &[u8], reply: &[u8]) {
        let options = self.session.options();
        if options.no_responders || (options.headers && subject.starts_with(JETSTREAM)) {
            self.delivery.no_responders(subject, reply);
        } else if subject.starts_with(JETSTREAM) {
            // nats-server says nothing to a client that understands no status, and lets it wait.
            self.answer_to(reply, NO_JETSTREAM);
        }
    }

    /// What nats-server answers on [`USER_INFO`]. A user without restrictions has no `permissions` in it.
    fn who(&self) -> String {
        let info = &self.router.info;
        let mut data = serde_json::Map::new();
        data.insert("user".into(), self.session.user().map_or("", |user| &user.name).into());
        data.insert("account".into(), ACCOUNT.into());
        data.insert("account_name".into(), ACCOUNT.into());
        if let Some(user) = self.session.user() {
            if user.permissions != Default::default()
                && let Ok(permissions) = serde_json::to_value(&user.permissions)
            {
                data.insert("permissions".into(), permissions);
            }
            if let Some(end) = user.expires {
                let left = end.duration_since(SystemTime::now()).unwrap_or_default();
                data.insert("expires".into(), i64::try_from(left.as_nanos()).unwrap_or(i64::MAX).into());
            }
        }
        let server = serde_json::json!({
            "name": info.server_name, "host": info.host, "id": info.server_id, "ver": info.version, "jetstream": false,
            "flags": 0, "seq": self.router.next_answer(), "time": jiff::Timestamp::now().to_string(),
        });
        serde_json::json!({ "server": server, "data": data }).to_string()
    }

    /// Sends `body` to the client's own subscription on `reply`, if it has one.
    fn answer_to(&mut self, reply: &[u8], body: &str) {
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
}
