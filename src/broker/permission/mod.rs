//! Who may publish and subscribe where. Pure; the session asks on every SUB and on the first PUB to a subject.

mod form;

pub use form::Impossible;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::subject::{covers, has_wildcard, matches, overlaps};

/// What a user may do. The default allows everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Permissions {
    /// Where the user may publish.
    pub publish: Rules,
    /// What the user may subscribe to. An entry may name a queue group after a blank (`jobs.> workers`): it then speaks of
    /// subscriptions in that group only; the group may hold wildcards. Where such an entry allows a subject, no other group
    /// may listen to it, whatever entries without a group say.
    pub subscribe: Rules,
    /// Lets the user answer requests it received, wherever their reply subjects are. With it, an absent `publish.allow`
    /// allows nothing else, as in nats-server.
    #[serde(
        rename = "responses",
        alias = "allow_responses",
        deserialize_with = "form::responses",
        skip_serializing_if = "Option::is_none"
    )]
    pub allow_responses: Option<Responses>,
}

/// How much a user may answer to a request that reached one of its subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Responses {
    /// Messages per request; `None` for as many as it likes.
    pub max: Option<u32>,
    /// Time from the request on; `None` for as long as the broker remembers it (see the module `replies`).
    pub expires: Option<Duration>,
}

impl Default for Responses {
    /// One answer within two minutes, as in nats-server.
    fn default() -> Self {
        Self { max: Some(1), expires: Some(Duration::from_secs(120)) }
    }
}

/// Subject patterns allowed and denied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "form::Rules")]
pub struct Rules {
    /// `None` allows everything that is not denied, an empty list nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// Wins over `allow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

impl Rules {
    /// Rules that allow just `patterns`.
    pub fn allow<S: Into<String>>(patterns: impl IntoIterator<Item = S>) -> Self {
        Self { allow: Some(patterns.into_iter().map(Into::into).collect()), deny: Vec::new() }
    }

    /// The same rules, but none of `patterns`.
    #[must_use]
    pub fn deny<S: Into<String>>(mut self, patterns: impl IntoIterator<Item = S>) -> Self {
        self.deny.extend(patterns.into_iter().map(Into::into));
        self
    }
}

/// The answer to a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscribe {
    /// Refused.
    Denied,
    /// Granted in full.
    Granted,
    /// Granted, but messages on these patterns must be held back.
    Filtered(Vec<Box<[u8]>>),
}

impl Permissions {
    /// Whether a message may be published to `subject`.
    pub fn may_publish(&self, subject: &[u8]) -> bool {
        let allowed = match &self.publish.allow {
            None => self.allow_responses.is_none(),
            Some(allow) => allow.iter().any(|p| matches(p.as_bytes(), subject)),
        };
        allowed && !self.publish.deny.iter().any(|p| matches(p.as_bytes(), subject))
    }

    /// Whether `subject` may be subscribed to, in `queue` if given. One wider than what is allowed is refused; one that is
    /// allowed but touches what is denied is granted with a filter.
    pub fn may_subscribe(&self, subject: &[u8], queue: Option<&[u8]>) -> Subscribe {
        let rules = &self.subscribe;
        let allowed = rules.allow.as_ref().is_none_or(|allow| allows(allow, subject, queue));
        let denials = || rules.deny.iter().map(|entry| split(entry)).filter(|(_, group)| names(*group, queue));
        if !allowed || denials().any(|(p, _)| covers(p, subject)) {
            return Subscribe::Denied;
        }
        if has_wildcard(subject) {
            let filter: Vec<Box<[u8]>> =
                denials().filter(|(p, _)| overlaps(p, subject)).map(|(p, _)| p.into()).collect();
            if !filter.is_empty() {
                return Subscribe::Filtered(filter);
            }
        }
        Subscribe::Granted
    }
}

/// Whether one of the entries in `allow` lets `subject` be subscribed to in `queue`. As soon as one of them names a group
/// for that subject, a group must be one that is named: an entry without a group beside it speaks of those without one only.
fn allows(allow: &[String], subject: &[u8], queue: Option<&[u8]>) -> bool {
    let covering = || allow.iter().map(|entry| split(entry)).filter(|(p, _)| covers(p, subject));
    let grouped = || covering().filter(|(_, group)| group.is_some());
    if queue.is_some() && grouped().next().is_some() {
        return grouped().any(|(_, group)| names(group, queue));
    }
    covering().any(|(_, group)| group.is_none())
}

