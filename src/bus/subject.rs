//! The subjects of the bus, built and taken apart in this one place. Pure.
//!
//! A name may hold a dot, a subject token may not: dots are written `%2E`, which no name can contain.

use crate::model::account::JoinId;
use crate::model::audit::AuditRecord;
use crate::model::event::{Event, EventObject};
use crate::model::{AccountName, MAX_NAME_LEN, WorkerName};

/// The root of every subject, with the version of the protocol.
pub const ROOT: &str = "orchard.v1";

/// What the controller listens to for API requests: any account, resource and verb.
pub const ALL_API: &str = "orchard.v1.api.*.*.*";
/// Every event.
pub const ALL_EVENTS: &str = "orchard.v1.events.>";
/// Every event in JSON.
pub const ALL_JSON_EVENTS: &str = "orchard.v1.events-json.>";
/// What the controller listens to for machines that join.
pub const ALL_JOINS: &str = "orchard.v1.join.*";

/// What a worker says to the controller; each is a request that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerVerb {
    /// Registers and opens a session.
    Hello,
    /// Renews the lease.
    Heartbeat,
    /// Tells what became of a copy.
    Report,
    /// Sends lines of a startup script.
    Log,
    /// Tells what images it holds and how far it is with those it shall fetch.
    Images,
}

impl WorkerVerb {
    /// Every verb.
    pub const ALL: [WorkerVerb; 5] =
        [WorkerVerb::Hello, WorkerVerb::Heartbeat, WorkerVerb::Report, WorkerVerb::Log, WorkerVerb::Images];

    /// The verb as subject token.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerVerb::Hello => "hello",
            WorkerVerb::Heartbeat => "heartbeat",
            WorkerVerb::Report => "report",
            WorkerVerb::Log => "log",
            WorkerVerb::Images => "images",
        }
    }
}

/// What the controller listens to for `verb` of any worker.
pub fn all_workers(verb: WorkerVerb) -> String {
    format!("{ROOT}.worker.*.{}", verb.as_str())
}

/// A name as one subject token.
pub fn token(name: &str) -> String {
    name.replace('.', "%2E")
}

fn name_of(token: &str) -> String {
    token.replace("%2E", ".")
}

/// Where `account` sends `resource.verb`.
pub fn api(account: &AccountName, resource: &str, verb: &str) -> String {
    format!("{ROOT}.api.{}.{resource}.{verb}", token(account.as_str()))
}

/// Account, resource and verb of an API subject; `None` if it is none.
pub fn parse_api(subject: &str) -> Option<(AccountName, &str, &str)> {
    let mut tokens = subject.strip_prefix(ROOT)?.strip_prefix(".api.")?.split('.');
    let (account, resource, verb) = (tokens.next()?, tokens.next()?, tokens.next()?);
    if tokens.next().is_some() {
        return None;
    }
    Some((name_of(account).parse().ok()?, resource, verb))
}

/// Where `worker` sends `verb`.
pub fn worker(worker: &WorkerName, verb: WorkerVerb) -> String {
    format!("{ROOT}.worker.{}.{}", token(worker.as_str()), verb.as_str())
}

/// Worker and verb of a worker's subject; `None` for anything else, the controller's own messages included.
pub fn parse_worker(subject: &str) -> Option<(WorkerName, WorkerVerb)> {
    let (name, verb) = subject.strip_prefix(ROOT)?.strip_prefix(".worker.")?.split_once('.')?;
    let verb = WorkerVerb::ALL.into_iter().find(|known| known.as_str() == verb)?;
    Some((name_of(name).parse().ok()?, verb))
}

/// Where `worker` listens for its assignments.
pub fn assign(worker: &WorkerName) -> String {
    format!("{ROOT}.worker.{}.assign", token(worker.as_str()))
}

/// Where an event is published.
pub fn event(event: &Event) -> String {
    let kind = event.kind.as_str();
    match &event.object {
        EventObject::Vm { name, .. } => format!("{ROOT}.events.vm.{}.{kind}", token(name.as_str())),
        EventObject::Worker { name } => format!("{ROOT}.events.worker.{}.{kind}", token(name.as_str())),
        // Nobody who knows no more of it publishes it.
        EventObject::Unknown => format!("{ROOT}.events.unknown.unknown.{kind}"),
    }
}

/// Where the same is published in JSON, for a subject of [`event`] or [`audit`]; the subject itself for any other.
pub fn in_json(subject: &str) -> String {
    subject.replacen(".events.", ".events-json.", 1)
}

