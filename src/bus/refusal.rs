//! Requests that the broker refuses. It answers them with an error of the connection, not with a reply: without this the
//! caller would wait for its whole deadline and be told of silence. Used by [`super::client`].

use super::subject;
use crate::model::access::rule;
use crate::model::error::{ApiError, ErrorCode};

/// Refusals that wait for a caller who looks: each caller only seeks its own, and takes it at once.
pub(super) const CAPACITY: usize = 64;

/// The subject that a message of the broker says may not be published to; `None` for any other message. It reads the
/// same from nats-server and from the embedded broker.
pub(super) fn refused_publish(message: &str) -> Option<&str> {
    message.split_once("Permissions Violation for Publish to \"")?.1.split('"').next()
}

/// What to tell the caller whose message to `subject` was refused.
pub(super) fn forbidden(subject: &str) -> ApiError {
    let text = match subject::parse_api(subject) {
        Some((account, resource, verb)) => match rule(resource, verb) {
            Some(rule) => format!(
                "the account {account} may not do {resource}.{verb}: that needs {}; somebody with admin:write can grant it \
                 with `orchard update service-account {account} --roles …`; if the account has that, this controller is of \
                 an older release and knows no such verb",
                rule.needs
            ),
            None => format!(
                "this controller knows no such verb as {resource}.{verb}, or the account {account} may not do it; the \
                 release of the controller is what `orchard version` shows"
            ),
        },
        None => format!("the bus does not allow this user to send to {subject}"),
    };
    ApiError::new(ErrorCode::Forbidden, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_as_brokers_write_them() {
        let refused = "nats: Permissions Violation for Publish to \"orchard.v1.api.ann.vm.create\"";
        assert_eq!(refused_publish(refused), Some("orchard.v1.api.ann.vm.create"));
        assert_eq!(refused_publish("Permissions Violation for Publish to \""), Some(""));
        for other in ["Permissions Violation for Subscription to \"a.b\"", "Slow Consumer", ""] {
            assert_eq!(refused_publish(other), None);
        }
    }

    #[test]
    fn the_missing_role_is_named() {
        let error = forbidden("orchard.v1.api.ann.vm.create");
        assert_eq!(error.code, ErrorCode::Forbidden);
        assert!(error.message.contains("compute:write") && error.message.contains("ann"), "{error}");
        assert!(error.message.contains("older release"), "{error}");
        assert!(forbidden("jobs.x").message.contains("jobs.x"));
    }

    #[test]
    fn a_verb_that_nobody_knows_here_is_not_taken_for_a_missing_role() {
        let error = forbidden("orchard.v1.api.ann.vm.migrate");
        assert_eq!(error.code, ErrorCode::Forbidden);
        assert!(error.message.starts_with("this controller knows no such verb as vm.migrate"), "{error}");
        assert!(!error.message.contains("--roles"), "{error}");
    }
}
