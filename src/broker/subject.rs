//! Subjects: what is one, and which pattern covers which. Pure; used by session, trie and permissions.
//!
//! A subject is tokens between dots. `*` as a whole token stands for any one token, `>` as the last for one or more.

/// The tokens of `subject`.
pub fn tokens(subject: &[u8]) -> impl Iterator<Item = &[u8]> {
    subject.split(|byte| *byte == b'.')
}

/// Whether `subject` may be subscribed to: no empty token, `>` only at the end.
pub fn is_valid(subject: &[u8]) -> bool {
    let mut ended = false;
    !subject.is_empty()
        && tokens(subject).all(|token| {
            let valid = !ended && !token.is_empty() && !token.iter().any(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n'));
            ended = token == b">";
            valid
        })
}

/// Whether `subject` is valid and without wildcards: what a message may be published to.
pub fn is_literal(subject: &[u8]) -> bool {
    is_valid(subject) && !has_wildcard(subject)
}

/// Whether a token of `subject` is a wildcard.
pub fn has_wildcard(subject: &[u8]) -> bool {
    tokens(subject).any(is_wild)
}

fn is_wild(token: &[u8]) -> bool {
    matches!(token, b"*" | b">")
}

/// Whether `pattern` matches what is published to `subject`. A `*` or `>` in the subject is a token like any other there,
/// so that no rule is got around with one.
pub fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    let mut subject = tokens(subject);
    for token in tokens(pattern) {
        match (token, subject.next()) {
            (_, None | Some(b"")) => return false,
            (b">", Some(_)) => return subject.all(|token| !token.is_empty()),
            (b"*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

/// Whether everything that `subject` matches is matched by `pattern` too (for a literal subject: whether it matches).
/// Nothing covers what has an empty token, as in nats-server.
pub fn covers(pattern: &[u8], subject: &[u8]) -> bool {
    let mut subject = tokens(subject);
    for token in tokens(pattern) {
        match (token, subject.next()) {
            (b">", Some(other)) => return !other.is_empty() && subject.all(|token| !token.is_empty()),
            (_, None | Some(b"")) => return false,
            (b"*", Some(b">")) => return false,
            (b"*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

/// Whether some subject is matched by both.
pub fn overlaps(a: &[u8], b: &[u8]) -> bool {
    let (mut a, mut b) = (tokens(a), tokens(b));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(b">"), Some(_)) | (Some(_), Some(b">")) => return true,
            (Some(x), Some(y)) if x == y || x == b"*" || y == b"*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
pub mod strategies {
    //! Small alphabets, so that random patterns and subjects meet often.
    use proptest::prelude::*;

    /// Subjects without wildcards.
    pub fn literal() -> impl Strategy<Value = String> {
        prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..5).prop_map(|t| t.join("."))
    }

    /// Subjects with wildcards now and then.
    pub fn pattern() -> impl Strategy<Value = String> {
        let token = prop_oneof![3 => Just("a"), 2 => Just("b"), 1 => Just("c"), 2 => Just("*")];
        (prop::collection::vec(token, 0..4), prop_oneof![Just("a"), Just("b"), Just("*"), Just(">")]).prop_map(
            |(mut tokens, last)| {
                tokens.push(last);
                tokens.join(".")
            },
        )
    }

    /// Every literal subject of the alphabet up to five tokens, for oracles that enumerate.
    pub fn universe() -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut last = vec![String::new()];
        for _ in 0..5 {
            last = last
                .iter()
                .flat_map(|head| {
                    ["a", "b", "c"].map(|t| if head.is_empty() { t.to_owned() } else { format!("{head}.{t}") })
                })
                .collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    /// The definition of matching, written as naively as can be.
    pub fn naive_match(pattern: &[&str], subject: &[&str]) -> bool {
        match (pattern, subject) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            ([p, pattern @ ..], [s, subject @ ..]) => (*p == "*" || p == s) && naive_match(pattern, subject),
            _ => false,
        }
    }

    /// The same on texts.
    pub fn matches(pattern: &str, subject: &str) -> bool {
        naive_match(&pattern.split('.').collect::<Vec<_>>(), &subject.split('.').collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::strategies::{literal, matches as naive_match, pattern, universe};
    use super::*;

    #[test]
    fn validity() {
        for valid in ["a", "a.b", "*", ">", "a.*.b", "a.>", "a*", "a>b.c", "$SYS.x", "a\u{c}b"] {
            assert!(is_valid(valid.as_bytes()), "{valid}");
        }
        for invalid in ["", ".", "a.", ".a", "a..b", ">.a", "a.>.b", "a b", "a\tb"] {
            assert!(!is_valid(invalid.as_bytes()), "{invalid}");
        }
        assert!(is_literal(b"a*.b") && !is_literal(b"a.*") && !is_literal(b"a.>") && !is_literal(b"a."));
    }

    #[test]
    fn a_wildcard_in_what_is_published_is_a_token_like_any_other() {
        for (pattern, subject) in [("a.*", "a.>"), ("a.*", "a.*"), ("w.*.c", "w.>.c"), (">", "a.>.b"), ("a.>", "a.>")] {
            assert!(matches(pattern.as_bytes(), subject.as_bytes()), "{pattern} {subject}");
        }
        for (pattern, subject) in [("a.b", "a.*"), ("a.*", ">"), ("a.*", "a.>.b"), ("*", "a.>"), (">", "a..>")] {
            assert!(!matches(pattern.as_bytes(), subject.as_bytes()), "{pattern} {subject}");
        }
    }

    #[test]
    fn nothing_covers_an_empty_token() {
        for (pattern, subject) in [(">", "a..b"), ("a.>", "a."), ("*.b", ".b"), ("a..b", "a..b"), (">", "")] {
            assert!(!covers(pattern.as_bytes(), subject.as_bytes()), "{pattern} {subject}");
        }
    }

    proptest! {
        #[test]
        fn covers_is_matching_on_literals(pattern in pattern(), subject in literal()) {
            prop_assert_eq!(covers(pattern.as_bytes(), subject.as_bytes()), naive_match(&pattern, &subject));
        }

        #[test]
        fn matching_agrees_with_the_definition(a in pattern(), b in prop_oneof![literal(), pattern()]) {
            prop_assert_eq!(matches(a.as_bytes(), b.as_bytes()), naive_match(&a, &b));
        }

        #[test]
        fn covers_and_overlaps_agree_with_enumeration(a in pattern(), b in pattern()) {
            let (mut covered, mut both) = (true, false);
            for subject in universe() {
                match (naive_match(&a, &subject), naive_match(&b, &subject)) {
                    (true, true) => both = true,
                    (false, true) => covered = false,
                    _ => {}
                }
            }
            prop_assert_eq!(covers(a.as_bytes(), b.as_bytes()), covered, "{} covers {}", a, b);
            prop_assert_eq!(overlaps(a.as_bytes(), b.as_bytes()), both, "{} overlaps {}", a, b);
        }
    }
}
