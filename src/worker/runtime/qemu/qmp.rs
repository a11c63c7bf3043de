//! The connection to one QEMU: commands one at a time, events as they come.
//!
//! QEMU serves one such client at a time and lets a second one wait in silence, so there is one [`Qmp`] per VM, owned
//! by its `Machine` in `vm.rs`. Its task ends when QEMU closes the socket, which is the first sign of its end.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::codec::{Framed, LinesCodec};

use super::super::RuntimeError;
use crate::task::{self, Task};

/// The longest line QEMU may send: `info usernet` tells of every connection in one line of JSON, 80 bytes each, and a guest
/// may have as many as its host has descriptors and ports for.
const MAX_LINE: usize = 16 << 20;
/// Commands waiting for their turn; each caller waits for its own, so this is about how many may dial at once.
const MAX_WAITING: usize = 64;
/// QEMU answers in milliseconds; under heavy load its main loop may be busy for seconds.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// What the events have told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The guest has switched its network card on.
    pub network_up: bool,
    /// QEMU is about to end, and why.
    pub shutdown: Option<Shutdown>,
    /// The connection has ended.
    pub closed: bool,
}

/// QEMU's own word on why it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// The guest asked for it.
    pub guest: bool,
    /// `guest-shutdown`, `host-qmp-quit`, `host-signal`, …
    pub reason: String,
}

struct Command {
    name: &'static str,
    arguments: Value,
    reply: oneshot::Sender<Result<Value, String>>,
}

/// A handle to the connection; dropping it closes the connection.
#[derive(Debug)]
pub struct Qmp {
    commands: mpsc::Sender<Command>,
    seen: watch::Receiver<Seen>,
    _task: Task,
}

/// A line from QEMU.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Reply { id: u64, result: Result<Value, String> },
    Network,
    Shutdown(Shutdown),
    Other,
}

fn parse(line: &str) -> Result<Message, serde_json::Error> {
    let mut value: Value = serde_json::from_str(line)?;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    if value.get("QMP").is_some() {
        return Ok(Message::Greeting);
    }
    if let Some(event) = value.get("event").and_then(Value::as_str) {
        let data = value.get("data");
        return Ok(match event {
            "NIC_RX_FILTER_CHANGED" => Message::Network,
            "SHUTDOWN" => Message::Shutdown(Shutdown {
                guest: data.and_then(|d| d.get("guest")).and_then(Value::as_bool).unwrap_or(false),
                reason: text(data.and_then(|d| d.get("reason"))),
            }),
            _ => Message::Other,
        });
    }
    let Some(id) = value.get("id").and_then(Value::as_u64) else { return Ok(Message::Other) };
    let result = match value.get("error") {
        Some(error) => Err(text(error.get("desc"))),
        None => Ok(value.get_mut("return").map(Value::take).unwrap_or_default()),
    };
    Ok(Message::Reply { id, result })
}

impl Qmp {
    /// Greets QEMU over a fresh connection. Cancel safe: a dropped call closes the connection.
    ///
    /// # Errors
    /// When QEMU does not answer in time (another client may hold its one place), or not as QEMU would.
    pub async fn open(stream: UnixStream) -> Result<Self, RuntimeError> {
        let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE));
        let greeting = tokio::time::timeout(REPLY_LIMIT, lines.next()).await.map_err(|_| {
            RuntimeError::Timeout("QEMU does not answer on its control socket; does another program hold it?".into())
        })?;
        match greeting {
            Some(Ok(line)) if matches!(parse(&line), Ok(Message::Greeting)) => {}
            other => {
                let found = other.map_or_else(|| "nothing".to_owned(), |line| format!("{line:?}"));
                return Err(RuntimeError::Tool(format!("QEMU's control socket greeted with {found}")));
            }
        }
        let (commands, queue) = mpsc::channel(MAX_WAITING);
        let (tell, seen) = watch::channel(Seen::default());
        let qmp = Self { commands, seen, _task: task::spawn(serve(lines, queue, tell)) };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`RuntimeError::Tool`] with QEMU's own words, [`RuntimeError::State`] when the connection has ended,
    /// [`RuntimeError::Timeout`] when no answer came.
    pub async fn execute(&self, name: &'static str, arguments: Value) -> Result<Value, RuntimeError> {
        let ended = || RuntimeError::State(format!("QEMU closed its control socket before it answered {name}"));
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.commands.send(Command { name, arguments, reply }).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())
        };
        match tokio::time::timeout(REPLY_LIMIT, exchange).await {
            Ok(result) => result?.map_err(|why| RuntimeError::Tool(format!("QEMU refused {name}: {why}"))),
            Err(_) => {
                let limit = REPLY_LIMIT.as_secs();
                Err(RuntimeError::Timeout(format!("QEMU did not answer {name} within {limit} s")))
            }
        }
    }

    /// Runs a command of the human monitor, which answers in text, errors too.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn monitor(&self, line: &str) -> Result<String, RuntimeError> {
        let reply = self.execute("human-monitor-command", json!({ "command-line": line })).await?;
        Ok(reply.as_str().unwrap_or_default().to_owned())
    }

    /// What the events have told, now and later.
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }
}

