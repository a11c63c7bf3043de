//! The name of one request: made by who asks, told in the logs and the audit trail of who answers.

use std::fmt;

/// The header of a message on the bus that carries it.
pub const REQUEST_ID: &str = "Orchard-Request-Id";
/// The longest, in bytes.
const MAX: usize = 64;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(String);

impl RequestId {
    /// What a client says; none when it is no short word of letters, digits, `-`, `_` and `.`, as it would make a mess of
    /// logs.
    pub fn parse(text: &str) -> Option<Self> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (!text.is_empty() && text.len() <= MAX && text.chars().all(fine)).then(|| Self(text.to_owned()))
    }

    /// That of `random`, for who asks.
    pub fn of(random: uuid::Uuid) -> Self {
        Self(random.simple().to_string())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_short_word() {
        let own = RequestId::of(uuid::Uuid::nil());
        assert_eq!(RequestId::parse(own.as_str()), Some(own));
        assert!(RequestId::parse("ci-build-7_a.b").is_some());
        for wrong in ["", "a b", "a\nb", "ä", &"x".repeat(MAX + 1)] {
            assert_eq!(RequestId::parse(wrong), None, "{wrong:?}");
        }
    }
}
