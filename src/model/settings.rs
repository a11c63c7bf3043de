//! What operators decide for the whole cluster, and folders of hosts that VMs may be given. Pure data and rules.
//!
//! Field names on the wire are those of `orchard-behaviour`.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, ErrorCode};

/// Which of the workers that fit a VM is preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// One that has the image, then the one with the most VMs: others stay empty for big VMs, or can be switched off.
    #[default]
    OptimizeUtilization,
    /// The one with the fewest VMs, then one that has the image.
    DistributeLoad,
}

text_enum!(Profile: OptimizeUtilization = "optimize-utilization", DistributeLoad = "distribute-load");

/// How many virtual cores are given out for each real one unless the operator says otherwise: build machines wait for disks
/// and networks most of the time.
pub const CPU_OVERCOMMIT: u64 = 4;
/// The most that may be: beyond it no guest gets anything done.
pub const MAX_CPU_OVERCOMMIT: u64 = 64;
/// Policies at a time; each VM that names a folder is compared with all.
pub const MAX_POLICIES: usize = 256;
/// The longest path, as on the hosts.
const MAX_PATH: usize = 4_096;
/// The longest name of a folder in the guest.
const MAX_DIR_NAME: usize = 31;

/// The one record of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterSettings {
    /// Where VMs go.
    #[serde(default, rename = "schedulerProfile")]
    pub profile: Profile,
    /// Virtual cores for each real one.
    #[serde(default = "overcommit", rename = "cpuOvercommit")]
    pub cpu_overcommit: u64,
    /// Folders of hosts that VMs may be given: those that one of these allows. None allowed if there is none.
    #[serde(default, rename = "hostDirPolicies", skip_serializing_if = "Vec::is_empty")]
    pub host_dir_policies: Vec<HostDirPolicy>,
}

fn overcommit() -> u64 {
    CPU_OVERCOMMIT
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self { profile: Profile::default(), cpu_overcommit: CPU_OVERCOMMIT, host_dir_policies: Vec::new() }
    }
}

/// A folder of hosts below which folders may be given to VMs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct HostDirPolicy {
    /// The folder, or the address of archives.
    #[serde(rename = "pathPrefix")]
    pub path_prefix: String,
    /// Only to read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ro: bool,
}

/// A folder of the host that a VM sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct HostDir {
    /// What the guest knows it by.
    pub name: String,
    /// Where it is on the worker's host: a full path, or the address of an archive.
    pub path: String,
    /// Only to read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ro: bool,
}

impl ClusterSettings {
    /// Whether a VM may have `dir`.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] when it is none, [`ErrorCode::Forbidden`] when no policy allows it.
    pub fn check_host_dir(&self, dir: &HostDir) -> Result<(), ApiError> {
        let fits_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let starts = dir.name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || dir.name.len() > MAX_DIR_NAME || !dir.name.chars().all(fits_name) {
            let what = format!(
                "host directory name {:?} is none: at most {MAX_DIR_NAME} of A-Z a-z 0-9 - _ . and a letter or digit first",
                dir.name
            );
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        check_path("host directory", &dir.path)?;
        if self.host_dir_policies.iter().any(|policy| policy.allows(dir)) {
            return Ok(());
        }
        let access = if dir.ro { "read-only" } else { "writable" };
        let policies: Vec<String> = self.host_dir_policies.iter().map(ToString::to_string).collect();
        let policies = if policies.is_empty() { "none".to_owned() } else { policies.join(", ") };
        let what = format!(
            "no policy allows VMs the {access} host directory {:?}; policies: {policies}. Somebody with admin:write may add one \
             with `orchard set cluster-settings --host-dir-policies PREFIX[:ro]`",
            dir.path
        );
        Err(ApiError::new(ErrorCode::Forbidden, what))
    }

    /// Whether these can be.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`].
    pub fn check(&self) -> Result<(), ApiError> {
        let refuse = |what: String| Err(ApiError::new(ErrorCode::Invalid, what));
        if !(1..=MAX_CPU_OVERCOMMIT).contains(&self.cpu_overcommit) {
            return refuse(format!(
                "{} virtual cores for each real one: 1 to {MAX_CPU_OVERCOMMIT} can be",
                self.cpu_overcommit
            ));
        }
        if self.host_dir_policies.len() > MAX_POLICIES {
            return refuse(format!("{} policies; at most {MAX_POLICIES} can be", self.host_dir_policies.len()));
        }
        self.host_dir_policies.iter().try_for_each(|policy| check_path("policy", &policy.path_prefix))
    }
}

impl HostDirPolicy {
    /// Whether it allows `dir`: the folder itself or one below it, by whole parts of the path.
    pub fn allows(&self, dir: &HostDir) -> bool {
        let (prefix, path) = (self.path_prefix.trim_end_matches('/'), dir.path.trim_end_matches('/'));
        let below = path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        below && (dir.ro || !self.ro) && !goes_up(path)
    }
}

/// Whether a part of the path leads out of the folder before it, whatever that is.
fn goes_up(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

fn is_address(path: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| path.strip_prefix(scheme).is_some_and(|rest| !rest.starts_with('/')))
}

fn check_path(what: &str, path: &str) -> Result<(), ApiError> {
    let refuse = |why: &str| {
        let shown: String = path.chars().take(80).collect();
        Err(ApiError::new(ErrorCode::Invalid, format!("{what} path {shown:?} {why}")))
    };
    if path.len() > MAX_PATH || path.chars().any(char::is_control) {
        return refuse("is too long or contains control characters");
    }
    if !path.starts_with('/') && !is_address(path) {
        return refuse("is no full path; it begins with / (or is the http(s) address of an archive)");
    }
    if goes_up(path) {
        return refuse("contains \"..\"; name the folder itself");
    }
    Ok(())
}

impl std::fmt::Display for HostDirPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path_prefix)?;
        f.write_str(if self.ro { ":ro" } else { "" })
    }
}

