//! The forms in which permissions may be written down: nats-server's, so that its users' habits hold. Pure; used by serde.

use std::time::Duration;

use serde::de::Error;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

// Relative, as the fuzz targets include these files without the rest of the crate.
use super::super::subject::is_valid;
use super::Responses;

/// One subject, a list of subjects, or what is allowed and what denied.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Rules {
    /// What is allowed.
    Only(OneOrMore),
    /// Both.
    Both(Both),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Both {
    #[serde(default)]
    allow: Option<OneOrMore>,
    #[serde(default)]
    deny: Option<OneOrMore>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl From<OneOrMore> for Vec<String> {
    fn from(given: OneOrMore) -> Self {
        match given {
            OneOrMore::One(subject) => vec![subject],
            OneOrMore::More(subjects) => subjects,
        }
    }
}

impl From<Rules> for super::Rules {
    fn from(given: Rules) -> Self {
        match given {
            Rules::Only(allow) => Self::allow(Vec::from(allow)),
            Rules::Both(both) => {
                Self { allow: both.allow.map(Into::into), deny: both.deny.map(Into::into).unwrap_or_default() }
            }
        }
    }
}

/// An entry that no subject can match, and where it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Impossible {
    /// `publish` or `subscribe`.
    pub rules: &'static str,
    /// `allow` or `deny`.
    pub list: &'static str,
    /// What stands there.
    pub entry: String,
    /// What might.
    pub expected: &'static str,
}

impl super::Permissions {
    /// The first entry that is no pattern, if there is one: such an entry in `deny` would leave a door open.
    pub fn impossible(&self) -> Option<Impossible> {
        let publish = "a subject such as \"jobs.*\" or \"jobs.>\"";
        let subscribe = "a subject such as \"jobs.>\", or one and a queue group such as \"jobs.> crew\"";
        let find = |rules, from: &super::Rules, expected, is_one: fn(&str) -> bool| {
            let allow = from.allow.iter().flatten().map(|entry| ("allow", entry));
            let mut all = allow.chain(from.deny.iter().map(|entry| ("deny", entry)));
            let (list, entry) = all.find(|(_, entry)| !is_one(entry))?;
            Some(Impossible { rules, list, entry: entry.clone(), expected })
        };
        find("publish", &self.publish, publish, is_pattern)
            .or_else(|| find("subscribe", &self.subscribe, subscribe, is_pattern_and_group))
    }
}

fn is_pattern(text: &str) -> bool {
    is_valid(text.as_bytes()) && !text.bytes().any(|byte| byte.is_ascii_whitespace())
}

fn is_pattern_and_group(entry: &str) -> bool {
    match entry.split_once(' ') {
        None => is_pattern(entry),
        Some((subject, group)) => is_pattern(subject) && is_pattern(group.trim_start_matches(' ')),
    }
}

/// `true`, or the two bounds; -1 stands for none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answers {
    Whether(bool),
    Bounds(Bounds),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bounds {
    #[serde(default)]
    max: Option<i64>,
    #[serde(default, alias = "ttl")]
    expires: Option<Time>,
}

/// A text such as `500ms`, or nanoseconds, as nats-server's JSON has them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Nanos(i64),
    Text(String),
}

impl Time {
    /// `Some(None)` for no bound, `None` for what is no time.
    fn duration(&self) -> Option<Option<Duration>> {
        let text = match self {
            Self::Nanos(nanos) => return Some(u64::try_from(*nanos).ok().map(Duration::from_nanos)),
            Self::Text(text) if text.starts_with('-') => return Some(None),
            Self::Text(text) => text,
        };
        let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at_checked(unit_at)?;
        let number: u64 = number.parse().ok()?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        Some(Some(Duration::from_millis(number.checked_mul(millis)?)))
    }
}

/// For `allow_responses`.
pub(super) fn responses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Responses>, D::Error> {
    let given = match Answers::deserialize(deserializer)? {
        Answers::Whether(false) => return Ok(None),
        Answers::Whether(true) => return Ok(Some(Responses::default())),
        Answers::Bounds(given) => given,
    };
    let mut responses = Responses::default();
    match given.max {
        None | Some(0) => {}
        Some(max) => responses.max = u32::try_from(max).ok(),
    }
    if let Some(time) = given.expires {
        responses.expires =
            time.duration().ok_or_else(|| D::Error::custom("expected a time such as \"500ms\", \"2m\" or \"-1\""))?;
    }
    Ok(Some(responses))
}

impl Serialize for Responses {
    /// As nats-server shows them in `$SYS.REQ.USER.INFO`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut shown = serializer.serialize_struct("Responses", 2)?;
        shown.serialize_field("max", &self.max.map_or(-1, i64::from))?;
        let ttl = self.expires.map_or(-1, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
        shown.serialize_field("ttl", &ttl)?;
        shown.end()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Permissions, Rules};
    use super::*;

    fn read(json: &str) -> Permissions {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn rules_are_read_in_each_form() {
        let expected = Permissions { publish: Rules::allow(["a"]), ..Permissions::default() };
        for json in [r#"{"publish":"a"}"#, r#"{"publish":["a"]}"#, r#"{"publish":{"allow":"a"}}"#] {
            assert_eq!(read(json), expected, "{json}");
        }
        let denied = Rules::default().deny(["x", "y"]);
        assert_eq!(read(r#"{"subscribe":{"deny":["x","y"]}}"#).subscribe, denied);
        assert_eq!(read("{}"), Permissions::default());
        for wrong in [r#"{"publish":{"alow":"a"}}"#, r#"{"publish":1}"#, r#"{"publsh":"a"}"#] {
            assert!(serde_json::from_str::<Permissions>(wrong).is_err(), "a slip must not open a door: {wrong}");
        }
    }

    #[test]
    fn responses_are_read_in_each_form_and_shown_as_nats_server_does() {
        let bounds = |max, millis: Option<u64>| Some(Responses { max, expires: millis.map(Duration::from_millis) });
        for (json, expected) in [
            ("true", Some(Responses::default())),
            ("false", None),
            ("{}", Some(Responses::default())),
            (r#"{"max":2,"expires":"500ms"}"#, bounds(Some(2), Some(500))),
            (r#"{"max":-1,"expires":"-1"}"#, bounds(None, None)),
            (r#"{"max":0,"ttl":1000000}"#, bounds(Some(1), Some(1))),
        ] {
            let read = read(&format!(r#"{{"allow_responses":{json}}}"#));
            assert_eq!(read.allow_responses, expected, "{json}");
            let again: Permissions = serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap();
            assert_eq!(again, read, "what is shown can be read");
        }
        let shown = serde_json::to_string(&Responses::default()).unwrap();
        assert_eq!(shown, r#"{"max":1,"ttl":120000000000}"#);
    }
}
