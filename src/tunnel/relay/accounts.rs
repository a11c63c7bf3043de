//! Whose streams and connections are open, and where the streams lead: bounds them per account and per VM, and cuts them when the
//! account loses its right to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::model::error::{ApiError, ErrorCode};
use crate::model::{AccountName, VmUid, WorkerName};
use crate::tunnel::reason::Reason;
use crate::tunnel::ticket::{Grant, Target, TargetKind};

/// The open streams by account. An account without any is not in it.
pub(super) struct Accounts {
    most: Most,
    state: Mutex<State>,
}

/// How many there may be at once.
pub(super) struct Most {
    /// Streams of one account.
    pub(super) streams: usize,
    /// Streams into one VM, or to one host, of all accounts.
    pub(super) into_target: usize,
    /// Connections of one account.
    pub(super) connections: usize,
    /// Connections of all accounts.
    pub(super) connections_of_all: usize,
}

#[derive(Default)]
struct State {
    next: u64,
    open: HashMap<AccountName, HashMap<u64, Open>>,
    /// How many of them lead where.
    targets: HashMap<Place, usize>,
    connections: HashMap<AccountName, usize>,
    /// All of those together.
    seated: usize,
}

/// An open stream.
struct Open {
    to: TargetKind,
    cut: oneshot::Sender<Reason>,
}

/// Where streams lead: to a VM, whichever start of it, or to a worker's host.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place {
    Vm(VmUid),
    Host(WorkerName),
}

impl Place {
    fn of(grant: &Grant) -> Self {
        match &grant.target {
            Target::Vm { copy, .. } => Self::Vm(copy.uid),
            Target::Host => Self::Host(grant.worker.clone()),
        }
    }
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
    place: Place,
    number: u64,
    cut: oneshot::Receiver<Reason>,
}

impl Accounts {
    pub(super) fn new(most: Most) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// A place for one more connection of `account`.
    ///
    /// # Errors
    /// [`ErrorCode::LimitExceeded`].
    pub(super) fn sit(self: &Arc<Self>, account: &AccountName) -> Result<Seat, ApiError> {
        let mut state = self.lock();
        let count = state.connections.get(account).copied().unwrap_or(0);
        if count >= self.most.connections {
            return Err(ApiError::new(
                ErrorCode::LimitExceeded,
                format!(
                    "account {account} is connected to the tunnel {count} times, which is the limit; end some first"
                ),
            ));
        }
        if state.seated >= self.most.connections_of_all {
            let what = "too many are connected to the tunnel; try again in a moment";
            return Err(ApiError::new(ErrorCode::LimitExceeded, what));
        }
        state.seated += 1;
        state.connections.insert(account.clone(), count + 1);
        Ok(Seat { accounts: self.clone(), account: account.clone() })
    }

