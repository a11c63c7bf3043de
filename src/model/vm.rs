//! A VM: what the user asked for ([`VmSpec`]) and what became of it ([`Vm`]).
//!
//! Field names on the wire are those of `orchard-behaviour` (mixed styles included), so that existing scripts read them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::{ConditionType, Conditions};
use super::resources::{Labels, Resources};
use super::secret::{Secret, redact_urls};
use super::settings::HostDir;
use super::{AccountName, Attempt, Boot, CopyId, Timestamp, VmName, VmUid, WorkerName};

/// The guest's operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    /// macOS.
    Darwin,
    /// Linux.
    Linux,
    /// One of a newer release.
    #[serde(other)]
    Unknown,
}

/// The processor architecture of guest and host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit ARM.
    Arm64,
    /// 64-bit x86.
    Amd64,
    /// One of a newer release.
    #[serde(other)]
    Unknown,
}

impl Arch {
    /// The architecture this binary was built for: one that it knows.
    pub const HOST: Arch = if cfg!(target_arch = "aarch64") { Arch::Arm64 } else { Arch::Amd64 };
}

/// What runs the VM on the worker's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// Tart, on Apple Silicon.
    Tart,
    /// Vetu, on Linux.
    Vetu,
    /// QEMU, on Linux and macOS.
    Qemu,
    /// No real guests: for scale and fault tests, and for trying Orchard without a hypervisor.
    Synthetic,
    /// One of a newer release.
    #[serde(other)]
    Unknown,
}

/// What happens when a VM fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RestartPolicy {
    /// It stays failed.
    #[default]
    Never,
    /// It starts over, from its image, with a growing pause between tries.
    OnFailure,
    /// It is started again from its own disk, on its worker, however it ended; with a growing pause. If the disk is not to
    /// be had it starts over from its image.
    Always,
}

/// What becomes of a VM whose worker is not heard of any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnUnseen {
    /// It is left alone: its worker goes on running it, and says so when it is back.
    #[default]
    Keep,
    /// Its worker stops it when its lease is over, and it starts over elsewhere once that is certain.
    Replace,
}

/// Whether a VM shall run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// It runs.
    #[default]
    Running,
    /// It is switched off; its disk stays on its worker.
    Stopped,
    /// It is frozen, memory and all, into a file on its worker.
    Suspended,
}

/// What a virtual machine begins to boot with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// What machines of that architecture have by default: a BIOS on amd64, UEFI on arm64.
    #[default]
    Default,
    /// UEFI.
    Uefi,
}

text_enum!(Firmware: Default = "default", Uefi = "uefi");
/// When the image is fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// When its worker does not have it.
    #[default]
    IfNotPresent,
    /// Before each creation, so that a name that was given to another image since means that one.
    Always,
}

text_enum!(ImagePullPolicy: IfNotPresent = "IfNotPresent", Always = "Always");
text_enum!(Os: Darwin = "darwin", Linux = "linux"; else Unknown);
text_enum!(Arch: Arm64 = "arm64", Amd64 = "amd64"; else Unknown);
text_enum!(RuntimeKind: Tart = "tart", Vetu = "vetu", Qemu = "qemu", Synthetic = "synthetic"; else Unknown);
text_enum!(RestartPolicy: Never = "Never", OnFailure = "OnFailure", Always = "Always");
text_enum!(OnUnseen: Keep = "keep", Replace = "replace");
text_enum!(PowerState: Running = "running", Stopped = "stopped", Suspended = "suspended");
text_enum!(VmStatus: Pending = "pending", Running = "running", Failed = "failed"; else Unknown);

/// A script that runs in the guest after each start, over SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StartupScript {
    /// The text, fed to the guest user's shell.
    pub script_content: String,
    /// Variables exported before it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
}

