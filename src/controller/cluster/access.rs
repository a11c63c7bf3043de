//! Service accounts: made, changed, given a new token, deleted. Of tokens only hashes arrive here.
//!
//! One account at least always has `admin:write` and no end, so that nobody locks everybody out.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use super::{Changes, Cluster};
use crate::bus::access::{CreateAccount, Expiry, MAX_SSH_KEYS, MIN_TOKEN_LEN, UpdateAccount};
use crate::model::access::{Role, Roles};
use crate::model::account::{Account, AccountView, JoinId, JoinToken, SecretHash, WorkerKey};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::ssh_key::SshKey;
use crate::model::{AccountName, Now, Timestamp, WorkerName};

/// Accounts at a time: far more than people and programs that use one cluster, few enough to be held in memory.
pub(super) const MAX_ACCOUNTS: usize = 10_000;
/// The longest token, in bytes: it must fit into the line with which a client logs in.
const MAX_TOKEN_LEN: usize = 1_024;

/// Who may do what.
#[derive(Clone, Debug, Default)]
pub(super) struct Access {
    pub(super) accounts: BTreeMap<AccountName, Account>,
    pub(super) joins: BTreeMap<JoinId, JoinToken>,
    pub(super) keys: BTreeMap<WorkerName, WorkerKey>,
    /// Whose key a public key is: a login shows nothing but the key.
    pub(super) owners: HashMap<String, WorkerName>,
}

impl Access {
    pub(super) fn load(accounts: Vec<Account>, joins: Vec<JoinToken>, keys: Vec<WorkerKey>) -> Self {
        Self {
            accounts: accounts.into_iter().map(|account| (account.view.name.clone(), account)).collect(),
            joins: joins.into_iter().map(|token| (token.id.clone(), token)).collect(),
            owners: keys.iter().map(|key| (key.public_key.clone(), key.worker.clone())).collect(),
            keys: keys.into_iter().map(|key| (key.worker.clone(), key)).collect(),
        }
    }

    /// Whether somebody besides `name` manages accounts, now and for ever.
    fn has_other_admin(&self, name: &AccountName) -> bool {
        self.accounts.values().any(|account| account.view.name != *name && is_lasting_admin(&account.view))
    }
}

impl Cluster {
    /// The stored form of an account; `None` once it is deleted.
    pub fn account_record(&self, name: &AccountName) -> Option<&Account> {
        self.access.accounts.get(name)
    }

    /// Every account, in name order.
    pub fn account_records(&self) -> impl Iterator<Item = &Account> {
        self.access.accounts.values()
    }

