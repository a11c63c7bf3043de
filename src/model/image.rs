//! Images: how they are named for people and compared, and requests to fetch one before a VM needs it. Pure.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::resources::{Labels, WORKER_NAME_LABEL};
use super::vm::RuntimeKind;
use super::worker::WorkerInfo;
use super::{AccountName, Timestamp, WorkerName};

/// An image as people may see it, by which two are also compared: the part of its address that says what it is, without
/// who fetches it (user, password), a query, which may hold a token, and a digest to check. Of `file://` the path alone, as
/// if that had been given. What is no URL stays as it is.
pub fn shown(image: &str) -> String {
    let Some((scheme, rest)) = image.split_once("://") else { return image.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at_checked(at).unwrap_or((rest, "")),
        None => (rest, ""),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_ascii_lowercase();
    if scheme.eq_ignore_ascii_case("file") && host.is_empty() {
        return path.to_owned();
    }
    format!("{}://{host}{path}", scheme.to_ascii_lowercase())
}

/// Which request to fetch an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PullId(pub Uuid);

impl fmt::Display for PullId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for PullId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(Self)
    }
}

impl TryFrom<String> for PullId {
    type Error = uuid::Error;
    fn try_from(text: String) -> Result<Self, uuid::Error> {
        text.parse()
    }
}

text_schema! {
    PullId { "description": "Which request to fetch an image.", "format": "uuid" }
}

impl From<PullId> for String {
    fn from(id: PullId) -> String {
        id.to_string()
    }
}

/// Which workers are meant: those that fit all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WorkerSelector {
    /// Labels that they have.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// This one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// Those with this runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeKind>,
}

impl WorkerSelector {
    /// Whether a worker is meant. As for VMs, each has its name as a label, and an empty value is satisfied by none.
    pub fn fits(&self, info: &WorkerInfo) -> bool {
        let has = |(name, value): (&String, &String)| match name.as_str() {
            WORKER_NAME_LABEL => info.name.as_str() == value,
            name => info.labels.get(name).map_or("", String::as_str) == value,
        };
        self.worker.as_ref().is_none_or(|only| *only == info.name)
            && self.runtime.is_none_or(|runtime| runtime == info.runtime)
            && self.labels.iter().all(has)
    }
}

/// A request to fetch an image on workers, as the controller keeps it. The image may hold who fetches it: not for readers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// Which request.
    pub id: PullId,
    /// What to fetch, as in a VM's specification.
    pub image: String,
    /// Where.
    #[serde(default)]
    pub selector: WorkerSelector,
    /// When it was asked for.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// Who asked for it.
    #[serde(default, rename = "createdBy", skip_serializing_if = "Option::is_none")]
    pub created_by: Option<AccountName>,
    /// When it is forgotten; until then workers that register fetch the image, too.
    #[serde(rename = "expiresAt")]
    pub expires_at: Timestamp,
}

/// How far a worker is with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "lowercase")]
pub enum PullState {
    /// It has said nothing of it yet.
    Waiting,
    /// It fetches the image.
    Pulling,
    /// It has the image.
    Done,
    /// It could not fetch it, and does not try again by itself.
    Failed,
    /// One of a newer release.
    #[serde(other)]
    Unknown,
}

text_enum!(PullState: Waiting = "waiting", Pulling = "pulling", Done = "done", Failed = "failed"; else Unknown);

#[cfg(test)]
mod tests {
    use super::super::vm::RuntimeKind;
    use super::super::worker::sample;
    use super::*;

    #[test]
    fn what_is_shown_of_an_image_says_what_it_is_and_not_who_fetches_it() {
        for (image, expected) in [
            ("/images/a#b?c.qcow2", "/images/a#b?c.qcow2"),
            ("file:///images/a.qcow2#sha256=ab", "/images/a.qcow2"),
            ("HTTPS://ann:p@w@Host.example:8443/a.img?token=t#sha256=ab", "https://host.example:8443/a.img"),
            ("https://t0ken@host", "https://host"),
            ("http://host/a@b?x://y", "http://host/a@b"),
            ("ghcr.io/org/image:latest", "ghcr.io/org/image:latest"),
            ("ghcr.io/org/image@sha256:ab", "ghcr.io/org/image@sha256:ab"),
            ("://", "://"),
            ("", ""),
        ] {
            assert_eq!(shown(image), expected, "{image}");
            assert_eq!(shown(&shown(image)), expected, "shown again it is the same");
        }
    }

    #[test]
    fn a_selector_fits_workers_that_have_all_of_it() {
        let mut info = sample("w", 1, 1);
        info.labels.insert("role".into(), "ci".into());
        let all = WorkerSelector::default;
        let label = |name: &str, value: &str| WorkerSelector { labels: [(name.into(), value.into())].into(), ..all() };
        for (selector, expected) in [
            (all(), true),
            (label("role", "ci"), true),
            (label("role", "build"), false),
            (label("absent", ""), true),
            (label(WORKER_NAME_LABEL, "w"), true),
            (label(WORKER_NAME_LABEL, "v"), false),
            (WorkerSelector { worker: Some("w".parse().unwrap()), ..label("role", "ci") }, true),
            (WorkerSelector { worker: Some("v".parse().unwrap()), ..label("role", "ci") }, false),
            (WorkerSelector { runtime: Some(RuntimeKind::Synthetic), ..all() }, true),
            (WorkerSelector { runtime: Some(RuntimeKind::Qemu), ..all() }, false),
        ] {
            assert_eq!(selector.fits(&info), expected, "{selector:?}");
        }
    }
}
