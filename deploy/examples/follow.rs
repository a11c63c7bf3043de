//! Follows what happens to the VMs and workers of an Orchard cluster, as JSON, and misses nothing.
//!
//! ```sh
//! cargo run --example follow LAST-NUMBER-FILE
//! ```
//!
//! Says each event as a line of JSON on standard output, and keeps the number of the last one in the file. Started again
//! it goes on behind that; without the file it begins with the oldest event that the controller keeps.
//!
//! The controller and the network may be away for a while. Where trying again does not help, as the account is let in no
//! more or may not follow events, it says so and ends with exit code 1: let a supervisor such as systemd start it again.
//!
//! Environment: `ORCHARD_URL`, `ORCHARD_SERVICE_ACCOUNT_NAME` and `ORCHARD_SERVICE_ACCOUNT_TOKEN`, of an account with the
//! role `compute:read`; `ORCHARD_CA` names the certificate to trust (`controller.crt` of the controller's data folder)
//! where no public CA vouches for it.
//!
//! It uses nothing of Orchard, only `async-nats`, `futures-util`, `serde_json` and `tokio`.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Without an event for so long, the controller is asked whether any was missed.
const SILENCE: Duration = Duration::from_secs(5);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before the controller is asked again, or connected to.
const PAUSE: Duration = Duration::from_millis(500);
/// What the bus says of an account that is let in no more, or has lost the role: it would be silent from then on.
const SHUT_OUT: [&str; 3] = ["permissions violation", "authorization violation", "user authentication"];

type Failure = Box<dyn std::error::Error>;

struct Follower {
    client: Client,
    /// The account as a part of a subject.
    account: String,
    file: PathBuf,
    last: u64,
}

impl Follower {
    /// What your program does with an event. Should it be killed right here, it gets this event once more.
    fn handle(&self, event: &Value) -> Result<(), Failure> {
        writeln!(std::io::stdout(), "{event}")?;
        Ok(())
    }

    /// From now on `number` is done. Never half written: the file is replaced once the other is on the disk.
    fn note(&mut self, number: u64) -> Result<(), Failure> {
        let new = self.file.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{number}")?;
        file.sync_all()?;
        std::fs::rename(&new, &self.file)?;
        self.last = number;
        Ok(())
    }

    fn take(&mut self, event: &Value) -> Result<(), Failure> {
        self.handle(event)?;
        self.note(number(event, "number")?)
    }

    /// An answer of the controller, which may be away for a while.
    async fn ask(&self, verb: &str, request: &Value) -> Result<Value, Failure> {
        let subject = format!("orchard.v1.api.{}.{verb}", self.account);
        loop {
            let request = async_nats::Request::new().payload(request.to_string().into()).timeout(Some(PATIENCE));
            match self.client.send_request(subject.clone(), request).await {
                Ok(reply) => {
                    let mut answer: Value = serde_json::from_slice(&reply.payload)?;
                    match answer.get_mut("ok") {
                        Some(ok) => return Ok(ok.take()),
                        None => match answer.pointer("/error/code").and_then(Value::as_str) {
                            Some("unavailable" | "timeout") => {}
                            _ => return Err(answer.to_string().into()),
                        },
                    }
                }
                Err(error) => eprintln!("waiting for the controller: {error}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks for what was missed.
    async fn catch_up(&mut self) -> Result<(), Failure> {
        loop {
            let page = self.ask("event.list", &json!({ "after": self.last })).await?;
            let (next, last, first) = (number(&page, "next")?, number(&page, "last")?, number(&page, "first_kept")?);
            if last < self.last {
                let seen = self.last;
                return Err(format!("the newest event is #{last}, and #{seen} was already seen: other data").into());
            }
            if first > self.last + 1 && last > self.last {
                eprintln!("events up to #{} are no longer kept", first - 1);
            }
            for event in page.get("events").and_then(Value::as_array).into_iter().flatten() {
                self.take(event)?;
            }
            if next > self.last {
                self.note(next)?;
            }
            if self.last >= last {
                return Ok(());
            }
        }
    }

    async fn follow(mut self) -> Result<(), Failure> {
        // Numbers run over events of VMs and workers alike, so whoever wants to know that none is missing takes both.
        let vms = self.client.subscribe("orchard.v1.events-json.vm.>").await?;
        let workers = self.client.subscribe("orchard.v1.events-json.worker.>").await?;
        let mut events = futures_util::stream::select(vms, workers);
        // Asked behind the subscriptions on one connection: what is not in the answer arrives.
        self.catch_up().await?;
        loop {
            match tokio::time::timeout(SILENCE, events.next()).await {
                Ok(Some(message)) => {
                    let event: Value = serde_json::from_slice(&message.payload)?;
                    match number(&event, "number")? {
                        next if next == self.last + 1 => self.take(&event)?,
                        later if later > self.last => self.catch_up().await?,
                        _ => {}
                    }
                }
                Ok(None) => return Err("the connection is closed".into()),
                Err(_) => self.catch_up().await?,
            }
        }
    }
}

fn number(value: &Value, field: &str) -> Result<u64, Failure> {
    value.get(field).and_then(Value::as_u64).ok_or_else(|| format!("no number {field:?} in {value}").into())
}

/// The number in `file`; 0 where there is none yet.
fn noted(file: &Path) -> Result<u64, Failure> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| {
        let file = file.display();
        format!("{file} holds no number of an event; remove it to begin with the oldest event that is kept").into()
    })
}

/// Why an event of the connection ends everything; `None` for those that pass.
fn end(event: &Event, user: &str) -> Option<String> {
    let text = event.to_string();
    let lower = text.to_lowercase();
    if SHUT_OUT.iter().any(|said| lower.contains(said)) {
        return Some(format!("the account {user} is let in no more, or may not follow events: {text}"));
    }
    matches!(event, Event::Closed).then(|| "the connection is closed".to_owned())
}

async fn run() -> Result<(), Failure> {
    let file = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: follow LAST-NUMBER-FILE")?);
    let last = noted(&file)?;
    let (url, user) = (std::env::var("ORCHARD_URL")?, std::env::var("ORCHARD_SERVICE_ACCOUNT_NAME")?);
    let account = user.replace('.', "%2E");
    let (ends, mut ended) = mpsc::channel(1);
    let told = user.clone();
    let mut options = ConnectOptions::with_user_and_password(user, std::env::var("ORCHARD_SERVICE_ACCOUNT_TOKEN")?)
        // The only one where this account may be answered.
        .custom_inbox_prefix(format!("_INBOX.{account}"))
        .require_tls(url.starts_with("tls://"))
        .reconnect_delay_callback(|_| PAUSE)
        .retry_on_initial_connect()
        .event_callback(move |event| {
            eprintln!("bus: {event}");
            if let Some(why) = end(&event, &told) {
                // One reason is enough.
                drop(ends.try_send(why));
            }
            std::future::ready(())
        });
    if let Some(certificate) = std::env::var_os("ORCHARD_CA") {
        options = options.add_root_certificates(certificate.into());
    }
    let client = options.connect(url).await?;
    tokio::select! {
        followed = Follower { client, account, file, last }.follow() => followed,
        Some(why) = ended.recv() => Err(why.into()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = run().await else { return ExitCode::SUCCESS };
    eprintln!("{error}");
    ExitCode::FAILURE
}
