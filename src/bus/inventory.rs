//! A digest of what is the case with the copies that one worker shall run, made by both sides: by the worker of what the
//! controller has acknowledged, by the controller of what it knows. As long as both are equal nothing was lost between them.
//! Pure.
//!
//! # What goes in
//!
//! The copies whose wish is that they run, of one revision of the assignment: of those both sides know for certain what the
//! other should. Not the copies that shall be off or gone, which may take their time, and not strays, which the worker
//! tells of as long as they are there and the controller remembers for longer.
//!
//! For each, in the order of uid and attempt: the 16 bytes of the uid, the attempt and the boot as four bytes each, most
//! significant first, and a byte for the state. The digest is the first eight bytes of the SHA-256 of all that, most
//! significant first. It is compared, within one session, by releases that may differ, so none of this may change: a digest of
//! another form has another field.

use sha2::{Digest as _, Sha256};

use crate::model::{Boot, CopyId};

/// What is known of a copy that shall run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its process has not begun in this boot, as far as was told.
    Coming,
    /// Its process runs.
    Running,
    /// Its process has ended in this boot, or there will be none. The controller has no copy of this kind that shall run: it
    /// differs until it has heard.
    Ended,
}

/// A digest that is being made.
#[derive(Clone, Debug, Default)]
pub struct Inventory(Sha256);

impl Inventory {
    /// Adds a copy; in the order of [`CopyId`], each once.
    pub fn add(&mut self, id: CopyId, boot: Boot, state: State) {
        let state = match state {
            State::Coming => 0,
            State::Running => 1,
            State::Ended => 2,
        };
        self.0.update(id.uid.0.as_bytes());
        self.0.update(id.attempt.to_be_bytes());
        self.0.update(boot.to_be_bytes());
        self.0.update([state]);
    }

    /// The digest of what was added.
    pub fn digest(self) -> u64 {
        self.0.finalize().iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::model::VmUid;

    fn copy(uid: u128, attempt: u32) -> CopyId {
        CopyId { uid: VmUid(uuid::Uuid::from_u128(uid)), attempt }
    }

    fn digest(copies: &[(CopyId, Boot, State)]) -> u64 {
        let mut inventory = Inventory::default();
        copies.iter().for_each(|(id, boot, state)| inventory.add(*id, *boot, *state));
        inventory.digest()
    }

    #[test]
    fn its_form_stays_over_releases() {
        assert_eq!(digest(&[]), 0xe3b0_c442_98fc_1c14, "SHA-256 of nothing");
        let some = [(copy(1, 0), 0, State::Running), (copy(2, 7), 3, State::Coming)];
        assert_eq!(digest(&some), FORM);
    }

    /// `printf` of the bytes that the module names, through `sha256sum`.
    const FORM: u64 = 0x8649_5e54_f7ed_5811;

    #[test]
    fn whatever_differs_shows() {
        let all = [
            vec![],
            vec![(copy(1, 0), 0, State::Running)],
            vec![(copy(1, 0), 0, State::Coming)],
            vec![(copy(1, 0), 0, State::Ended)],
            vec![(copy(1, 0), 1, State::Running)],
            vec![(copy(1, 1), 0, State::Running)],
            vec![(copy(2, 0), 0, State::Running)],
            vec![(copy(1, 0), 0, State::Running), (copy(2, 0), 0, State::Running)],
        ];
        let digests: HashSet<u64> = all.iter().map(|copies| digest(copies)).collect();
        assert_eq!(digests.len(), all.len());
    }
}
