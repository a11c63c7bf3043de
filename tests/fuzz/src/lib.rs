//! The broker's pure core as a crate of its own, for the fuzz targets, and what they share. The same source files as in the
//! broker, without the rest of it: an instrumented build takes seconds, and nothing has to be public for it.

#[path = "../../../src/broker/permission/mod.rs"]
pub mod permission;
#[path = "../../../src/broker/protocol/mod.rs"]
pub mod protocol;
#[path = "../../../src/broker/replies.rs"]
pub mod replies;
#[path = "../../../src/broker/session.rs"]
pub mod session;
#[path = "../../../src/broker/subject.rs"]
pub mod subject;
#[path = "../../../src/broker/trie/mod.rs"]
pub mod trie;

pub mod auth {
    //! What the session wants of a user.

    use super::permission::Permissions;

    /// A client whose credentials were accepted.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct User {
        pub name: String,
        pub permissions: Permissions,
    }

    impl User {
        pub fn anonymous() -> Self {
            Self { name: String::new(), permissions: Permissions::default() }
        }
    }
}

/// Takes decisions out of the fuzzer's bytes, from their end, so that what is left in front is plain input.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    /// A number below `bound`; 0 when the bytes are used up.
    pub fn below(&mut self, bound: usize) -> usize {
        match self.0.split_last() {
            Some((last, rest)) => {
                self.0 = rest;
                usize::from(*last) % bound
            }
            None => 0,
        }
    }

    /// A subject of a small alphabet, so that patterns and subjects meet often; with empty tokens now and then.
    pub fn subject(&mut self, wild: bool) -> String {
        let count = 1 + self.below(4);
        let tokens: Vec<&str> = (0..count)
            .map(|at| match self.below(9) {
                0..=2 => "a",
                3 | 4 => "b",
                5 => "cc",
                6 if wild => "*",
                7 if wild && at + 1 == count => ">",
                8 => "",
                _ => "d",
            })
            .collect();
        tokens.join(".")
    }

    /// Rules of such subjects.
    pub fn rules(&mut self) -> permission::Rules {
        let mut patterns = |most| -> Vec<String> { (0..self.below(most)).map(|_| self.subject(true)).collect() };
        let (allow, deny) = (patterns(4), patterns(3));
        permission::Rules { allow: (self.below(3) > 0).then_some(allow), deny }
    }
}

/// The definition of matching, written as naively as can be: nothing matches what has an empty token, and a wildcard in
/// the subject is a token like any other.
pub fn naive_match(pattern: &str, subject: &str) -> bool {
    fn go(pattern: &[&str], subject: &[&str]) -> bool {
        match (pattern, subject) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            ([p, pattern @ ..], [s, subject @ ..]) => (*p == "*" || p == s) && go(pattern, subject),
            _ => false,
        }
    }
    let (pattern, subject): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), subject.split('.').collect());
    !pattern.contains(&"") && !subject.contains(&"") && go(&pattern, &subject)
}

/// What rules say of a subject, by that definition.
pub fn naive_rules(rules: &permission::Rules, subject: &str) -> bool {
    rules.allow.as_ref().is_none_or(|allow| allow.iter().any(|p| naive_match(p, subject)))
        && !rules.deny.iter().any(|p| naive_match(p, subject))
}

/// Every literal subject of up to five tokens over the alphabet of [`Choices::subject`], and one token beyond it. One
/// token longer than its patterns, so that `>` and `*` at their end are told apart.
pub fn universe() -> Vec<String> {
    let mut all = vec![];
    let mut last = vec![String::new()];
    for _ in 0..5 {
        last = last
            .iter()
            .flat_map(|head| {
                ["a", "b", "cc", "z"].map(|t| if head.is_empty() { t.to_owned() } else { format!("{head}.{t}") })
            })
            .collect();
        all.extend(last.iter().cloned());
    }
    all
}