    /// A place for one more stream, of the account of `grant` and to its target.
    ///
    /// # Errors
    /// [`ErrorCode::LimitExceeded`].
    pub(super) fn enter(&self, grant: &Grant) -> Result<Entry<'_>, ApiError> {
        let (account, place) = (&grant.account, Place::of(grant));
        let mut state = self.lock();
        let open = state.open.get(account).map_or(0, HashMap::len);
        if open >= self.most.streams {
            return Err(ApiError::new(
                ErrorCode::LimitExceeded,
                format!("account {account} has {open} connections into VMs open, which is the limit; close some first"),
            ));
        }
        let into = state.targets.get(&place).copied().unwrap_or(0);
        if into >= self.most.into_target {
            let what = match &grant.target {
                Target::Vm { name, .. } => format!("VM {name}"),
                Target::Host => format!("the host of worker {}", grant.worker),
            };
            return Err(ApiError::new(
                ErrorCode::LimitExceeded,
                format!("{into} connections to {what} are open, of all accounts, which is the limit; close some first"),
            ));
        }
        let number = state.next;
        state.next += 1;
        let (cut, told) = oneshot::channel();
        let to = grant.target.kind();
        state.open.entry(account.clone()).or_default().insert(number, Open { to, cut });
        state.targets.insert(place.clone(), into + 1);
        Ok(Entry { accounts: self, account: account.clone(), place, number, cut: told })
    }

    /// Has every stream of `account` end, or those to targets of one kind; says how many there were.
    pub(super) fn cut(&self, account: &AccountName, to: Option<TargetKind>, reason: Reason) -> usize {
        let mut state = self.lock();
        let Some(open) = state.open.get_mut(account) else { return 0 };
        let cut: Vec<Open> =
            open.extract_if(|_, stream| to.is_none_or(|to| stream.to == to)).map(|(_, stream)| stream).collect();
        if open.is_empty() {
            state.open.remove(account);
        }
        drop(state);
        let count = cut.len();
        for stream in cut {
            // One that ends at this moment needs no telling.
            let _ = stream.cut.send(reason);
        }
        count
    }

    pub(super) fn count(&self, account: &AccountName) -> usize {
        self.lock().open.get(account).map_or(0, HashMap::len)
    }

    /// The accounts with open streams, each with the kinds of targets that these lead to.
    pub(super) fn held(&self) -> Vec<(AccountName, TargetKind)> {
        let state = self.lock();
        let kinds = [TargetKind::Vm, TargetKind::Host];
        let held = state.open.iter().flat_map(|(account, open)| {
            let held = kinds.into_iter().filter(|kind| open.values().any(|stream| stream.to == *kind));
            held.map(|kind| (account.clone(), kind))
        });
        held.collect()
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
        if let Some(count) = state.targets.get_mut(&self.place) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.targets.remove(&self.place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CopyId;

    const MANY: Most = Most { streams: 9, into_target: 9, connections: 9, connections_of_all: 9 };

    /// Of `account` to the VM `number`.
    fn to_vm(account: &str, number: u128) -> Grant {
        let copy = CopyId { uid: VmUid(uuid::Uuid::from_u128(number)), attempt: 0 };
        let target = Target::Vm { name: format!("vm-{number}").parse().unwrap(), copy };
        Grant { account: account.parse().unwrap(), target, worker: "w".parse().unwrap(), port: 22, since: None }
    }

    fn to_host(account: &str, worker: &str) -> Grant {
        Grant { target: Target::Host, worker: worker.parse().unwrap(), ..to_vm(account, 0) }
    }

    #[tokio::test]
    async fn an_account_at_its_limit_is_refused_and_another_is_not() {
        let accounts = Accounts::new(Most { streams: 2, ..MANY });
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        let enter = |account: &AccountName| accounts.enter(&to_vm(account.as_str(), 1));
        let (one, two) = (enter(&ann).unwrap(), enter(&ann).unwrap());
        assert_eq!(enter(&ann).err().unwrap().code, ErrorCode::LimitExceeded);
        let mut other = enter(&bob).unwrap();
        drop(one);
        let mut three = enter(&ann).unwrap();
        assert_eq!(accounts.cut(&ann, None, Reason::Revoked), 2);
        assert_eq!(three.cut().await, Reason::Revoked);
        let four = enter(&ann).unwrap();
        drop((two, three));
        assert_eq!((accounts.count(&ann), accounts.count(&bob)), (1, 1));
        let still = tokio::time::timeout(std::time::Duration::from_millis(1), other.cut()).await;
        assert!(still.is_err(), "nobody cut it");
        drop((four, other));
        assert!(accounts.lock().open.is_empty() && accounts.lock().targets.is_empty());
    }

    #[test]
    fn a_vm_at_its_limit_takes_nobody_in_and_another_does() {
        let accounts = Accounts::new(Most { into_target: 2, ..MANY });
        let (one, two) = (accounts.enter(&to_vm("ann", 1)).unwrap(), accounts.enter(&to_vm("bob", 1)).unwrap());
        for account in ["ann", "carl"] {
            let refused = accounts.enter(&to_vm(account, 1)).err().unwrap();
            assert_eq!(refused.code, ErrorCode::LimitExceeded);
            assert!(refused.message.contains("2 connections to VM vm-1"), "{refused}");
        }
        let others = [to_vm("ann", 2), to_host("ann", "w"), to_host("bob", "w"), to_host("ann", "v")];
        let others: Vec<_> = others.iter().map(|grant| accounts.enter(grant).unwrap()).collect();
        let refused = accounts.enter(&to_host("carl", "w")).err().unwrap();
        assert!(refused.message.contains("the host of worker w"), "{refused}");
        drop(one);
        let three = accounts.enter(&to_vm("ann", 1)).unwrap();
        // Cut is not gone: what is still there counts until it is.
        accounts.cut(&"ann".parse().unwrap(), None, Reason::Revoked);
        assert!(accounts.enter(&to_vm("ann", 1)).is_err());
        drop((two, three, others));
        assert!(accounts.lock().targets.is_empty() && accounts.lock().open.is_empty());
    }

    #[tokio::test]
    async fn streams_to_hosts_are_cut_for_themselves() {
        let accounts = Accounts::new(MANY);
        let ann = "ann".parse().unwrap();
        let (vm, mut host) = (accounts.enter(&to_vm("ann", 1)).unwrap(), accounts.enter(&to_host("ann", "w")).unwrap());
        let mut held = accounts.held();
        held.sort_by_key(|(_, kind)| *kind == TargetKind::Host);
        assert_eq!(held, [(ann, TargetKind::Vm), ("ann".parse().unwrap(), TargetKind::Host)]);
        let ann = "ann".parse().unwrap();
        assert_eq!(accounts.cut(&ann, Some(TargetKind::Host), Reason::Revoked), 1);
        assert_eq!(host.cut().await, Reason::Revoked);
        assert_eq!((accounts.count(&ann), accounts.held().len()), (1, 1));
        drop((vm, host));
        assert!(accounts.held().is_empty());
    }

    #[test]
    fn an_account_has_so_many_connections() {
        let accounts = Arc::new(Accounts::new(Most { connections: 2, connections_of_all: 4, ..MANY }));
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
