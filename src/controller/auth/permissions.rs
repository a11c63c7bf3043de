//! Which subjects are whose on the embedded broker, derived from the one table in `model::access`. Pure.
//!
//! No account may ask the service API of NATS (`$SRV.>`): whoever asks says where the answer goes, and the controller would
//! speak in the asker's place there.

use crate::broker::permission::{Permissions, Rules};
use crate::bus::subject::{self, WorkerVerb};
use crate::model::access::{EVENTS, Roles, VERBS};
use crate::model::account::JoinId;
use crate::model::{AccountName, WorkerName};

/// Where a client asks the broker who it is there; the broker answers nobody but the asker.
const USER_INFO: &str = "$SYS.REQ.USER.INFO";
/// What the controller answers of the service API of NATS, for whoever may ask there.
const SERVICE_API: &str = "$SRV.>";

/// What an account with `roles` may do.
pub(super) fn of_account(name: &AccountName, roles: &Roles) -> Permissions {
    let verbs = VERBS.iter().filter(|verb| roles.satisfy(verb.needs));
    let publish = verbs.map(|verb| subject::api(name, verb.resource, verb.verb));
    let events = EVENTS.iter().filter(|(_, needs)| roles.satisfy(*needs));
    let subscribe = events.map(|(kind, _)| subject::events_of_kind(kind)).flat_map(|all| [subject::in_json(&all), all]);
    Permissions {
        publish: Rules::allow(publish.chain([USER_INFO.to_owned()])),
        subscribe: Rules::allow(subscribe.chain([inbox(name.as_str())])),
        allow_responses: None,
    }
}

/// What a worker may do.
pub(super) fn of_worker(worker: &WorkerName) -> Permissions {
    let own = format!("{}.worker.{}", subject::ROOT, subject::token(worker.as_str()));
    Permissions {
        publish: Rules::allow(WorkerVerb::ALL.map(|verb| subject::worker(worker, verb))),
        subscribe: Rules::allow([
            format!("{own}.assign"),
            format!("{own}.command.>"),
            inbox(&subject::worker_user(worker)),
        ]),
        allow_responses: None,
    }
}

/// What a machine that joins may do.
pub(super) fn of_joining(id: &JoinId) -> Permissions {
    Permissions {
        publish: Rules::allow([subject::join(id)]),
        subscribe: Rules::allow([inbox(&subject::join_user(id))]),
        allow_responses: None,
    }
}

/// What the controller itself may do: no more than it needs, so that nobody can have it speak in his stead elsewhere.
pub(super) fn of_controller(user: &str) -> Permissions {
    let root = subject::ROOT;
    Permissions {
        publish: Rules::allow([
            "_INBOX.>".to_owned(),
            subject::ALL_EVENTS.to_owned(),
            subject::ALL_JSON_EVENTS.to_owned(),
            format!("{root}.worker.*.assign"),
            format!("{root}.worker.*.command.>"),
        ]),
        subscribe: Rules::allow([
            subject::ALL_API.to_owned(),
            subject::ALL_JOINS.to_owned(),
            format!("{root}.worker.*.*"),
            SERVICE_API.to_owned(),
            inbox(user),
        ]),
        allow_responses: None,
    }
}