impl FromStr for HostDirPolicy {
    type Err = ApiError;

    /// Reads `PREFIX[:ro]`.
    fn from_str(text: &str) -> Result<Self, ApiError> {
        let (prefix, ro) = without_ro(text);
        check_path("policy", prefix)?;
        if prefix.contains(':') && !is_address(prefix) {
            let what = format!("{text:?} is no policy; write PREFIX or PREFIX:ro");
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        Ok(Self { path_prefix: prefix.to_owned(), ro })
    }
}

impl std::fmt::Display for HostDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}{}", self.name, self.path, if self.ro { ":ro" } else { "" })
    }
}

impl FromStr for HostDir {
    type Err = ApiError;

    /// Reads `NAME:PATH[:ro]`; whether it may be is for [`ClusterSettings::check_host_dir`].
    fn from_str(text: &str) -> Result<Self, ApiError> {
        let invalid =
            || ApiError::new(ErrorCode::Invalid, format!("{text:?} is no host directory; write NAME:PATH[:ro]"));
        let (name, rest) = text.split_once(':').ok_or_else(invalid)?;
        let (path, ro) = without_ro(rest);
        if name.is_empty() || path.is_empty() {
            return Err(invalid());
        }
        Ok(Self { name: name.to_owned(), path: path.to_owned(), ro })
    }
}

fn without_ro(text: &str) -> (&str, bool) {
    text.strip_suffix(":ro").map_or((text, false), |rest| (rest, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(policies: &[&str]) -> ClusterSettings {
        let host_dir_policies = policies.iter().map(|policy| policy.parse().unwrap()).collect();
        ClusterSettings { host_dir_policies, ..ClusterSettings::default() }
    }

    #[test]
    fn a_folder_is_allowed_by_whole_parts_of_its_path() {
        let all = settings(&["/srv/builds", "/data/:ro", "https://example.com/archives"]);
        let ask = |text: &str| all.check_host_dir(&text.parse().unwrap()).map_err(|error| error.code);
        for good in [
            "a:/srv/builds",
            "a:/srv/builds/",
            "a:/srv/builds/x/..y",
            "a:/data/x:ro",
            "a:/data:ro",
            "a:https://example.com/archives/a.tar.gz:ro",
        ] {
            assert_eq!(ask(good), Ok(()), "{good}");
        }
        for bad in
            ["a:/srv/builds-of-others", "a:/srv", "a:/data", "a:/data/x", "a:/", "a:https://example.com/archives2"]
        {
            assert_eq!(ask(bad), Err(ErrorCode::Forbidden), "{bad}");
        }
        for bad in [
            "a:/srv/builds/../x",
            "a:srv/builds",
            "a b:/srv/builds",
            "-a:/srv/builds",
            "a,b:/srv/builds",
            "a:http:///x",
        ] {
            assert_eq!(ask(bad), Err(ErrorCode::Invalid), "{bad}");
        }
        let refused = settings(&[]).check_host_dir(&"a:/srv".parse().unwrap()).unwrap_err();
        assert!(refused.code == ErrorCode::Forbidden && refused.message.contains("policies: none"), "{refused}");
        assert!(settings(&["/"]).check_host_dir(&"a:/anything".parse().unwrap()).is_ok());
    }

    #[test]
    fn folders_and_policies_are_written_as_they_are_read() {
        for text in ["a:/x:ro", "a:/x", "a:https://x/y"] {
            assert_eq!(text.parse::<HostDir>().unwrap().to_string(), text);
        }
        for text in ["/x:ro", "/x", "https://x:8080/y:ro"] {
            assert_eq!(text.parse::<HostDirPolicy>().unwrap().to_string(), text);
        }
        for bad in ["", "a", "a:", ":/x", "a::ro"] {
            assert!(bad.parse::<HostDir>().is_err(), "{bad:?}");
        }
        for bad in ["", "x", ":ro", "/x:rw", "/a:/b", "/a/../b"] {
            assert!(bad.parse::<HostDirPolicy>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn settings_of_an_older_or_newer_release_are_read() {
        assert_eq!(serde_json::from_str::<ClusterSettings>("{}").unwrap(), ClusterSettings::default());
        let text = r#"{"schedulerProfile":"distribute-load","hostDirPolicies":[{"pathPrefix":"/x","ro":true}],"x":1}"#;
        let read: ClusterSettings = serde_json::from_str(text).unwrap();
        assert_eq!((read.profile, read.cpu_overcommit), (Profile::DistributeLoad, 4));
        for bad in [0, MAX_CPU_OVERCOMMIT + 1] {
            assert!(ClusterSettings { cpu_overcommit: bad, ..ClusterSettings::default() }.check().is_err());
        }
    }
}