/// Every event of `kind`, the first token of `model::access::EVENTS`.
pub fn events_of_kind(kind: &str) -> String {
    format!("{ROOT}.events.{kind}.>")
}

/// Where an audit record is published. What a failed login called itself is no name yet, so it is made one token first.
pub fn audit(record: &AuditRecord) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':' | '/') { c } else { '_' };
    let account: String = record.account.chars().take(MAX_NAME_LEN).map(safe).collect();
    let account = if account.is_empty() { "_" } else { &account };
    format!("{ROOT}.events.audit.{account}.{}", record.kind.as_str())
}

/// Every event of the VM `name`.
pub fn events_of_vm(name: &crate::model::VmName) -> String {
    format!("{ROOT}.events.vm.{}.*", token(name.as_str()))
}

/// The prefix of all reply subjects of the bus user `identity`.
pub fn inbox(identity: &str) -> String {
    format!("_INBOX.{}", token(identity))
}

/// The name under which `worker` logs in to the bus; no account may be called so, as `/` stands in no name.
pub fn worker_user(worker: &WorkerName) -> String {
    format!("worker/{worker}")
}

/// Where a machine that holds the join token `id` asks to join.
pub fn join(id: &JoinId) -> String {
    format!("{ROOT}.join.{id}")
}

/// The join token out of a subject; `None` if it is none of those.
pub fn parse_join(subject: &str) -> Option<JoinId> {
    subject.strip_prefix(ROOT)?.strip_prefix(".join.")?.parse().ok()
}

/// The name under which a machine that joins logs in to the bus.
pub fn join_user(id: &JoinId) -> String {
    format!("join/{id}")
}

/// The join token out of a bus user's name.
pub fn parse_join_user(user: &str) -> Option<JoinId> {
    user.strip_prefix("join/")?.parse().ok()
}

/// The worker's name out of a bus user's name.
pub fn parse_worker_user(user: &str) -> Option<WorkerName> {
    user.strip_prefix("worker/")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::model::audit::{AuditType, Deed, Outcome};

    #[test]
    fn dots_in_names_survive_the_way_there_and_back() {
        let account: AccountName = "ci.example".parse().unwrap();
        let subject = api(&account, "vm", "create");
        assert_eq!(subject, "orchard.v1.api.ci%2Eexample.vm.create");
        assert_eq!(parse_api(&subject), Some((account, "vm", "create")));
        let name: WorkerName = "mini.local".parse().unwrap();
        for verb in WorkerVerb::ALL {
            assert_eq!(parse_worker(&worker(&name, verb)), Some((name.clone(), verb)));
        }
        assert_eq!(parse_worker(&assign(&name)), None);
    }

    #[test]
    fn a_machine_joins_on_the_subject_of_its_token() {
        let id = JoinId::new([7; 8]);
        assert_eq!(parse_join(&join(&id)), Some(id.clone()));
        assert_eq!(parse_join_user(&join_user(&id)), Some(id));
        assert_eq!(parse_join("orchard.v1.join.>"), None);
    }

    #[test]
    fn events_in_json_stand_beside_the_others_under_the_same_names() {
        // A VM may be called as the part that differs.
        let subject = "orchard.v1.events.vm.events.created";
        assert_eq!(in_json(subject), "orchard.v1.events-json.vm.events.created");
        assert_eq!(in_json(ALL_EVENTS), ALL_JSON_EVENTS);
    }

    #[test]
    fn what_a_failed_login_calls_itself_is_one_token() {
        let record = |account: &str| {
            let deed = Deed {
                kind: AuditType::LoginFailed,
                account: account.to_owned(),
                address: String::new(),
                verb: String::new(),
                target: String::new(),
                outcome: Outcome::Refused,
                message: String::new(),
                request: String::new(),
            };
            audit(&AuditRecord::new(1, Timestamp::default(), deed))
        };
        assert_eq!(record("worker/a"), "orchard.v1.events.audit.worker/a.login-failed");
        assert_eq!(record("a.b > *\r\n"), "orchard.v1.events.audit.a_b______.login-failed");
        assert_eq!(record(""), "orchard.v1.events.audit._.login-failed");
    }

    #[test]
    fn foreign_subjects_are_no_requests() {
        for subject in
            ["", "orchard.v1.api.a.vm", "orchard.v1.api.a.vm.x.y", "orchard.v2.api.a.vm.x", "orchard.v1.api..vm.x"]
        {
            assert_eq!(parse_api(subject), None, "{subject}");
        }
    }
}
