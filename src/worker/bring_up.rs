//! From a process that runs to a VM that is ready: waits until the guest answers, runs its startup script, and tells how far
//! it is. Called by the copy's task (`worker::vm`), which drops it when something else is to be done.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::host::Host;
use super::journal::ScriptState;
use super::runtime::CopySpec;
use super::spool::LogKey;
use super::uplink::Uplink;
use crate::bus::log::{MAX_LOG_BATCH, MAX_LOG_LINE};
use crate::bus::message::Observation;
use crate::model::vm::{SCRIPT_INTERRUPTED, StartupScript};
use crate::model::{Boot, CopyId};
use crate::ssh::client::Session;
use crate::ssh::{AcceptAny, Login, banner, script};
use crate::task;

/// How long a boot may keep others of the same host waiting.
const BOOT_SLOT: Duration = Duration::from_secs(60);
/// The least and the longest pause between readiness probes. It grows with the time that was waited: a guest that boots slowly
/// is found ready little later, and one that runs no SSH server at all is not asked for ever in vain.
const PROBE_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Which part of the time waited the next pause is.
const PROBE_PART: u32 = 20;
/// After how long a guest that does not answer counts as such.
const SILENT_AFTER: Duration = Duration::from_secs(120);
/// After how long a guest that does not answer fails its VM, if it has a startup script. Without hardware virtualisation a
/// large system may take many minutes.
const SCRIPT_WAIT: Duration = Duration::from_secs(30 * 60);
/// How long one login for the startup script may take: key exchange is slow without hardware virtualisation.
const LOGIN_DEADLINE: Duration = Duration::from_secs(20);
/// How often that is tried: the server may answer before it lets anybody in.
const LOGIN_TRIES: u32 = 6;

/// Lines that were read from the guest and are not written yet: those that come together are written together.
const SAID: usize = MAX_LOG_BATCH;

/// Tells of a copy that runs.
pub(super) struct Reporter {
    uplink: Uplink,
    id: CopyId,
    told: Mutex<Told>,
}

/// What was told last.
struct Told {
    boot: Boot,
    message: String,
    ready: bool,
    generation: u64,
    image_fqn: Option<String>,
}

impl Reporter {
    pub(super) fn new(uplink: Uplink, (id, boot): (CopyId, Boot), generation: u64) -> Self {
        let told = Told { boot, message: String::new(), ready: false, generation, image_fqn: None };
        Self { uplink, id, told: Mutex::new(told) }
    }

    pub(super) fn running(&self, message: &str, ready: bool) {
        let mut told = self.told();
        (told.message, told.ready) = (message.to_owned(), ready);
        self.tell(&told);
    }

    /// Tells the same again, as that of another generation.
    pub(super) fn now_at(&self, boot: Boot, generation: u64) {
        let mut told = self.told();
        (told.boot, told.generation) = (boot, generation);
        self.tell(&told);
    }

    /// Tells the same again, and which image it was made from.
    fn made_from(&self, image_fqn: String) {
        let mut told = self.told();
        told.image_fqn = Some(image_fqn);
        self.tell(&told);
    }

    fn boot(&self) -> Boot {
        self.told().boot
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        // Nothing panics while it is held.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, told: &Told) {
        let Told { message, ready, generation, boot, image_fqn } = told;
        let (message, image_fqn) = (message.clone(), image_fqn.clone());
        let observation = Observation::Running { message, ready: *ready, generation: *generation, image_fqn };
        self.uplink.tell(self.id, *boot, observation);
    }
}