/// What the user asks for. Everything but the image has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VmSpec {
    /// What the disk is cloned from: a path on the worker, a URL, or a name that the runtime understands.
    pub image: String,
    /// When it is fetched.
    #[serde(rename = "imagePullPolicy", skip_serializing_if = "is_default")]
    pub image_pull_policy: ImagePullPolicy,
    /// Guest operating system; none = whatever the image holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<Os>,
    /// Required worker architecture; none = any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<Arch>,
    /// Required runtime; none = any that the worker has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeKind>,
    /// CPU cores; 0 = the worker's default.
    #[serde(skip_serializing_if = "is_zero")]
    pub cpu: u64,
    /// Memory in MiB; 0 = the worker's default.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory: u64,
    /// Disk size in GB; 0 = the image's own.
    #[serde(rename = "diskSize", skip_serializing_if = "is_zero")]
    pub disk_size: u64,
    /// What it begins to boot with. Of QEMU only.
    #[serde(skip_serializing_if = "is_default")]
    pub firmware: Firmware,
    /// The interface of the worker's host whose network the guest is part of; none = a network of its own behind the host.
    #[serde(rename = "net-bridged", skip_serializing_if = "Option::is_none")]
    pub net_bridged: Option<String>,
    /// The guest's network is isolated by Softnet; so it is, too, if one of the next two lists is not empty.
    #[serde(rename = "netSoftnet", skip_serializing_if = "std::ops::Not::not")]
    pub net_softnet: bool,
    /// Networks that it may reach all the same, as CIDR.
    #[serde(rename = "netSoftnetAllow", skip_serializing_if = "Vec::is_empty")]
    pub net_softnet_allow: Vec<String>,
    /// Networks that it may not reach, as CIDR.
    #[serde(rename = "netSoftnetBlock", skip_serializing_if = "Vec::is_empty")]
    pub net_softnet_block: Vec<String>,
    /// The guest can run VMs itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nested: bool,
    /// The guest gets a serial number of its own instead of the image's.
    #[serde(rename = "randomSerial", skip_serializing_if = "std::ops::Not::not")]
    pub random_serial: bool,
    /// No window on the worker's screen.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
    /// Guest user for SSH; none = `admin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// That user's password; none = `admin`. Never returned to readers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Public keys that also let that user in, a line each as in `authorized_keys`; of images with cloud-init, in QEMU.
    #[serde(rename = "sshKeys", skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Runs after each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup_script: Option<StartupScript>,
    /// What happens on failure.
    pub restart_policy: RestartPolicy,
    /// What happens when its worker is not heard of any more.
    #[serde(rename = "onUnseen", skip_serializing_if = "is_default")]
    pub on_unseen: OnUnseen,
    /// Whether it shall run.
    #[serde(rename = "powerState", skip_serializing_if = "is_default")]
    pub power_state: PowerState,
    /// It can be suspended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub suspendable: bool,
    /// Further resources taken from the worker.
    #[serde(skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// Folders of the worker's host that the guest sees. A VM with any stays on its worker once it is placed.
    #[serde(rename = "hostDirs", skip_serializing_if = "Vec::is_empty")]
    pub host_dirs: Vec<HostDir>,
    /// Labels the worker must have.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Who is placed first; higher is sooner.
    #[serde(skip_serializing_if = "is_zero_i32")]
    pub priority: i32,
    /// Seconds from its creation after which it deletes itself; 0 = never.
    #[serde(rename = "ttl", skip_serializing_if = "is_zero")]
    pub ttl_s: u64,
}

/// The guest user when a VM names none.
pub const DEFAULT_GUEST_USER: &str = "admin";
/// The guest password when a VM names none.
pub const DEFAULT_GUEST_PASSWORD: &str = "admin";

impl VmSpec {
    /// The guest's SSH user.
    pub fn guest_user(&self) -> &str {
        self.username.as_deref().unwrap_or(DEFAULT_GUEST_USER)
    }

    /// The guest's SSH password.
    pub fn guest_password(&self) -> Secret {
        self.password.clone().unwrap_or_else(|| Secret::new(DEFAULT_GUEST_PASSWORD))
    }

    /// Whether Softnet isolates the guest's network: asked for, or made necessary by one of its lists.
    pub fn softnet(&self) -> bool {
        self.net_softnet || !self.net_softnet_allow.is_empty() || !self.net_softnet_block.is_empty()
    }

    /// The same without what readers may not see: password, script environment values, credentials in the image's address.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        self.password = None;
        self.image = redact_urls(&self.image);
        self.host_dirs.iter_mut().for_each(|dir| dir.path = redact_urls(&dir.path));
        if let Some(script) = &mut self.startup_script {
            script.env.values_mut().for_each(|value| *value = Secret::new("***"));
        }
        self
    }
}

/// What a worker says of a VM whose startup script nobody can say the end of. It is not run again: what it has done so far
/// may not be done twice.
pub const SCRIPT_INTERRUPTED: &str = "the startup script was interrupted by a restart of the worker";

/// How the status message of a VM begins that shall be suspended and goes on running, as that fails.
pub const SUSPEND_FAILED: &str = "cannot suspend it";

/// Where a VM stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "lowercase")]
pub enum VmStatus {
    /// Waiting for a worker, or being prepared on one.
    #[default]
    Pending,
    /// Its process runs on a worker.
    Running,
    /// It ended or could not start; the message says why.
    Failed,
    /// One of a newer release.
    #[serde(other)]
    Unknown,
}

