//! Has what changed in who may do what hold for connections and streams that are open, within a second.
//!
//! Woken by each change, and by a clock besides: an account that expires changes nothing, and a notice that was lost must
//! cost time only.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

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

/// How long an account's connections go on after it was deleted or given another token: whoever did that to his own account
/// gets the answer, which may hold the only copy of the new token. Likewise a machine that has joined with the last use of
/// its bootstrap token. Near the second that is promised, for the sake of busy machines: an answer that is lost here is lost.
const LAST_ANSWER: Duration = Duration::from_millis(700);

/// Returns when the first of those whose last answer is waited for are due. Cancel safe.
async fn first_of(due: &VecDeque<(Instant, Vec<String>)>) {
    match due.front() {
        Some((at, _)) => tokio::time::sleep_until(*at).await,
        None => std::future::pending().await,
    }
}

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
    let mut tokens = enforcer.tokens.clone();
    let Enforcer { access, gate, relay, .. } = &enforcer;
    // The wait is the same for all: the first to come are the first to be due.
    let mut due = VecDeque::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // All are cancel safe. While one user's last answer is waited for, the others' changes hold at once.
        tokio::select! {
            users = access.changed() => {
                let other_token = |user: &String| {
                    if let Some(id) = subject::parse_join_user(user) {
                        return access.join_token(&id).is_none_or(|token| token.uses_left == 0);
                    }
                    let Ok(account) = user.parse::<AccountName>() else { return false };
                    let token = access.account(&account).map(|account| account.token_hash);
                    tokens.get(&account).is_some_and(|before| token != Some(*before))
                };
                let (last_answer, at_once): (Vec<String>, Vec<String>) = users.into_iter().partition(other_token);
                for user in at_once {
                    enforcer.see_to(&user, &mut tokens);
                }
                if !last_answer.is_empty() {
                    due.push_back((Instant::now() + LAST_ANSWER, last_answer));
                }
            }
            () = first_of(&due) => {
                for user in due.pop_front().map(|(_, users)| users).unwrap_or_default() {
                    enforcer.see_to(&user, &mut tokens);
                }
            }
            _ = look.tick() => {}
        }
        for (account, to) in relay.accounts() {
            if gate.permits(&account, to).is_err() {
                relay.cut_streams(&account, to, Reason::Revoked);
            }
        }
    }
}

impl Enforcer {
    /// Has what is known of `user` hold now.
    fn see_to(&self, user: &str, tokens: &mut HashMap<AccountName, SecretHash>) {
        let connections = self.broker.as_ref().map_or(0, |broker| broker.recheck_user(user));
        tracing::debug!(user, connections, "rights have changed");
        if let Some(worker) = subject::parse_worker_user(user)
            && let Some(reason) = self.gate.review(&worker)
        {
            self.relay.disconnect(&worker, reason);
        }
        if let Ok(account) = user.parse::<AccountName>() {
            let token = self.access.account(&account).map(|account| account.token_hash);
            let before = match token {
                Some(token) => tokens.insert(account.clone(), token),
                None => tokens.remove(&account),
            };
            if before != token {
                self.gate.note_token(&account);
            }
            if before.is_some() && before != token {
                // What the old token had got is worth nothing more.
                self.gate.revoke_tickets(&account);
                let reason = if token.is_some() { Reason::Rotated } else { Reason::Revoked };
                self.relay.cut_account(&account, reason);
            }
        }
    }
}
