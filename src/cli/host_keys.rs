//! Whether a guest, or a worker's machine, shows the host key that it showed before: for `ssh`, `exec` and `cp`. The store is
//! `config::known_hosts`.

use super::connect::{End, Place};
use super::output::clean;
use crate::config::known_hosts::{KnownHosts, Verdict, alias, host_alias};
use crate::config::{Home, HomeError};
use crate::ssh::{HostKey, HostKeyCheck};

/// What this user's machine remembers of host keys.
#[derive(Clone, Debug)]
pub(super) struct HostKeys(KnownHosts);

impl HostKeys {
    /// Those of this user.
    pub(super) fn locate() -> Result<Self, HomeError> {
        Ok(Self(KnownHosts::new(Home::locate()?)))
    }

    /// The check of one login to one start of a VM, or to one machine.
    pub(super) fn check_of(&self, place: &Place, end: &End) -> impl HostKeyCheck + use<> {
        let alias = match end {
            End::Vm { uid, attempt } => alias(*uid, *attempt),
            End::Host { machine_id } => host_alias(place.name(), machine_id),
        };
        let (known, place) = (self.0.clone(), place.clone());
        move |key: &HostKey| match known.check(&alias, &key.openssh) {
            Ok(Verdict::Known | Verdict::New) => Ok(()),
            Ok(Verdict::Changed(_)) => Err(changed(&place, &alias, &known)),
            // As `ssh` does: whoever cannot keep it has no other key to hold against it either.
            Err(error) => {
                let why = clean(&format!("{:#}", anyhow::Error::new(error)));
                eprintln!("WARNING: the host key of {place} is not remembered: {why}");
                Ok(())
            }
        }
    }
}

fn changed(place: &Place, alias: &str, known: &KnownHosts) -> String {
    let although = match place {
        Place::Vm(_) => "it is the same VM with the same disk",
        Place::Worker(_) => "it is the same machine",
    };
    format!(
        "it is another one than {place} showed before, although {although}. Either somebody made new keys there, or what \
         answers is something else. If the change is intended, forget the old key: ssh-keygen -R {alias} -f {}",
        known.path().display()
    )
}