/// A VM as the controller keeps it: the record in LMDB and, redacted, the answer to readers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vm {
    /// Unique among live VMs.
    pub name: VmName,
    /// Identity over its whole life.
    pub uid: VmUid,
    /// When it was asked for.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// Who asked for it; none = not known.
    #[serde(default, rename = "createdBy", skip_serializing_if = "Option::is_none")]
    pub created_by: Option<AccountName>,
    /// What was asked for.
    #[serde(flatten)]
    pub spec: VmSpec,
    /// Counts changes of the specification.
    #[serde(default)]
    pub generation: u64,
    /// The generation that the worker has put into effect.
    #[serde(default, rename = "observedGeneration")]
    pub observed_generation: u64,
    /// Which image its disk was made from, by its digest, where its runtime knows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_fqn: Option<String>,
    /// Where it stands.
    pub status: VmStatus,
    /// What holds of it beside.
    #[serde(default, skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
    /// Why, or how far.
    #[serde(default)]
    pub status_message: String,
    /// The guest answered SSH and its startup script, if any, has ended well.
    #[serde(default)]
    pub ready: bool,
    /// The worker it is placed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// The only worker that will do from now on, as folders of that host are its own.
    #[serde(default, rename = "boundTo", skip_serializing_if = "Option::is_none")]
    pub bound_to: Option<WorkerName>,
    /// What it takes from that worker; empty while unplaced or after failure.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub assigned: Resources,
    /// Why it is on that worker, in words.
    #[serde(default, rename = "placedBecause", skip_serializing_if = "String::is_empty")]
    pub placed_because: String,
    /// CPU cores given by the worker.
    #[serde(default, rename = "assignedCPU", skip_serializing_if = "is_zero")]
    pub assigned_cpu: u64,
    /// Memory in MiB given by the worker.
    #[serde(default, rename = "assignedMemory", skip_serializing_if = "is_zero")]
    pub assigned_memory: u64,
    /// How many times it was started over.
    #[serde(default)]
    pub restart_count: Attempt,
    /// How many times this copy was told to boot again from its own disk: after a change that needs it, when it is switched
    /// on again, or by its policy.
    #[serde(default, skip_serializing_if = "is_zero_u32")]
    pub boot: Boot,
    /// From what its attempts are counted: raised when a restored backup may not know of attempts that were given out.
    #[serde(default, rename = "attemptsFrom", skip_serializing_if = "is_zero_u32")]
    pub attempts_from: Attempt,
    /// How many of those in a row came soon after the start; grows the pause before the next.
    #[serde(default, skip_serializing_if = "is_zero_u32")]
    pub quick_failures: u32,
    /// The first generation that says it may be replaced when its worker is gone; of this copy, which may have been told
    /// otherwise before. A worker that has not put it into effect may go on running it.
    #[serde(default, rename = "replaceSince", skip_serializing_if = "is_zero")]
    pub replace_since: u64,
    /// Lines of the startup script stored for this attempt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub log_lines: u64,
    /// Those of the boot before, of which more may come: its worker may have been cut off when this boot was asked for.
    #[serde(default, rename = "earlierLog", skip_serializing_if = "Option::is_none")]
    pub earlier_log: Option<Box<EarlierLog>>,
    /// When it was last started over after a failure: the pause before that is counted from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<Timestamp>,
    /// When it was placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<Timestamp>,
    /// When it first ran in this attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it failed, while it is failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Timestamp>,
    /// The request that it came from, if that bore a key. Not shown to readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<Once>,
}

/// What is stored of an earlier boot's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EarlierLog {
    /// Which boot.
    pub boot: Boot,
    /// How many of its lines.
    pub lines: u64,
}

/// A request that may come again and is to be done once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Once {
    /// What the asker calls it.
    pub key: String,
    /// A digest of all that was asked for, in hex: a request that bears the same key must ask for the same.
    pub digest: String,
}

impl Vm {
    /// A VM as it is when it has just been asked for: pending, unplaced, in its first attempt.
    pub fn requested(name: VmName, uid: VmUid, created_at: Timestamp, spec: VmSpec) -> Self {
        Self {
            name,
            uid,
            created_at,
            created_by: None,
            spec,
            generation: 0,
            observed_generation: 0,
            image_fqn: None,
            status: VmStatus::Pending,
            conditions: Conditions::none_hold(),
            status_message: String::new(),
            ready: false,
            worker: None,
            bound_to: None,
            assigned: Resources::default(),
            placed_because: String::new(),
            assigned_cpu: 0,
            assigned_memory: 0,
            restart_count: 0,
            boot: 0,
            attempts_from: 0,
            quick_failures: 0,
            replace_since: 0,
            log_lines: 0,
            earlier_log: None,
            restarted_at: None,
            scheduled_at: None,
            started_at: None,
            failed_at: None,
            once: None,
        }
    }

    /// Whether it is wished to be switched off, with or without its memory.
    pub fn is_to_be_off(&self) -> bool {
        self.spec.power_state != PowerState::Running
    }

    /// Whether it is off as was wished, certainly.
    pub fn is_off(&self) -> bool {
        self.is_to_be_off() && self.status != VmStatus::Failed && !self.conditions.scheduled()
    }

    /// Notes whether it takes room on its worker, and whether its process runs.
    pub fn set_conditions(&mut self, scheduled: bool, running: bool) {
        self.conditions.set(ConditionType::Scheduled, scheduled);
        self.conditions.set(ConditionType::Running, running);
    }

    /// The copy that is, or will be, placed.
    pub fn copy_id(&self) -> CopyId {
        CopyId { uid: self.uid, attempt: self.attempts_from.saturating_add(self.restart_count) }
    }

    /// The same without what readers may not see.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        self.spec = self.spec.redacted();
        // Passwords are part of what the digest is of, and can be guessed.
        self.once = None;
        self.earlier_log = None;
        self.status_message = redact_urls(&self.status_message);
        self.image_fqn = self.image_fqn.map(|fqn| redact_urls(&fqn));
        self
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_zero_i32(n: &i32) -> bool {
    *n == 0
}

fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests;