/// Waits for the guest and runs its startup script. An error is the script's.
pub(super) async fn bring_up(
    host: &Host,
    copy: &CopySpec,
    fresh: bool,
    mut slot: Option<OwnedSemaphorePermit>,
    reporter: &Reporter,
) -> Result<(), String> {
    let started = Instant::now();
    if let Some(image_fqn) = host.runtime.image_fqn(copy.id).await {
        reporter.made_from(image_fqn);
    }
    if fresh {
        host.runtime.booted(copy.id).await;
    }
    while !answers(host, copy.id, banner::patience(started.elapsed())).await {
        let waited = started.elapsed();
        if waited > BOOT_SLOT {
            slot = None;
        }
        if waited > SILENT_AFTER {
            reporter.running("running; the guest does not answer on port 22", false);
        }
        if waited > SCRIPT_WAIT && copy.spec.startup_script.is_some() {
            let minutes = SCRIPT_WAIT.as_secs() / 60;
            return Err(format!(
                "cannot run the startup script: the guest has not answered on port 22 for {minutes} minutes; it needs an SSH \
                 server that lets {} in",
                copy.spec.guest_user()
            ));
        }
        tokio::time::sleep((waited / PROBE_PART).clamp(PROBE_PAUSE.0, PROBE_PAUSE.1)).await;
    }
    drop(slot);
    let Some(script) = &copy.spec.startup_script else {
        reporter.running("ready", true);
        return Ok(());
    };
    let key = (copy.id, reporter.boot());
    let mut state = host.journal.script(copy.id);
    if fresh || state == ScriptState::Unstarted {
        reporter.running("running the startup script", false);
        host.journal.set_script(copy.id, ScriptState::Begun);
        state = match run_script(host, copy, key, script).await {
            Ok(()) => ScriptState::Done,
            Err(why) => ScriptState::Failed(why),
        };
        // Before its lines are sent: that may take as long as the bus is away, and a worker that dies meanwhile does not
        // make an interrupted script of one that has ended.
        host.journal.set_script(copy.id, state.clone());
    }
    // Whoever sees the outcome sees the log.
    host.logs.sent(key).await;
    match state {
        ScriptState::Done => reporter.running("ready", true),
        ScriptState::Failed(why) => return Err(why),
        // Ready would mean that the script ended well; half of it may be missing.
        ScriptState::Begun | ScriptState::Unstarted => reporter.running(SCRIPT_INTERRUPTED, false),
    }
    Ok(())
}

async fn answers(host: &Host, id: CopyId, patience: Duration) -> bool {
    match host.runtime.dial(id, SSH_PORT).await {
        Ok(mut stream) => banner::probe(&mut stream, patience).await.is_ok(),
        Err(_) => false,
    }
}

/// Where guests listen for SSH.
const SSH_PORT: u16 = 22;

async fn run_script(host: &Host, copy: &CopySpec, key: LogKey, script: &StartupScript) -> Result<(), String> {
    let session = log_in(host, copy).await.map_err(|error| format!("cannot run the startup script: {error}"))?;
    let log = host.logs.begin(key);
    let (lines, mut said) = mpsc::channel(SAID);
    let writer = task::spawn(async move {
        let mut batch = Vec::new();
        while said.recv_many(&mut batch, SAID).await > 0 {
            log.write(std::mem::take(&mut batch)).await;
        }
    });
    let ended = script::run(&session, script, MAX_LOG_LINE, lines).await;
    writer.join().await;
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            Err(format!("the startup script failed: {status}; `orchard logs vm {}` shows its output", copy.name))
        }
        Err(error) => Err(chain(&error)),
    }
}

async fn log_in(host: &Host, copy: &CopySpec) -> Result<Session, String> {
    let mut last = String::new();
    for attempt in 0..LOGIN_TRIES {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_secs(1 << attempt.min(3))).await;
        }
        let login = Login::with_password(copy.spec.guest_user(), copy.spec.guest_password());
        let stream = match host.runtime.dial(copy.id, SSH_PORT).await {
            Ok(stream) => stream,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        match Session::connect(stream, login, AcceptAny, LOGIN_DEADLINE).await {
            Ok(session) => return Ok(session),
            Err(error @ crate::ssh::SshError::AuthRefused { .. }) => {
                return Err(format!("{}; check the VM's username and password", chain(&error)));
            }
            Err(error) => last = chain(&error),
        }
    }
    Err(format!("{last} ({LOGIN_TRIES} tries)"))
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
