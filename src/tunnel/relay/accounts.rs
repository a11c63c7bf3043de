//! Whose streams and connections are open: bounds them per account, and cuts them when the account loses its right to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::AccountName;
use crate::model::error::{ApiError, ErrorCode};
use crate::tunnel::reason::Reason;

/// The open streams by account. An account without any is not in it.
pub(super) struct Accounts {
    limit: usize,
    most_connections: usize,
    most_of_all: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    open: HashMap<AccountName, HashMap<u64, oneshot::Sender<Reason>>>,
    connections: HashMap<AccountName, usize>,
    /// All of those together.
    seated: usize,
}

/// The place of a connection that an account has proven itself on; given back when it is dropped.
pub(super) struct Seat {
    accounts: Arc<Accounts>,
    account: AccountName,
}

/// One stream's place; given back when it is dropped.
pub(super) struct Entry<'a> {
    accounts: &'a Accounts,
    account: AccountName,
    number: u64,
    cut: oneshot::Receiver<Reason>,
}

impl Accounts {
    /// At most `limit` streams and `most_connections` connections an account, and `most_of_all` connections of all.
    pub(super) fn new(limit: usize, most_connections: usize, most_of_all: usize) -> Self {
        Self { limit, most_connections, most_of_all, state: Mutex::default() }
    }

    /// A place for one more connection of `account`.
    ///
    /// # Errors
    /// [`ErrorCode::LimitExceeded`].
    pub(super) fn sit(self: &Arc<Self>, account: &AccountName) -> Result<Seat, ApiError> {
        let mut state = self.lock();
        let count = state.connections.get(account).copied().unwrap_or(0);
        if count >= self.most_connections {
            return Err(ApiError::new(
                ErrorCode::LimitExceeded,
                format!(
                    "account {account} is connected to the tunnel {count} times, which is the limit; end some first"
                ),
            ));
        }
        if state.seated >= self.most_of_all {
            let what = "too many are connected to the tunnel; try again in a moment";
            return Err(ApiError::new(ErrorCode::LimitExceeded, what));
        }
        state.seated += 1;
        state.connections.insert(account.clone(), count + 1);
        Ok(Seat { accounts: self.clone(), account: account.clone() })
    }

    /// A place for one more stream of `account`.
    ///
    /// # Errors
    /// [`ErrorCode::LimitExceeded`].
    pub(super) fn enter(&self, account: &AccountName) -> Result<Entry<'_>, ApiError> {
        let mut state = self.lock();
        let open = state.open.get(account).map_or(0, HashMap::len);
        if open >= self.limit {
            return Err(ApiError::new(
                ErrorCode::LimitExceeded,
                format!("account {account} has {open} connections into VMs open, which is the limit; close some first"),
            ));
        }
        let number = state.next;
        state.next += 1;
        let (sender, cut) = oneshot::channel();
        state.open.entry(account.clone()).or_default().insert(number, sender);
        Ok(Entry { accounts: self, account: account.clone(), number, cut })
    }

    /// Has every stream of `account` end; says how many there were.
    pub(super) fn cut(&self, account: &AccountName, reason: Reason) -> usize {
        let open = self.lock().open.remove(account).unwrap_or_default();
        let count = open.len();
        for (_, stream) in open {
            // One that ends at this moment needs no telling.
            let _ = stream.send(reason);
        }
        count
    }

    pub(super) fn count(&self, account: &AccountName) -> usize {
        self.lock().open.get(account).map_or(0, HashMap::len)
    }

    pub(super) fn names(&self) -> Vec<AccountName> {
        self.lock().open.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry<'_> {
    /// Returns when the stream must end; never otherwise. Cancel safe.
    pub(super) async fn cut(&mut self) -> Reason {
        // The sender is dropped unused only with the whole relay.
        (&mut self.cut).await.unwrap_or(Reason::ShuttingDown)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.accounts.lock();
        state.seated = state.seated.saturating_sub(1);
        if let Some(count) = state.connections.get_mut(&self.account) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.connections.remove(&self.account);
            }
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut state = self.accounts.lock();
        if let Some(open) = state.open.get_mut(&self.account) {
            open.remove(&self.number);
            if open.is_empty() {
                state.open.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_account_at_its_limit_is_refused_and_another_is_not() {
        let accounts = Accounts::new(2, 9, 9);
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let (one, two) = (accounts.enter(&ann).unwrap(), accounts.enter(&ann).unwrap());
        assert_eq!(accounts.enter(&ann).err().unwrap().code, ErrorCode::LimitExceeded);
        let mut other = accounts.enter(&bob).unwrap();
        drop(one);
        let mut three = accounts.enter(&ann).unwrap();
        assert_eq!(accounts.cut(&ann, Reason::Revoked), 2);
        assert_eq!(three.cut().await, Reason::Revoked);
        let four = accounts.enter(&ann).unwrap();
        drop((two, three));
        assert_eq!((accounts.count(&ann), accounts.count(&bob)), (1, 1));
        let still = tokio::time::timeout(std::time::Duration::from_millis(1), other.cut()).await;
        assert!(still.is_err(), "nobody cut it");
        drop((four, other));
        assert!(accounts.lock().open.is_empty());
    }

    #[test]
    fn an_account_has_so_many_connections() {
        let accounts = Arc::new(Accounts::new(9, 2, 4));
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let (one, two) = (accounts.sit(&ann).unwrap(), accounts.sit(&ann).unwrap());
        assert_eq!(accounts.sit(&ann).err().unwrap().code, ErrorCode::LimitExceeded);
        let other = (accounts.sit(&bob).unwrap(), accounts.sit(&bob).unwrap());
        let crowd = accounts.sit(&"carl".parse().unwrap()).err().unwrap();
        assert_eq!(crowd.code, ErrorCode::LimitExceeded, "the rest is for workers");
        drop(one);
        let three = accounts.sit(&ann).unwrap();
        drop((two, three, other));
        assert_eq!(accounts.lock().seated, 0);
        assert!(accounts.lock().connections.is_empty());
    }
}
