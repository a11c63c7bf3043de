//! Conditions of a VM: facts that hold or do not, beside its status. They stand in its record, and on the wire as
//! `conditions: [{"type": "scheduled", "state": "true"}, …]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "lowercase")]
pub enum ConditionType {
    /// It has a worker and takes room there.
    Scheduled,
    /// Its process runs there, as far as was told.
    Running,
    /// One of a newer release.
    #[serde(other)]
    Unknown,
}

impl ConditionType {
    /// As it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionType::Scheduled => "scheduled",
            ConditionType::Running => "running",
            ConditionType::Unknown => "unknown",
        }
    }
}

/// Whether it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConditionState {
    /// It holds.
    True,
    /// It does not.
    False,
}

/// One condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Condition {
    /// Of what.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether.
    pub state: ConditionState,
}

/// The conditions of one VM, each type once. None at all in records of earlier releases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    /// Those of a VM that has no place: none holds.
    pub fn none_hold() -> Self {
        let mut conditions = Self::default();
        conditions.set(ConditionType::Scheduled, false);
        conditions.set(ConditionType::Running, false);
        conditions
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `kind` holds; what is not known does not.
    pub fn hold(&self, kind: ConditionType) -> bool {
        self.0.iter().any(|condition| condition.kind == kind && condition.state == ConditionState::True)
    }

    /// Whether the VM has a worker and takes room there.
    pub fn scheduled(&self) -> bool {
        self.hold(ConditionType::Scheduled)
    }

    /// Whether its process runs, as far as was told.
    pub fn running(&self) -> bool {
        self.hold(ConditionType::Running)
    }

    /// Notes whether `kind` holds.
    pub fn set(&mut self, kind: ConditionType, holds: bool) {
        let state = if holds { ConditionState::True } else { ConditionState::False };
        match self.0.iter_mut().find(|condition| condition.kind == kind) {
            Some(condition) => condition.state = state,
            None => self.0.push(Condition { kind, state }),
        }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = Condition> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_on_the_wire_is_the_original_one() {
        let mut conditions = Conditions::none_hold();
        conditions.set(ConditionType::Scheduled, true);
        let json = r#"[{"type":"scheduled","state":"true"},{"type":"running","state":"false"}]"#;
        assert_eq!(serde_json::to_string(&conditions).unwrap(), json);
        assert_eq!(serde_json::from_str::<Conditions>(json).unwrap(), conditions);
        assert!(conditions.scheduled() && !conditions.running());
    }

    #[test]
    fn conditions_of_a_newer_release_are_no_error() {
        let read: Conditions = serde_json::from_str(r#"[{"type":"glowing","state":"true"}]"#).unwrap();
        assert!(!read.scheduled() && !read.is_empty());
    }
}
