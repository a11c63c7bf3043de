//! Has what changed in who may do what hold for connections and streams that are open, within a second.
//!
//! Woken by each change, and by a clock besides: an account that expires changes nothing, and a notice that was lost must
//! cost time only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::auth::AccessView;
use super::gate::Gate;
use crate::broker::Broker;
use crate::bus::subject;
use crate::model::AccountName;
use crate::model::account::SecretHash;
use crate::tunnel::Reason;
use crate::tunnel::relay::{Control, Gatekeeper};

/// How often accounts with open streams are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long an account's connections go on after a change: whoever changed his own account gets the answer, which may hold
/// the only copy of a new token.
const LAST_ANSWER: Duration = Duration::from_millis(250);

/// Whose rights are seen to, and by whom.
pub(super) struct Enforcer {
    pub(super) access: Arc<AccessView>,
    pub(super) broker: Option<Arc<Broker>>,
    pub(super) gate: Arc<Gate>,
    pub(super) relay: Control,
    /// The token of each account when it was last looked at: first before anybody was let in.
    pub(super) tokens: HashMap<AccountName, SecretHash>,
}

/// Runs until dropped.
pub(super) async fn run(enforcer: Enforcer) {
    let Enforcer { access, broker, gate, relay, mut tokens } = enforcer;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Both are cancel safe.
        tokio::select! {
            users = access.changed() => {
                if users.iter().any(|user| user.parse::<AccountName>().is_ok()) {
                    tokio::time::sleep(LAST_ANSWER).await;
                }
                for user in users {
                    let connections = broker.as_ref().map_or(0, |broker| broker.recheck_user(&user));
                    tracing::debug!(user, connections, "rights have changed");
                    if let Some(worker) = subject::parse_worker_user(&user)
                        && let Some(reason) = gate.review(&worker)
                    {
                        relay.disconnect(&worker, reason);
                    }
                    if let Ok(account) = user.parse::<AccountName>() {
                        let token = access.account(&account).map(|account| account.token_hash);
                        let before = match token {
                            Some(token) => tokens.insert(account.clone(), token),
                            None => tokens.remove(&account),
                        };
                        if before.is_some() && before != token {
                            // What the old token had got is worth nothing more.
                            gate.revoke_tickets(&account);
                            let reason = if token.is_some() { Reason::Rotated } else { Reason::Revoked };
                            relay.cut_account(&account, reason);
                        }
                    }
                }
            }
            _ = look.tick() => {}
        }
        for account in relay.accounts() {
            if gate.permits(&account).is_err() {
                relay.cut_account(&account, Reason::Revoked);
            }
        }
    }
}
