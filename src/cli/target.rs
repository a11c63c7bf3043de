//! What `ssh`, `exec`, `cp`, `proxy` and `port-forward` connect to: a VM, which may still be booting, or a worker's machine.
//! Tried until `--wait` has passed; what runs then does so once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::client::Client;
use super::connect::{self, Dialer, End, Opened, Place};
use super::host_keys::HostKeys;
use super::login;
use super::output::Progress;
use crate::config::duration;
use crate::model::VmUid;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::vm::{RestartPolicy, Vm, VmStatus};
use crate::ssh::client::{SILENCE, Session};
use crate::ssh::{HostKeyCheck, Login, SshError};
use crate::tunnel::resume::GIVE_UP_AFTER;
use crate::tunnel::resume::client::Silence;

/// The port of SSH servers.
pub(super) const SSH_PORT: u16 = 22;
/// Pause before the second try; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between tries: what a user hardly notices after a boot.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// The least time for an attempt, even when `--wait` has nearly run out: what one takes over a slow line.
const MIN_ATTEMPT: Duration = Duration::from_secs(5);
/// The most time for a handshake: one that hangs because the guest rebooted is better tried anew.
const MAX_LOGIN: Duration = Duration::from_secs(20);
/// How long a guest may be silent where a lost connection comes back by itself: as long as that may take, and what is allowed
/// anyhow. One that hangs while the connection is there is noticed earlier, see [`hung`].
const BRIDGED: Duration = Duration::from_secs(GIVE_UP_AFTER.as_secs() + SILENCE.as_secs());
/// How often it is looked for that.
const LOOK: Duration = Duration::from_secs(5);
/// How soon the waiting is told of: a guest that is up answers faster.
const QUIET: Duration = Duration::from_secs(2);

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may succeed later.
    Passing(String),
    /// It will not.
    Final(anyhow::Error),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        match error.code {
            // A VM that does not run yet is a conflict with its state.
            ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::Conflict => Failure::Passing(error.message),
            _ => Failure::Final(error.into()),
        }
    }
}

/// What is connected to.
pub(super) struct Target {
    pub(super) client: Client,
    pub(super) dialer: Dialer,
    pub(super) place: Place,
    /// Which one of that name it is; for a worker, and for an account that may not see VMs, only known once the first ticket says so.
    end: OnceLock<End>,
    /// This account may not see VMs: it is not asked for again, as each refusal stands in the audit trail.
    unseen: AtomicBool,
    host_keys: HostKeys,
}

impl Target {
    /// What is at `place`, as far as it can be seen.
    pub(super) async fn find(client: &Client, place: Place) -> anyhow::Result<Self> {
        let (end, unseen) = (OnceLock::new(), AtomicBool::new(false));
        if let Place::Vm(name) = &place {
            match client.vm_if_visible(name).await? {
                Some(vm) => drop(end.set(End::Vm { uid: vm.uid, attempt: None })),
                None => unseen.store(true, Ordering::Relaxed),
            }
        }
        let host_keys = HostKeys::locate()?;
        Ok(Self { client: client.clone(), dialer: connect::dialer(client), place, end, unseen, host_keys })
    }

    /// Logs in to the SSH server at `port`, however often that takes within `wait`. Beside the session stands for how long nothing
    /// has come of it, if it may stand still: see [`hung`].
    pub(super) async fn connect(
        &self,
        port: u16,
        login: &Login,
        wait: Duration,
    ) -> anyhow::Result<(Session, Option<Silence>)> {
        let mut login = login.clone();
        let mut asked = 0;
        loop {
            let attempt = async |deadline| self.attempt(port, &login, deadline).await;
            match self.until("answer SSH", wait, attempt).await {
                Ok(session) => return Ok(session),
                Err(error) => login = login::ask(login, error, &self.place, &mut asked).await?,
            }
        }
    }

