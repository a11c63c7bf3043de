//! Whether a guest shows the host key that it showed before: for `ssh`, `exec` and `cp`. The store is `config::known_hosts`.

use super::output::clean;
use crate::config::known_hosts::{KnownHosts, Verdict, alias};
use crate::config::{Home, HomeError};
use crate::model::{Attempt, VmName, VmUid};
use crate::ssh::{HostKey, HostKeyCheck};

/// What this user's machine remembers of host keys.
#[derive(Clone, Debug)]
pub(super) struct HostKeys(KnownHosts);

impl HostKeys {
    /// Those of this user.
    pub(super) fn locate() -> Result<Self, HomeError> {
        Ok(Self(KnownHosts::new(Home::locate()?)))
    }

    /// The check of one login to one start of a VM.
    pub(super) fn check_of(&self, name: &VmName, uid: VmUid, attempt: Option<Attempt>) -> impl HostKeyCheck + use<> {
        let (known, name, alias) = (self.0.clone(), name.clone(), alias(uid, attempt));
        move |key: &HostKey| match known.check(&alias, &key.openssh) {
            Ok(Verdict::Known | Verdict::New) => Ok(()),
            Ok(Verdict::Changed(_)) => Err(changed(&name, &alias, &known)),
            // As `ssh` does: whoever cannot keep it has no other key to hold against it either.
            Err(error) => {
                let why = clean(&format!("{:#}", anyhow::Error::new(error)));
                eprintln!("WARNING: the host key of VM {name} is not remembered: {why}");
                Ok(())
            }
        }
    }
}

fn changed(name: &VmName, alias: &str, known: &KnownHosts) -> String {
    format!(
        "it is another one than VM {name} showed before, although it is the same VM with the same disk. Either somebody made \
         new keys in the guest, or what answers is not that guest. If the change is intended, forget the old key: \
         ssh-keygen -R {alias} -f {}",
        known.path().display()
    )
}