/// Owns the socket: writes the next command once the one before is answered, and sorts what comes in.
async fn serve(
    mut lines: Framed<UnixStream, LinesCodec>,
    mut queue: mpsc::Receiver<Command>,
    tell: watch::Sender<Seen>,
) {
    let mut pending: Option<(u64, oneshot::Sender<_>)> = None;
    let mut last_id = 0u64;
    loop {
        tokio::select! {
            line = lines.next() => {
                let Some(Ok(line)) = line else { break };
                match parse(&line) {
                    Ok(Message::Reply { id, result }) => {
                        if let Some((_, reply)) = pending.take_if(|(waiting, _)| *waiting == id) {
                            let _ = reply.send(result);
                        }
                    }
                    Ok(Message::Network) => { tell.send_modify(|seen| seen.network_up = true); }
                    Ok(Message::Shutdown(shutdown)) => { tell.send_modify(|seen| seen.shutdown = Some(shutdown)); }
                    Ok(Message::Greeting | Message::Other) => {}
                    Err(error) => {
                        tracing::warn!(%error, "QEMU sent what is not JSON");
                        break;
                    }
                }
            }
            Some(command) = queue.recv(), if pending.is_none() => {
                if command.reply.is_closed() {
                    continue; // its caller gave up while it waited
                }
                last_id += 1;
                let line = json!({ "execute": command.name, "arguments": command.arguments, "id": last_id });
                pending = Some((last_id, command.reply));
                // A few hundred bytes into an empty socket buffer: this does not stall the events.
                if lines.send(line.to_string()).await.is_err() {
                    break;
                }
            }
        }
    }
    tell.send_modify(|seen| seen.closed = true);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(parse(r#"{"QMP": {"version": {}}}"#).unwrap(), Message::Greeting);
        let reply = parse(r#"{"return": "text", "id": 7}"#).unwrap();
        assert_eq!(reply, Message::Reply { id: 7, result: Ok("text".into()) });
        let refusal = parse(r#"{"id": 7, "error": {"class": "GenericError", "desc": "no"}}"#).unwrap();
        assert_eq!(refusal, Message::Reply { id: 7, result: Err("no".into()) });
        let event = r#"{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#;
        let shutdown = Shutdown { guest: true, reason: "guest-shutdown".into() };
        assert_eq!(parse(event).unwrap(), Message::Shutdown(shutdown));
        assert_eq!(parse(r#"{"event": "NIC_RX_FILTER_CHANGED", "data": {}}"#).unwrap(), Message::Network);
        assert_eq!(parse(r#"{"event": "RESET"}"#).unwrap(), Message::Other);
        assert!(parse("banana").is_err());
    }

    #[tokio::test]
    async fn a_guest_with_very_many_connections_does_not_cut_the_control_connection() {
        const CONNECTIONS: usize = 100_000;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let _qemu = task::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut read = BufReader::new(read).lines();
            write.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            while let Some(line) = read.next_line().await.unwrap() {
                let command: Value = serde_json::from_str(&line).unwrap();
                let row = "  TCP[ESTABLISHED]   22       127.0.0.1 38455       10.0.2.15  8080     0     0\r\n";
                let answer = json!({ "return": row.repeat(CONNECTIONS), "id": command["id"] });
                write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            }
        });
        let qmp = Qmp::open(ours).await.unwrap();
        assert_eq!(qmp.monitor("info usernet").await.unwrap().lines().count(), CONNECTIONS);
        assert!(!qmp.seen().borrow().closed);
    }

    #[tokio::test]
    async fn commands_take_turns_and_events_pass_between_them() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = task::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut read = BufReader::new(read).lines();
            write.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            while let Some(line) = read.next_line().await.unwrap() {
                let command: Value = serde_json::from_str(&line).unwrap();
                let id = &command["id"];
                let text = &command["arguments"]["command-line"];
                let answer = format!("{{\"event\":\"NIC_RX_FILTER_CHANGED\"}}\n{{\"return\":{text},\"id\":{id}}}\n");
                write.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let qmp = Qmp::open(ours).await.unwrap();
        let (a, b) = tokio::join!(qmp.monitor("a"), qmp.monitor("b"));
        assert_eq!((a.unwrap().as_str(), b.unwrap().as_str()), ("a", "b"));
        assert!(qmp.seen().borrow().network_up);
        qemu.abort().await;
        let mut seen = qmp.seen();
        seen.wait_for(|seen| seen.closed).await.unwrap();
        assert!(matches!(qmp.monitor("c").await, Err(RuntimeError::State(_))));
    }
}
