//! What a VM's specification may be. Called for each VM that is asked for.

use std::collections::BTreeSet;

use crate::bus::measure::encoded_len;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::features;
use crate::model::vm::{Arch, Os, RuntimeKind, VmSpec};

/// Bounds of a specification: generous for people, small against the broker's payload limit.
const MAX_TEXT: usize = 4 * 1024;
const MAX_SCRIPT: usize = 256 * 1024;
const MAX_PAIRS: usize = 64;
/// Each is a device in the guest.
const MAX_HOST_DIRS: usize = 16;
/// All of it together: one VM must fit into one message to its worker.
const MAX_SPEC: usize = 512 * 1024;

/// Whether a VM can be what `spec` says.
///
/// # Errors
/// [`ErrorCode::Invalid`].
pub(super) fn check_spec(spec: &VmSpec) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Invalid, what));
    if spec.image.is_empty() {
        return refuse("no image was given; name the file or URL that the disk shall be cloned from".to_owned());
    }
    if spec.image.starts_with('-') || spec.image.chars().any(char::is_control) {
        return refuse(format!("image {:?} begins with a dash or contains control characters", spec.image));
    }
    check_words(spec.os, spec.arch, spec.runtime)?;
    let texts = [
        ("image", spec.image.len()),
        ("username", spec.guest_user().len()),
        ("password", spec.guest_password().expose().len()),
    ];
    if let Some((what, len)) = texts.into_iter().find(|(_, len)| *len > MAX_TEXT) {
        return refuse(format!("the {what} has {len} bytes; at most {MAX_TEXT} are allowed"));
    }
    if let Some(script) = &spec.startup_script {
        let env: usize = script.env.iter().map(|(name, value)| name.len() + value.expose().len()).sum();
        let len = script.script_content.len().saturating_add(env);
        if len > MAX_SCRIPT {
            return refuse(format!(
                "the startup script has {len} bytes; at most {MAX_SCRIPT} are allowed: fetch more from within it"
            ));
        }
    }
    let pairs = spec.labels.iter().map(|(k, v)| (k, v.len())).chain(spec.resources.0.keys().map(|k| (k, 0)));
    if spec.labels.len() > MAX_PAIRS || spec.resources.0.len() > MAX_PAIRS {
        return refuse(format!("more than {MAX_PAIRS} labels or resources"));
    }
    for (key, len) in pairs {
        if key.is_empty() || key.len() > MAX_TEXT || len > MAX_TEXT {
            return refuse(format!(
                "a label or resource name is empty, or it or its value is longer than {MAX_TEXT} bytes"
            ));
        }
    }
    if spec.host_dirs.len() > MAX_HOST_DIRS {
        return refuse(format!("{} host directories; at most {MAX_HOST_DIRS} are allowed", spec.host_dirs.len()));
    }
    let names: BTreeSet<&str> = spec.host_dirs.iter().map(|dir| dir.name.as_str()).collect();
    if names.len() < spec.host_dirs.len() {
        return refuse("two host directories have the same name; the guest knows them by it".to_owned());
    }
    if let Some(kind) = spec.runtime {
        features::check(spec, kind)?;
    }
    let size = encoded_len(spec);
    if size > MAX_SPEC {
        return refuse(format!("the specification has {size} bytes; at most {MAX_SPEC} are allowed"));
    }
    Ok(())
}

/// Readers take words of newer releases as they come; a controller that shall act on one must know it.
///
/// # Errors
/// [`ErrorCode::Invalid`], with those that there are.
pub(super) fn check_words(os: Option<Os>, arch: Option<Arch>, runtime: Option<RuntimeKind>) -> Result<(), ApiError> {
    let words = |all: &[&str]| all.join(", ");
    let unknown = if os == Some(Os::Unknown) {
        ("os", words(&Os::ALL.iter().map(|os| os.as_str()).collect::<Vec<_>>()))
    } else if arch == Some(Arch::Unknown) {
        ("arch", words(&Arch::ALL.iter().map(|arch| arch.as_str()).collect::<Vec<_>>()))
    } else if runtime == Some(RuntimeKind::Unknown) {
        ("runtime", words(&RuntimeKind::ALL.iter().map(|runtime| runtime.as_str()).collect::<Vec<_>>()))
    } else {
        return Ok(());
    };
    let (field, known) = unknown;
    Err(ApiError::new(ErrorCode::Invalid, format!("the {field} is none that this controller knows; it knows {known}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_not_fit_into_one_message_is_refused() {
        let labels = (0..64).map(|n| (format!("{n:04096}"), "x".repeat(MAX_TEXT))).collect();
        let spec = VmSpec { image: "i".into(), labels, ..VmSpec::default() };
        assert_eq!(check_spec(&spec).unwrap_err().code, ErrorCode::Invalid);
        let script =
            crate::model::vm::StartupScript { script_content: "x".repeat(MAX_SCRIPT), env: Default::default() };
        let spec = VmSpec { image: "i".into(), startup_script: Some(script), ..VmSpec::default() };
        check_spec(&spec).unwrap();
    }

    #[test]
    fn words_of_newer_releases_are_no_wishes() {
        let known =
            |os, arch, runtime| check_spec(&VmSpec { image: "i".into(), os, arch, runtime, ..VmSpec::default() });
        known(Some(Os::Linux), Some(Arch::Arm64), Some(RuntimeKind::Qemu)).unwrap();
        for error in [
            known(Some(Os::Unknown), None, None),
            known(None, Some(Arch::Unknown), None),
            known(None, None, Some(RuntimeKind::Unknown)),
        ] {
            assert_eq!(error.unwrap_err().code, ErrorCode::Invalid);
        }
    }
}
