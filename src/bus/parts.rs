//! A worker's assignment in messages that the bus carries: brokers refuse a message above some size (1 MiB where nobody
//! changed it), and the copies of one worker may be thousands, or have large startup scripts. Pure.
//!
//! The controller splits, the worker collects and takes nothing before it has every part: a copy that is missing from an
//! assignment has a meaning of its own.

use std::collections::BTreeMap;

use super::images::DesiredPull;
use super::measure::encoded_len;
use super::message::{Assignment, DesiredCopy};
use crate::model::SessionId;
use crate::model::error::ApiError;

/// Copies go into one message up to this size; one that is larger alone has its own, and what a VM may ask for is
/// bounded so that it fits.
pub const PART_SIZE: usize = 512 * 1024;

/// Cuts `assignment` into messages of at most [`PART_SIZE`] bytes, with some for the frame.
///
/// # Errors
/// When a copy cannot be encoded, which does not happen.
pub fn split(assignment: Assignment) -> Result<Vec<Assignment>, ApiError> {
    let mut parts: Vec<Vec<DesiredCopy>> = vec![Vec::new()];
    let mut room = PART_SIZE;
    for copy in assignment.copies {
        let size = encoded_len(&copy);
        if size > room && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(Vec::new());
            room = PART_SIZE;
        }
        room = room.saturating_sub(size);
        if let Some(part) = parts.last_mut() {
            part.push(copy);
        }
    }
    let (session, revision) = (assignment.session, assignment.revision);
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    // Bounded so that they fit beside the copies of any part.
    let mut pulls = assignment.pulls;
    let numbered = (0..count).zip(parts);
    let part = |(part, copies)| {
        let pulls = std::mem::take(&mut pulls);
        Assignment { session, revision, copies, pulls, part, parts: count }
    };
    Ok(numbered.map(part).collect())
}

/// Puts parts together again, in whatever order and how often they arrive.
#[derive(Debug, Default)]
pub struct Collector {
    of: Option<(SessionId, u64)>,
    parts: BTreeMap<u32, (Vec<DesiredCopy>, Vec<DesiredPull>)>,
}

impl Collector {
    /// Takes a part and yields the whole once it is complete. Parts of an older revision of the session are dropped.
    pub fn add(&mut self, part: Assignment) -> Option<Assignment> {
        if let Some((session, revision)) = self.of
            && session == part.session
            && revision > part.revision
        {
            return None;
        }
        let of = (part.session, part.revision);
        if self.of != Some(of) {
            self.of = Some(of);
            self.parts.clear();
        }
        if part.part < part.parts {
            self.parts.insert(part.part, (part.copies, part.pulls));
        }
        if u32::try_from(self.parts.len()) != Ok(part.parts) {
            return None;
        }
        let (mut copies, mut pulls) = (Vec::new(), Vec::new());
        for (some, more) in std::mem::take(&mut self.parts).into_values() {
            copies.extend(some);
            pulls.extend(more);
        }
        Some(Assignment { session: part.session, revision: part.revision, copies, pulls, part: 0, parts: 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{RunSpec, Want};
    use super::*;
    use crate::model::VmUid;
    use crate::model::image::PullId;
    use crate::model::vm::{StartupScript, VmSpec};

    fn assignment(revision: u64, scripts: &[usize]) -> Assignment {
        let copy = |(n, script): (usize, &usize)| {
            let script = StartupScript { script_content: "x".repeat(*script), ..StartupScript::default() };
            let spec = VmSpec { startup_script: Some(script), ..VmSpec::default() };
            let run = RunSpec { spec, generation: 0, cpu: 1, memory: 1, ran: false };
            let uid = VmUid(uuid::Uuid::from_u128(u128::try_from(n).unwrap()));
            DesiredCopy { name: "a".parse().unwrap(), uid, attempt: 0, boot: 0, want: Want::Run(Box::new(run)) }
        };
        let copies = scripts.iter().enumerate().map(copy).collect();
        let pulls = (1..3).map(|n| DesiredPull { id: PullId(uuid::Uuid::from_u128(n)), image: "i".into() }).collect();
        Assignment { session: SessionId(uuid::Uuid::nil()), revision, copies, pulls, part: 0, parts: 1 }
    }

    #[test]
    fn many_large_copies_go_in_messages_that_a_broker_takes_and_arrive_as_they_were() {
        let whole = assignment(3, &[256 * 1024; 9]);
        let mut parts = split(whole.clone()).unwrap();
        assert!(parts.len() > 1);
        assert!(parts.iter().all(|part| encoded_len(part) < PART_SIZE + 1024));
        let mut collector = Collector::default();
        parts.swap(0, 2);
        let last = parts.pop().unwrap();
        for part in parts {
            assert_eq!(collector.add(part.clone()), None);
            assert_eq!(collector.add(part), None, "a repetition changes nothing");
        }
        assert_eq!(collector.add(last), Some(whole));
    }

    #[test]
    fn nothing_and_little_are_one_message() {
        for whole in [assignment(1, &[]), assignment(1, &[10, 20])] {
            assert_eq!(split(whole.clone()).unwrap(), std::slice::from_ref(&whole));
            assert_eq!(Collector::default().add(whole.clone()), Some(whole));
        }
    }

    #[test]
    fn parts_of_two_revisions_are_never_mixed() {
        let (old, new) = (split(assignment(1, &[400_000; 2])).unwrap(), split(assignment(2, &[400_000; 2])).unwrap());
        let mut collector = Collector::default();
        assert_eq!(collector.add(old[0].clone()), None);
        assert_eq!(collector.add(new[1].clone()), None);
        assert_eq!(collector.add(old[1].clone()), None);
        assert_eq!(collector.add(new[0].clone()), Some(assignment(2, &[400_000; 2])));
    }
}
