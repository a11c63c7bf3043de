//! Payloads that concern images: what workers hold, and requests to fetch one before a VM needs it. Pure.
//!
//! Readers see an image as [`crate::model::image::shown`] has it; only workers are told the whole, which may hold a password.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message::{ApiCall, Done, api_call};
use crate::model::image::{PullId, PullState, WorkerSelector};
use crate::model::{AccountName, SessionId, Timestamp, WorkerName};

/// Images that a worker tells of, those used last: more than most hosts have room for, and still a small message. One
/// that has more says so.
pub const MAX_IMAGES: usize = 64;
/// Requests to fetch an image that there may be at a time, in the cluster and so for each worker.
pub const MAX_PULLS: usize = 64;
/// The longest name of an image that is told of, in bytes; a longer one is not, and found anew when it is needed.
pub const MAX_IMAGE_NAME: usize = 512;
/// The longest digest, in bytes.
pub const MAX_DIGEST: usize = 128;
/// The longest text on a request's progress or failure, in bytes.
pub const MAX_PULL_MESSAGE: usize = 512;

/// A worker tells what it holds and how far it is with what it shall fetch. Sent when that has changed and once in each
/// session; the newest replaces all before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagesReport {
    /// The session.
    pub session: SessionId,
    /// The images, those used last first; at most [`MAX_IMAGES`]. None = it cannot say now, and what it said last stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<HeldImage>>,
    /// How many more there are.
    #[serde(default, rename = "leftOut", skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// The requests that it knows of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulls: Vec<PullReport>,
}

/// An image that a worker holds, ready for VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldImage {
    /// What it is called, without anything secret.
    pub image: String,
    /// What it takes on the disk, as far as that is known.
    pub bytes: u64,
    /// Its content's digest, such as `sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When a VM was last made from it, or it was fetched.
    #[serde(default, rename = "lastUsed", skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
    /// A VM's disk stands on it, so that it cannot go.
    #[serde(default, rename = "inUse")]
    pub in_use: bool,
}

/// How far a worker is with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PullReport {
    /// Which request.
    pub id: PullId,
    /// Where it stands.
    pub state: PullState,
    /// How far, in percent and bytes, or why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// An image that a worker shall fetch, as a part of its assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DesiredPull {
    /// Which request.
    pub id: PullId,
    /// What to fetch, secrets included.
    pub image: String,
}

/// `image.list`: what workers hold, image by image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListImages {
    /// Only names after this one.
    #[serde(default)]
    pub after: Option<String>,
    /// At most so many; 0 = as many as fit a page.
    #[serde(default)]
    pub limit: u32,
}
api_call!(ListImages => ImagePage, "image", "list");

/// A page of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePage {
    /// In the order of their names.
    pub images: Vec<ImageView>,
    /// There are more: ask for those after the last one here.
    pub more: bool,
}

/// An image over all workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageView {
    /// What it is called.
    pub image: String,
    /// What it takes on a disk; the most, where that differs.
    pub bytes: u64,
    /// How many workers hold it.
    pub workers: u64,
    /// On how many of them a VM's disk stands on it.
    #[serde(rename = "inUse")]
    pub in_use: u64,
    /// When it was last used on any of them.
    #[serde(default, rename = "lastUsed", skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
}

/// `image.list-held`: what each worker holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListHeldImages {
    /// Only this worker's.
    #[serde(default)]
    pub worker: Option<WorkerName>,
    /// Only those of this name.
    #[serde(default)]
    pub image: Option<String>,
    /// Only those after this one.
    #[serde(default)]
    pub after: Option<(WorkerName, String)>,
    /// At most so many; 0 = as many as fit a page.
    #[serde(default)]
    pub limit: u32,
}
api_call!(ListHeldImages => HeldPage, "image", "list-held");

/// A page of images on workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldPage {
    /// By worker and name.
    pub images: Vec<HeldView>,
    /// There are more: ask for those after the last one here.
    pub more: bool,
}

/// An image on a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldView {
    /// Who holds it.
    pub worker: WorkerName,
    /// The image.
    #[serde(flatten)]
    pub held: HeldImage,
}

/// `image.pull`: has workers fetch an image before a VM needs it. Those that register later fetch it, too, until the request
/// expires. Asked for again for the same workers it begins anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PullImage {
    /// What to fetch, as in a VM's specification.
    pub image: String,
    /// Where.
    #[serde(default)]
    pub selector: WorkerSelector,
    /// For how long the request stands, in seconds: 1 to [`MAX_PULL_TTL_S`]; 0 = [`PULL_TTL_S`].
    #[serde(default, rename = "ttl")]
    pub ttl_s: u64,
}
api_call!(PullImage => PullView, "image", "pull");

/// How long a request stands if nothing else was said, in seconds: a day, in which most workers that are off come back.
pub const PULL_TTL_S: u64 = 24 * 3600;
/// The longest that it may, in seconds: a month. Whoever wants an image on all workers for ever asks again then.
pub const MAX_PULL_TTL_S: u64 = 31 * 24 * 3600;

/// `image.cancel-pull`: ends all requests for an image; what is being fetched is given up, what was fetched stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelPull {
    /// The image, with or without what is not shown of it.
    pub image: String,
}
api_call!(CancelPull => Done, "image", "cancel-pull");

/// `image.list-pulls`: all requests to fetch images, oldest first. There are [`MAX_PULLS`] at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListPulls {}
api_call!(ListPulls => PullPage, "image", "list-pulls");

/// All requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PullPage {
    /// Oldest first.
    pub pulls: Vec<PullView>,
}

/// A request as readers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PullView {
    /// Which.
    pub id: PullId,
    /// What is fetched.
    pub image: String,
    /// Where.
    pub selector: WorkerSelector,
    /// When it was asked for.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// Who asked for it.
    #[serde(default, rename = "createdBy", skip_serializing_if = "Option::is_none")]
    pub created_by: Option<AccountName>,
    /// When it is forgotten.
    #[serde(rename = "expiresAt")]
    pub expires_at: Timestamp,
    /// Workers that are meant, as far as they are known now.
    pub workers: u64,
    /// Those of them that have it.
    pub done: u64,
    /// Those that could not fetch it.
    pub failed: u64,
    /// Those that are not online, and fetch it when they are.
    pub offline: u64,
}

/// `image.get-pull`: how far each worker is with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetPull {
    /// Which.
    pub id: PullId,
    /// Only workers after this one.
    #[serde(default)]
    pub after: Option<WorkerName>,
    /// At most so many; 0 = as many as fit a page.
    #[serde(default)]
    pub limit: u32,
}
api_call!(GetPull => PullProgress, "image", "get-pull");

/// A page of how far workers are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PullProgress {
    /// The request.
    pub pull: PullView,
    /// Its workers, in name order.
    pub workers: Vec<PullOnWorker>,
    /// There are more: ask for those after the last one here.
    pub more: bool,
}

/// How far one worker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PullOnWorker {
    /// Which.
    pub worker: WorkerName,
    /// Whether it is online; one that is not goes on when it is.
    pub online: bool,
    /// Where it stands, as it said last.
    pub state: PullState,
    /// How far, in percent and bytes, or why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