/// Splits an entry into its subject and its queue group.
fn split(entry: &str) -> (&[u8], Option<&[u8]>) {
    match entry.split_once(' ') {
        Some((subject, group)) => (subject.as_bytes(), Some(group.trim().as_bytes())),
        None => (entry.as_bytes(), None),
    }
}

/// Whether an entry for `group` speaks of a subscription in `queue`.
fn names(group: Option<&[u8]>, queue: Option<&[u8]>) -> bool {
    match (group, queue) {
        (None, _) => true,
        (Some(group), Some(queue)) => covers(group, queue),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::broker::subject::strategies::{literal, matches as naive_match, pattern, universe};

    fn subscribe(rules: &Rules, subject: &str) -> Subscribe {
        let permissions = Permissions { subscribe: rules.clone(), ..Permissions::default() };
        permissions.may_subscribe(subject.as_bytes(), None)
    }

    #[test]
    fn a_subscription_wider_than_allowed_is_refused() {
        let rules = Rules::allow(["s.>", "q.* qq"]).deny(["s.no", "s.x.>"]);
        for denied in [">", "*", "s", "s.no", "s.x.y", "s.x.*", "s.x.>", "bar", "q.a", "*.>"] {
            assert_eq!(subscribe(&rules, denied), Subscribe::Denied, "{denied}");
        }
        assert_eq!(subscribe(&rules, "s.a"), Subscribe::Granted);
        assert_eq!(subscribe(&rules, "s.*"), Subscribe::Filtered(vec![b"s.no"[..].into()]));
        assert_eq!(subscribe(&rules, "s.a.*"), Subscribe::Granted);
    }

    #[test]
    fn an_entry_with_a_queue_speaks_of_that_queue() {
        let rules = Rules::allow(["q.* qq", "v.> dev.*"]).deny(["v.no dev.a"]);
        let permissions = Permissions { subscribe: rules, ..Permissions::default() };
        let ask = |subject: &str, queue: Option<&str>| {
            permissions.may_subscribe(subject.as_bytes(), queue.map(str::as_bytes)) != Subscribe::Denied
        };
        assert!(ask("q.a", Some("qq")) && !ask("q.a", None) && !ask("q.a", Some("other")));
        assert!(ask("v.a", Some("dev.a")) && ask("v.no", Some("dev.b")) && !ask("v.no", Some("dev.a")));
    }

    #[test]
    fn where_a_group_is_named_only_those_named_may_listen() {
        let rules = Rules::allow(["foo.>", "foo.a v1", "*.a v3.*", "bar"]).deny(["bar", "bar v1"]);
        let permissions = Permissions { subscribe: rules, ..Permissions::default() };
        let ask = |subject: &str, queue: Option<&str>| {
            permissions.may_subscribe(subject.as_bytes(), queue.map(str::as_bytes)) == Subscribe::Granted
        };
        assert!(ask("foo.a", None) && ask("foo.a", Some("v1")) && ask("foo.a", Some("v3.x")));
        assert!(!ask("foo.a", Some("v2")) && !ask("foo.a", Some("v3")));
        let rules = Rules::allow(["w.>", "w.*.g v1", "*.*.g v3.*", "d.>"]).deny(["d.*.g", "d.*.g v1", "d.*.h v1"]);
        let crews = Permissions { subscribe: rules, ..Permissions::default() };
        assert_eq!(crews.may_subscribe(b"w.abcd.g", Some(b"v2")), Subscribe::Denied);
        assert!(ask("foo.b", Some("v2")) && ask("foo.*", Some("v2")), "no group is named for these");
        assert!(!ask("bar", Some("v1")) && !ask("bar", Some("v2")), "a denial of all groups holds for all");
    }

    #[test]
    fn nothing_allowed_is_not_everything_allowed() {
        let none = Permissions { publish: Rules::allow(Vec::<String>::new()), ..Permissions::default() };
        assert!(!none.may_publish(b"a") && Permissions::default().may_publish(b"a"));
    }

    #[test]
    fn who_may_answer_may_do_nothing_else_unless_it_is_said() {
        let answers = Permissions { allow_responses: Some(Responses::default()), ..Permissions::default() };
        assert!(!answers.may_publish(b"a"));
        let both = Permissions { publish: Rules::allow(["a"]), ..answers };
        assert!(both.may_publish(b"a") && !both.may_publish(b"b"));
    }

    #[test]
    fn a_published_wildcard_is_a_token_like_any_other() {
        let denied = Rules::default().deny(["a.*", "w.*.c"]);
        let permissions = Permissions { publish: denied, ..Permissions::default() };
        for subject in ["a.b", "a.*", "a.>", "w.>.c", "w.*.c"] {
            assert!(
                !permissions.may_publish(subject.as_bytes()),
                "who listens on a denied pattern would get {subject}"
            );
        }
        let permissions = Permissions { publish: Rules::allow(["a.*"]), ..Permissions::default() };
        assert!(permissions.may_publish(b"a.>") && permissions.may_publish(b"a.*"), "as in nats-server");
        assert!(!permissions.may_publish(b"a.>.b") && !permissions.may_publish(b">"));
    }

    fn rules() -> impl Strategy<Value = Rules> {
        (prop::option::of(prop::collection::vec(pattern(), 0..4)), prop::collection::vec(pattern(), 0..3))
            .prop_map(|(allow, deny)| Rules { allow, deny })
    }

    fn naive(rules: &Rules, subject: &str) -> bool {
        rules.allow.as_ref().is_none_or(|allow| allow.iter().any(|p| naive_match(p, subject)))
            && !rules.deny.iter().any(|p| naive_match(p, subject))
    }

    /// An entry with its group.
    fn entry() -> impl Strategy<Value = (String, Option<String>)> {
        (pattern(), prop::option::of(pattern()))
    }

    fn written(entries: &[(String, Option<String>)]) -> Vec<String> {
        let line = |(subject, group): &(String, Option<String>)| match group {
            Some(group) => format!("{subject} {group}"),
            None => subject.clone(),
        };
        entries.iter().map(line).collect()
    }

    /// Who may listen to a literal subject, by the definition.
    fn naive_in_group(
        allow: &[(String, Option<String>)],
        deny: &[(String, Option<String>)],
        subject: &str,
        queue: Option<&str>,
    ) -> bool {
        let of = |entries: &[(String, Option<String>)]| -> Vec<Option<String>> {
            let matching = entries.iter().filter(|(p, _)| naive_match(p, subject));
            matching.map(|(_, group)| group.clone()).collect()
        };
        let is_named = |group: &Option<String>| match (group, queue) {
            (Some(group), Some(queue)) => naive_match(group, queue),
            _ => false,
        };
        let allow = of(allow);
        let allowed = match queue {
            Some(_) if allow.iter().any(Option::is_some) => allow.iter().any(is_named),
            _ => allow.contains(&None),
        };
        allowed && !of(deny).iter().any(|group| group.is_none() || is_named(group))
    }

    proptest! {
        #[test]
        fn groups_agree_with_the_definition(
            allow in prop::collection::vec(entry(), 0..5),
            deny in prop::collection::vec(entry(), 0..3),
            subject in literal(),
            queue in prop::option::of(literal()),
        ) {
            let subscribe = Rules::allow(written(&allow)).deny(written(&deny));
            let permissions = Permissions { subscribe, ..Permissions::default() };
            let granted = permissions.may_subscribe(subject.as_bytes(), queue.as_deref().map(str::as_bytes));
            let expected = naive_in_group(&allow, &deny, &subject, queue.as_deref());
            prop_assert_eq!(granted == Subscribe::Granted, expected);
        }

        #[test]
        fn publishing_agrees_with_the_definition(rules in rules(), subject in prop_oneof![literal(), pattern()]) {
            let permissions = Permissions { publish: rules.clone(), ..Permissions::default() };
            prop_assert_eq!(permissions.may_publish(subject.as_bytes()), naive(&rules, &subject));
        }

        #[test]
        fn no_subscription_shows_what_the_rules_hide(rules in rules(), wanted in pattern()) {
            let filter = match subscribe(&rules, &wanted) {
                Subscribe::Denied => return Ok(()),
                Subscribe::Granted => Vec::new(),
                Subscribe::Filtered(filter) => filter,
            };
            for subject in universe().iter().filter(|subject| naive_match(&wanted, subject)) {
                let shown = !filter.iter().any(|p| matches(p, subject.as_bytes()));
                prop_assert_eq!(shown, naive(&rules, subject), "{}", subject);
            }
        }
    }
}
