//! Keys of deleted VMs, of which so many are remembered. Pure; `once` says what they are for.
//!
//! When there are too many, whoever has the most of them loses the oldest of his: nobody who uses up keys without end pushes
//! out those of others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::once::{Spent, SpentKey};
use crate::controller::shares::Shares;
use crate::model::{AccountName, Timestamp};

/// Keys that are remembered: 15 MB, and a day of a VM every second.
const MAX_SPENT: usize = 100_000;

/// Keys of one account, oldest first.
type Keys = BTreeSet<(Timestamp, String)>;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct SpentKeys {
    records: BTreeMap<SpentKey, Spent>,
    by_age: BTreeSet<(Timestamp, SpentKey)>,
    /// Each account's own.
    of_account: BTreeMap<Option<AccountName>, Keys>,
    /// How many each account has.
    shares: Shares<Option<AccountName>>,
    most: usize,
}

impl SpentKeys {
    pub(super) fn load(records: Vec<Spent>) -> Self {
        Self::at_most(MAX_SPENT, records)
    }

    pub(super) fn at_most(most: usize, records: Vec<Spent>) -> Self {
        let mut keys = Self {
            records: BTreeMap::new(),
            by_age: BTreeSet::new(),
            of_account: BTreeMap::new(),
            shares: Shares::default(),
            most,
        };
        records.into_iter().for_each(|record| keys.insert(record));
        keys
    }

    pub(super) fn get(&self, id: &SpentKey) -> Option<&Spent> {
        self.records.get(id)
    }

    pub(super) fn insert(&mut self, record: Spent) {
        let id = record.id();
        self.remove(&id);
        self.by_age.insert((record.at, id.clone()));
        self.of_account.entry(id.0.clone()).or_default().insert((record.at, id.1.clone()));
        self.shares.add(id.0.clone());
        self.records.insert(id, record);
    }

    /// Takes out one that is too many: the oldest of whoever has the most.
    pub(super) fn pop_excess(&mut self) -> Option<SpentKey> {
        let account = self.shares.largest().filter(|_| self.records.len() > self.most)?;
        let (_, key) = self.of_account.get(account)?.first()?;
        let id = (account.clone(), key.clone());
        self.remove(&id);
        Some(id)
    }

    /// Takes out one that is older than `age`.
    pub(super) fn pop_older(&mut self, now: Timestamp, age: Duration) -> Option<SpentKey> {
        let (_, id) = self.by_age.first().filter(|(at, _)| at.until(now) > age).cloned()?;
        self.remove(&id);
        Some(id)
    }

    /// All of them.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Spent> {
        self.records.values()
    }

    fn remove(&mut self, id: &SpentKey) {
        if let Some(record) = self.records.remove(id) {
            self.by_age.remove(&(record.at, id.clone()));
            self.shares.remove(record.account.clone());
            if let Some(own) = self.of_account.get_mut(&record.account) {
                own.remove(&(record.at, record.key));
                if own.is_empty() {
                    self.of_account.remove(&record.account);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VmUid;
    use proptest::prelude::*;

    fn spent(account: u8, key: u8, at: i64) -> Spent {
        let account = (account > 0).then(|| format!("a{account}").parse().unwrap());
        let (name, uid) = ("vm".parse().unwrap(), VmUid(uuid::Uuid::nil()));
        Spent { account, key: key.to_string(), name, uid, at: Timestamp::from_millis(at) }
    }

    fn held_by(keys: &SpentKeys, account: u8) -> Vec<String> {
        let of = spent(account, 0, 0).account;
        keys.iter().filter(|record| record.account == of).map(|record| record.key.clone()).collect()
    }

    #[test]
    fn whoever_has_the_most_loses_his_oldest() {
        let mut keys = SpentKeys::at_most(5, vec![spent(1, 0, 0), spent(2, 0, 1)]);
        for n in 0..20 {
            keys.insert(spent(3, n, 10 + i64::from(n)));
            while keys.pop_excess().is_some() {}
        }
        assert_eq!((held_by(&keys, 1), held_by(&keys, 2)), (vec!["0".to_owned()], vec!["0".to_owned()]));
        assert_eq!(held_by(&keys, 3), ["17", "18", "19"]);
    }

    proptest! {
        #[test]
        fn the_books_are_those_of_the_records(
            steps in prop::collection::vec((0..4u8, 0..4u8, 0..8u8, 0..50i64), 0..80),
        ) {
            let mut keys = SpentKeys::at_most(6, Vec::new());
            for (what, account, key, at) in steps {
                if what == 0 {
                    keys.pop_older(Timestamp::from_millis(at), Duration::from_millis(20));
                } else {
                    let id = spent(account, key, at).id();
                    keys.insert(spent(account, key, at));
                    while keys.pop_excess().is_some() {}
                    prop_assert!(keys.get(&id).is_some() || keys.iter().count() == 6);
                }
                let anew = SpentKeys::at_most(6, keys.iter().cloned().collect());
                prop_assert_eq!(&keys.by_age, &anew.by_age);
                prop_assert_eq!(&keys.of_account, &anew.of_account);
                prop_assert_eq!(&keys.shares, &anew.shares);
                prop_assert!(keys.iter().count() <= 6);
                let total = usize::try_from(keys.shares.total()).unwrap();
                prop_assert_eq!(total, keys.iter().count());
            }
        }
    }
}