    /// Does `work` on a session; ends it when the guest is hung, which a session that may stand still does not notice.
    pub(super) async fn unless_hung<T>(
        &self,
        silence: Option<Silence>,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            () = hung(silence, self.dialer.lost()) => Err(anyhow::anyhow!(
                "its SSH server has not answered for {} s, while the connection to it is up", SILENCE.as_secs()
            )),
        }
    }

    /// Tries until it succeeds, it cannot any more, or `wait` has passed; `what` was to be done there is for the error then. An
    /// attempt gets its deadline.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        wait: Duration,
        attempt: impl AsyncFn(Instant) -> Result<T, Failure>,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        let deadline = started + wait;
        let mut pause = FIRST_PAUSE;
        let mut progress: Option<Progress> = None;
        loop {
            let reason = match attempt(deadline.max(Instant::now() + MIN_ATTEMPT)).await {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason)) => reason,
            };
            let why = self.explained(reason).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let place = &self.place;
                match wait.is_zero() {
                    true => anyhow::bail!("{place} did not {what}: {why}; --wait gives it time"),
                    false => anyhow::bail!(
                        "{place} did not {what} within {}: {why}; --wait gives it more time",
                        duration::show(wait)
                    ),
                }
            }
            if started.elapsed() > QUIET {
                progress.get_or_insert_with(Progress::start).say(&format!("waiting for {}: {why}", self.place));
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Why something did not work, with how the VM stands; an error when waiting for it is in vain.
    async fn explained(&self, reason: String) -> anyhow::Result<String> {
        // What is wrong with a worker, the controller's own refusal says.
        let Place::Vm(name) = &self.place else { return Ok(reason) };
        match self.client.vm_if_visible(name).await {
            Ok(Some(vm)) => {
                let known = self.end.get_or_init(|| End::Vm { uid: vm.uid, attempt: None });
                let uid = if let End::Vm { uid, .. } = known { *uid } else { vm.uid };
                Ok(join(&reason, &standing(uid, &vm).map_err(|why| anyhow::anyhow!(why))?))
            }
            Ok(None) => Ok(reason),
            Err(error) if error.code == ErrorCode::NotFound => Err(error.into()),
            Err(error) => Ok(join(&reason, &error.message)),
        }
    }

    /// Opens a stream to a port of the same VM or machine as before.
    pub(super) async fn open(&self, port: u16, deadline: Instant) -> Result<Opened, Failure> {
        let opened = tokio::time::timeout_at(deadline, self.dialer.open(&self.place, port))
            .await
            .map_err(|_| Failure::Passing("no way into it was open in time".to_owned()))??;
        if !self.is_known(&opened.end) {
            return Err(Failure::Final(anyhow::anyhow!(replaced(&self.place))));
        }
        Ok(opened)
    }

    /// Whether this is the VM, or the machine, that was there first.
    pub(super) fn is_known(&self, end: &End) -> bool {
        end.is(self.end.get_or_init(|| end.clone()))
    }

    /// Why waiting for the VM of this name, whichever it is by now, is in vain, if it can be seen to be.
    pub(super) async fn in_vain(&self) -> Result<Option<String>, ApiError> {
        let Place::Vm(name) = &self.place else { return Ok(None) };
        if self.unseen.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let seen = self.client.vm_if_visible(name).await?;
        Ok(seen.and_then(|vm| standing(vm.uid, &vm).err()))
    }

    async fn attempt(
        &self,
        port: u16,
        login: &Login,
        deadline: Instant,
    ) -> Result<(Session, Option<Silence>), Failure> {
        let opened = self.open(port, deadline).await?;
        let left = match self.place {
            Place::Vm(_) => deadline.saturating_duration_since(Instant::now()).min(MAX_LOGIN),
            // It is not booting: what takes its time there, such as a key to be touched, is not to be waited for otherwise.
            Place::Worker(_) => MAX_LOGIN,
        };
        let check = self.host_keys.check_of(&self.place, &opened.end);
        let silence = opened.silence.clone();
        Ok((log_in(opened, login, check, left).await?, silence))
    }
}

fn replaced(place: &Place) -> String {
    format!("{}; run the command again for the new one", place.replaced())
}

/// How the VM stands, in words; an error when waiting for it is in vain.
fn standing(waited_for: VmUid, vm: &Vm) -> Result<String, String> {
    if vm.uid != waited_for {
        return Err(replaced(&Place::Vm(vm.name.clone())));
    }
    // Whoever switched it off means it: it does not come back by itself.
    if vm.is_to_be_off() && vm.status != VmStatus::Failed {
        let name = &vm.name;
        let (is, power) = (if vm.is_off() { "is" } else { "is being" }, vm.spec.power_state);
        return Err(format!("VM {name} {is} {power}; `orchard start vm {name}` switches it on"));
    }
    let why = if vm.status_message.is_empty() { String::new() } else { format!(": {}", vm.status_message) };
    match (vm.status, vm.spec.restart_policy) {
        (VmStatus::Failed, RestartPolicy::Never) => Err(format!("VM {} has failed{why}", vm.name)),
        _ => Ok(format!("the VM is {}{why}", vm.status)),
    }
}