    /// An account as readers see it.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn account(&self, name: &AccountName) -> Result<AccountView, ApiError> {
        self.account_record(name).map(|account| account.view.clone()).ok_or_else(|| no_account(name))
    }

    /// At most `limit` accounts after `after`, in name order, and whether there are more.
    pub fn accounts(&self, after: Option<&AccountName>, limit: usize) -> (Vec<AccountView>, bool) {
        let from = after.map_or(Unbounded, |name| Excluded(name.clone()));
        let mut rest = self.access.accounts.range((from, Unbounded));
        let page = rest.by_ref().take(limit).map(|(_, account)| account.view.clone()).collect();
        (page, rest.next().is_some())
    }

    /// A new account whose token has `token_hash`.
    ///
    /// # Errors
    /// [`ErrorCode::Conflict`] when the name is taken, [`ErrorCode::Invalid`] when token, end or a role cannot be,
    /// [`ErrorCode::LimitExceeded`] when there are too many.
    pub fn create_account(
        &mut self,
        request: &CreateAccount,
        token_hash: SecretHash,
        now: Now,
        changes: &mut Changes,
    ) -> Result<AccountView, ApiError> {
        let name = &request.name;
        if let Some(token) = &request.token {
            check_token(token)?;
        }
        if let Some(end) = request.expires_at {
            check_end(end, now)?;
        }
        check_ssh_keys(&request.ssh_keys)?;
        check_roles(&request.roles)?;
        if self.access.accounts.contains_key(name) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!(
                    "there already is a service account named {name}; delete it first (`orchard delete service-account \
                     {name}`), give it a new token (`orchard rotate service-account {name}`), or take another name"
                ),
            ));
        }
        self.check_room()?;
        if self.access.accounts.len() >= MAX_ACCOUNTS {
            let what = format!("there are {MAX_ACCOUNTS} service accounts, and no more can be; delete some first");
            return Err(ApiError::new(ErrorCode::LimitExceeded, what));
        }
        let view = AccountView {
            name: name.clone(),
            roles: request.roles.clone(),
            created_at: now.wall,
            rotated_at: None,
            expires_at: request.expires_at,
            ssh_keys: request.ssh_keys.clone(),
        };
        self.access.accounts.insert(name.clone(), Account { view: view.clone(), token_hash });
        changes.accounts.insert(name.clone());
        changes.say(standing(&view));
        Ok(view)
    }

    /// Gives an account other roles or another end; what `request` does not name stays.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::Invalid`] for an end in the past or an unknown role; [`ErrorCode::Conflict`]
    /// when nobody would be left who manages accounts.
    pub fn update_account(
        &mut self,
        request: &UpdateAccount,
        now: Now,
        changes: &mut Changes,
    ) -> Result<AccountView, ApiError> {
        let name = &request.name;
        let mut view = self.account(name)?;
        let before = standing(&view);
        let was_admin = is_lasting_admin(&view);
        if let Some(roles) = &request.roles {
            check_roles(roles)?;
            view.roles = roles.clone();
        }
        match request.expiry {
            None => {}
            Some(Expiry::Never) => view.expires_at = None,
            Some(Expiry::At(end)) => {
                check_end(end, now)?;
                view.expires_at = Some(end);
            }
        }
        if let Some(keys) = &request.ssh_keys {
            check_ssh_keys(keys)?;
            view.ssh_keys.clone_from(keys);
        }
        if was_admin && !is_lasting_admin(&view) && !self.access.has_other_admin(name) {
            return Err(last_admin(name, "cannot lose that role or get an end"));
        }
        if !view.roles.has(Role::AdminWrite) {
            self.end_joins(|token| token.created_by == *name, changes);
        }
        if let Some(account) = self.access.accounts.get_mut(name)
            && account.view != view
        {
            account.view = view.clone();
            changes.accounts.insert(name.clone());
        }
        changes.say(format!("{}; before: {before}", standing(&view)));
        Ok(view)
    }

    /// Gives an account the token with `token_hash` in place of the one it had. Machines can no longer join with what it
    /// made: whoever stole the token may have made some of them.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn rotate_account(
        &mut self,
        name: &AccountName,
        token_hash: SecretHash,
        now: Now,
        changes: &mut Changes,
    ) -> Result<AccountView, ApiError> {
        let account = self.access.accounts.get_mut(name).ok_or_else(|| no_account(name))?;
        account.token_hash = token_hash;
        account.view.rotated_at = Some(now.wall);
        changes.accounts.insert(name.clone());
        let view = account.view.clone();
        let ended = self.end_joins(|token| token.created_by == *name, changes);
        changes.say(format!("a new token; {ended} bootstrap tokens of the account end"));
        Ok(view)
    }

    /// Deletes an account, and with it the bootstrap tokens that it made.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::Conflict`] when nobody would be left who manages accounts.
    pub fn delete_account(&mut self, name: &AccountName, changes: &mut Changes) -> Result<(), ApiError> {
        let account = self.access.accounts.get(name).ok_or_else(|| no_account(name))?;
        if is_lasting_admin(&account.view) && !self.access.has_other_admin(name) {
            return Err(last_admin(name, "cannot be deleted"));
        }
        let before = standing(&account.view);
        self.access.accounts.remove(name);
        changes.accounts.insert(name.clone());
        let ended = self.end_joins(|token| token.created_by == *name, changes);
        changes.say(format!("it had {before}; {ended} bootstrap tokens of the account end"));
        Ok(())
    }

    /// Sees to it that `name` exists, has every role and no end, and opens with the token that has `token_hash`: how the
    /// operator of the controller's machine comes in, whatever became of the accounts. Changes nothing when all is so.
    pub fn restore_admin(&mut self, name: &AccountName, token_hash: SecretHash, now: Now, changes: &mut Changes) {
        let old = self.access.accounts.get(name);
        let rotated_at = match old {
            Some(old) if old.token_hash != token_hash => Some(now.wall),
            Some(old) => old.view.rotated_at,
            None => None,
        };
        let created_at = old.map_or(now.wall, |old| old.view.created_at);
        let view = AccountView {
            name: name.clone(),
            roles: Roles::all(),
            created_at,
            rotated_at,
            expires_at: None,
            ssh_keys: Vec::new(),
        };
        let account = Account { view, token_hash };
        if old != Some(&account) {
            let before = old.map_or_else(|| "there was none".to_owned(), |old| standing(&old.view));
            let token = match old {
                Some(old) if old.token_hash == token_hash => "the token stays",
                _ => "a new token",
            };
            changes.say(format!("{}, {token}; before: {before}", standing(&account.view)));
            self.access.accounts.insert(name.clone(), account);
            changes.accounts.insert(name.clone());
        }
    }
}