fn inbox(user: &str) -> String {
    format!("{}.>", subject::inbox(user))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::broker::permission::Subscribe;
    use crate::model::access::Role;

    fn may_hear(permissions: &Permissions, subject: &str) -> bool {
        !matches!(permissions.may_subscribe(subject.as_bytes(), None), Subscribe::Denied)
    }

    /// Each set of roles, each verb, each kind of events: exactly what the table says, and under the account's own name.
    #[test]
    fn every_set_of_roles_opens_what_the_table_says_and_no_more() {
        let (me, other): (AccountName, AccountName) = ("a.b".parse().unwrap(), "other".parse().unwrap());
        for set in 0..1u32 << Role::ALL.len() {
            let has = |(bit, role): (usize, &Role)| (set >> bit & 1 == 1).then_some(*role);
            let roles: Roles = Role::ALL.iter().enumerate().filter_map(has).collect();
            let permissions = of_account(&me, &roles);
            for verb in VERBS {
                let own = subject::api(&me, verb.resource, verb.verb);
                assert_eq!(permissions.may_publish(own.as_bytes()), roles.satisfy(verb.needs), "{roles}: {own}");
                let foreign = subject::api(&other, verb.resource, verb.verb);
                assert!(!permissions.may_publish(foreign.as_bytes()) && !may_hear(&permissions, &own));
            }
            for (kind, needs) in EVENTS {
                let all = subject::events_of_kind(kind);
                for all in [subject::in_json(&all), all] {
                    assert_eq!(may_hear(&permissions, &all), roles.satisfy(*needs), "{roles}: {all}");
                    assert!(!permissions.may_publish(all.replace('>', "a.b").as_bytes()));
                }
            }
            assert!(may_hear(&permissions, "_INBOX.a%2Eb.>"));
            for foreign in [
                "_INBOX.>",
                "_INBOX.*.x",
                "_INBOX.other.>",
                "_INBOX.a.b.>",
                ">",
                "orchard.>",
                subject::ALL_EVENTS,
                subject::ALL_JSON_EVENTS,
            ] {
                assert!(!may_hear(&permissions, foreign), "{foreign}");
            }
            for foreign in
                ["$SRV.PING", "$SRV.INFO.orchard", "_INBOX.a%2Eb.x", "orchard.v1.worker.w.hello", "$SYS.REQ.X"]
            {
                assert!(!permissions.may_publish(foreign.as_bytes()), "{foreign}");
            }
        }
    }

    #[test]
    fn a_worker_and_a_joining_machine_have_their_own_subjects_only() {
        let worker = of_worker(&"w.1".parse().unwrap());
        assert!(
            worker.may_publish(b"orchard.v1.worker.w%2E1.report")
                && may_hear(&worker, "orchard.v1.worker.w%2E1.assign")
        );
        let id = JoinId::new([1; 8]);
        let joining = of_joining(&id);
        assert!(joining.may_publish(subject::join(&id).as_bytes()));
        for subject in
            ["orchard.v1.worker.v.report", "orchard.v1.worker.w%2E1.assign", "orchard.v1.join.0202020202020202"]
        {
            assert!(!worker.may_publish(subject.as_bytes()) && !joining.may_publish(subject.as_bytes()), "{subject}");
        }
        for subject in
            ["orchard.v1.worker.v.assign", "orchard.v1.worker.*.assign", "orchard.v1.join.*", "_INBOX.>", "$SRV.>"]
        {
            assert!(!may_hear(&worker, subject) && !may_hear(&joining, subject), "{subject}");
        }
    }

    #[test]
    fn the_controller_cannot_be_made_to_speak_as_another() {
        let controller = of_controller("controller/self");
        for subject in ["orchard.v1.api.a.vm.create", "orchard.v1.worker.w.hello", "orchard.v1.join.x", "elsewhere"] {
            assert!(!controller.may_publish(subject.as_bytes()), "{subject}");
        }
        assert!(controller.may_publish(b"orchard.v1.worker.w.assign"));
    }

    /// Whether `rule` allows all that `pattern` stands for.
    fn covers(rule: &str, pattern: &str) -> bool {
        let (mut rule, mut pattern) = (rule.split('.'), pattern.split('.'));
        loop {
            match (rule.next(), pattern.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(one), Some(other)) if one == other => {}
                _ => return false,
            }
        }
    }

    /// The address of a channel as a pattern: for one of `own` parameters its value, and for the others any.
    fn pattern(address: &str, own: &[(&str, String)]) -> String {
        let token = |token: &str| match token.strip_prefix('{').and_then(|token| token.strip_suffix('}')) {
            Some(name) => own.iter().find(|(of, _)| *of == name).map_or("*".to_owned(), |(_, value)| value.clone()),
            None => token.to_owned(),
        };
        address.split('.').map(token).collect::<Vec<_>>().join(".")
    }

    #[test]
    fn what_is_allowed_is_what_the_asyncapi_document_says_and_the_other_way_round() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/asyncapi.json");
        let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let channels = document["channels"].as_object().unwrap();
        let of_channels = channels.values().map(|channel| (channel, &channel["x-orchard-permission"]));
        let of_operations = document["operations"].as_object().unwrap().values().map(|operation| {
            let id = operation["channel"]["$ref"].as_str().unwrap().trim_start_matches("#/channels/");
            (&channels[id], &operation["x-orchard-permission"])
        });
        let said: Vec<_> = of_channels.chain(of_operations).collect();

        let (ann, worker): (AccountName, WorkerName) = ("a.b".parse().unwrap(), "w.1".parse().unwrap());
        let (id, token) = (JoinId::new([1; 8]), subject::token);
        let users = [
            ("accounts", of_account(&ann, &Roles::all()), ("account", token("a.b")), "a.b".to_owned()),
            ("that worker", of_worker(&worker), ("worker", token("w.1")), subject::worker_user(&worker)),
            ("whoever logged in with", of_joining(&id), ("token", id.to_string()), subject::join_user(&id)),
            ("the controller", of_controller("controller/self"), ("", String::new()), "controller/self".to_owned()),
        ];
        for (user, permissions, own, name) in users {
            let rules = [("publish", permissions.publish.allow), ("subscribe", permissions.subscribe.allow)];
            for (direction, rules) in rules {
                let rules = rules.unwrap();
                let patterns = said.iter().filter_map(|(channel, may)| {
                    let (address, who) = (channel["address"].as_str().unwrap(), may[direction]["who"].as_str()?);
                    if who.starts_with("every user") {
                        return Some(pattern(address, &[("identity", token(&name))]));
                    }
                    who.starts_with(user).then(|| pattern(address, std::slice::from_ref(&own)))
                });
                let patterns: Vec<_> = patterns.collect();
                for rule in &rules {
                    let is_said = patterns.iter().any(|pattern| covers(rule, pattern));
                    assert!(is_said, "{user} may {direction} {rule}, and no channel says so: {patterns:#?}");
                }
                for pattern in &patterns {
                    let is_allowed = rules.iter().any(|rule| covers(rule, pattern));
                    assert!(is_allowed, "{user} should {direction} {pattern}, and may not: {rules:#?}");
                }
            }
        }
    }
}
