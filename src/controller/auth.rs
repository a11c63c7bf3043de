//! Who may log in to the embedded broker, and which subjects are theirs.
//!
//! For now one shared random token opens the bus for the first account and for workers; proper identities follow. The
//! name given decides the subjects all the same, so a worker's connection cannot speak for another worker or an account.

use crate::broker::auth::{Authenticator, Credentials, Denied, User};
use crate::broker::permission::{Permissions, Rules};
use crate::bus::subject;
use crate::identity::same_secret;
use crate::model::AccountName;
use crate::model::secret::Secret;

/// The account that exists from the first start on.
pub const BOOTSTRAP_ADMIN: &str = "bootstrap-admin";
/// The bus user of the controller itself; `/` stands in no account's name.
pub(super) const CONTROLLER_USER: &str = "controller/self";

/// Checks names and tokens.
#[derive(Debug)]
pub(super) struct BusUsers {
    /// What accounts and workers present.
    pub(super) token: Secret,
    /// What the controller presents to its own broker; made anew at each start.
    pub(super) own: Secret,
}

impl Authenticator for BusUsers {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        let name = credentials.user.unwrap_or_default();
        let given = credentials.password.unwrap_or_default();
        let expected = if name == CONTROLLER_USER { &self.own } else { &self.token };
        if !same_secret(expected.expose(), given) {
            return Err(Denied::because(format!("wrong token for {name:?}")));
        }
        let permissions =
            permissions_of(name).ok_or_else(|| Denied::because(format!("there is no account {name:?}")))?;
        Ok(User::new(name, permissions))
    }
}

fn permissions_of(name: &str) -> Option<Permissions> {
    if name == CONTROLLER_USER {
        return Some(Permissions::default());
    }
    let inbox = format!("{}.>", subject::inbox(name));
    if let Some(worker) = subject::parse_worker_user(name) {
        let token = subject::token(worker.as_str());
        let own = format!("{}.worker.{token}", subject::ROOT);
        return Some(Permissions {
            publish: Rules::allow(subject::WorkerVerb::ALL.iter().map(|verb| subject::worker(&worker, *verb))),
            subscribe: Rules::allow([format!("{own}.assign"), format!("{own}.command.>"), inbox]),
            ..Permissions::default()
        });
    }
    let account: AccountName = name.parse().ok()?;
    if account.as_str() != BOOTSTRAP_ADMIN {
        return None;
    }
    Some(Permissions {
        publish: Rules::allow([
            format!("{}.api.{}.>", subject::ROOT, subject::token(name)),
            "$SRV.>".to_owned(),
            "$SYS.REQ.USER.INFO".to_owned(),
        ]),
        subscribe: Rules::allow([subject::ALL_EVENTS.to_owned(), inbox]),
        ..Permissions::default()
    })
}