/// Whether `token` may be chosen by hand.
///
/// # Errors
/// [`ErrorCode::Invalid`].
pub fn check_token(token: &Secret) -> Result<(), ApiError> {
    let (text, refuse) = (token.expose(), |what: String| Err(ApiError::new(ErrorCode::Invalid, what)));
    let len = text.len();
    if !(MIN_TOKEN_LEN..=MAX_TOKEN_LEN).contains(&len) {
        return refuse(format!(
            "the token has {len} characters; {MIN_TOKEN_LEN} to {MAX_TOKEN_LEN} are needed: give none, and a good one is made"
        ));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse(
            "the token holds blanks or characters outside of ASCII; give none, and a good one is made".into(),
        );
    }
    Ok(())
}

/// What an account may do and for how long, for the audit trail.
fn standing(view: &AccountView) -> String {
    let end = view.expires_at.map_or_else(|| "no end".to_owned(), |end| format!("end {end}"));
    format!("roles {}, {end}", view.roles)
}

/// A role that is not known here cannot be given: nobody could say what it allows.
fn check_roles(roles: &Roles) -> Result<(), ApiError> {
    if !roles.has(Role::Unknown) {
        return Ok(());
    }
    let known: Vec<&str> = Role::ALL.iter().map(|role| role.as_str()).collect();
    let what = format!("one of the roles is none that this controller knows; it knows {}", known.join(", "));
    Err(ApiError::new(ErrorCode::Invalid, what))
}

fn check_ssh_keys(keys: &[SshKey]) -> Result<(), ApiError> {
    if keys.len() > MAX_SSH_KEYS {
        let what = format!("an account has at most {MAX_SSH_KEYS} SSH keys, not {}", keys.len());
        return Err(ApiError::new(ErrorCode::LimitExceeded, what));
    }
    Ok(())
}

fn check_end(end: Timestamp, now: Now) -> Result<(), ApiError> {
    if end > now.wall {
        return Ok(());
    }
    let what = format!("{end} is over already (it is {}); give a time to come, or delete the account", now.wall);
    Err(ApiError::new(ErrorCode::Invalid, what))
}

fn is_lasting_admin(view: &AccountView) -> bool {
    view.roles.has(Role::AdminWrite) && view.expires_at.is_none()
}

fn no_account(name: &AccountName) -> ApiError {
    let hint = "`orchard list service-accounts` shows those there are";
    ApiError::new(ErrorCode::NotFound, format!("there is no service account named {name}; {hint}"))
}

fn last_admin(name: &AccountName, cannot: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!(
            "{name} is the only service account that has {} and no end, so it {cannot}: nobody could manage accounts \
             any more; make another one first",
            Role::AdminWrite
        ),
    )
}