/// The reason with the VM's state behind it, unless it tells as much itself.
fn join(reason: &str, state: &str) -> String {
    let told = state.split_once(": ").is_some_and(|(_, message)| reason.contains(message));
    if told { reason.to_owned() } else { format!("{reason} ({state})") }
}

/// Logs in over `opened`.
async fn log_in(
    opened: Opened,
    login: &Login,
    check: impl HostKeyCheck,
    deadline: Duration,
) -> Result<Session, Failure> {
    let silence = if opened.silence.is_some() { BRIDGED } else { SILENCE };
    let connected = Session::connect_bearing(silence, opened.stream, login.clone(), check, deadline).await;
    connected.map_err(|error| match error {
        SshError::AuthRefused { .. } | SshError::KeyLocked { .. } | SshError::HostKeyRefused { .. } => {
            Failure::Final(error.into())
        }
        // A guest that boots accepts connections and closes them.
        error => Failure::Passing(format!("{:#}", anyhow::Error::new(error))),
    })
}

/// Returns when the guest has said nothing for [`SILENCE`] although it was asked ([`Session`] does so all the time) and the
/// connection was there; never where the SSH connection notices that itself.
async fn hung(silence: Option<Silence>, lost: watch::Receiver<bool>) {
    let Some(silence) = silence else { return std::future::pending().await };
    let mut there = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        if *lost.borrow() {
            there = Instant::now();
        } else if silence.since().is_some_and(|since| since.max(there).elapsed() > SILENCE) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::vm;
    use super::*;
    use crate::model::vm::PowerState;

    #[test]
    fn waiting_ends_when_it_is_in_vain() {
        let mut seen = vm("a", VmStatus::Pending);
        seen.status_message = "no worker fits".into();
        assert_eq!(standing(seen.uid, &seen).as_deref(), Ok("the VM is pending: no worker fits"));
        let other = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        assert!(standing(other, &seen).unwrap_err().contains("anew"));
        seen.status = VmStatus::Failed;
        assert!(standing(seen.uid, &seen).unwrap_err().contains("has failed: no worker fits"));
        seen.spec.restart_policy = RestartPolicy::OnFailure;
        assert!(standing(seen.uid, &seen).is_ok());
    }

    #[test]
    fn nobody_waits_for_a_vm_that_is_switched_off() {
        let mut seen = vm("a", VmStatus::Running);
        seen.spec.power_state = PowerState::Stopped;
        seen.set_conditions(false, false);
        let why = standing(seen.uid, &seen).unwrap_err();
        assert_eq!(why, "VM a is stopped; `orchard start vm a` switches it on");
        seen.set_conditions(true, true);
        assert!(standing(seen.uid, &seen).unwrap_err().contains("is being stopped"));
        seen.spec.power_state = PowerState::Running;
        assert!(standing(seen.uid, &seen).is_ok(), "it boots");
    }

    #[test]
    fn nothing_is_told_twice() {
        assert_eq!(
            join("not running yet: no worker fits", "the VM is pending: no worker fits"),
            "not running yet: no worker fits"
        );
        assert_eq!(
            join("the guest refused", "the VM is running: booting"),
            "the guest refused (the VM is running: booting)"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_counts_as_hung_only_while_the_connection_to_it_is_there() {
        let (lost, seen) = watch::channel(true);
        let mut hung = std::pin::pin!(hung(Some(Silence::for_test(Instant::now())), seen));
        assert!(tokio::time::timeout(Duration::from_secs(300), &mut hung).await.is_err());
        lost.send_replace(false);
        let there = Instant::now();
        hung.await;
        assert!((SILENCE - LOOK..=SILENCE + LOOK).contains(&there.elapsed()), "{:?}", there.elapsed());
    }

    #[test]
    fn a_refusal_is_final_and_an_absence_is_not() {
        let failure = |code| Failure::from(ApiError::new(code, "x"));
        assert!(matches!(failure(ErrorCode::Unavailable), Failure::Passing(_)));
        assert!(matches!(failure(ErrorCode::Conflict), Failure::Passing(_)));
        assert!(matches!(failure(ErrorCode::NotFound), Failure::Final(_)));
        assert!(matches!(failure(ErrorCode::Forbidden), Failure::Final(_)));
    }
}
