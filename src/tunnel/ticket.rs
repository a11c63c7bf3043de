//! Tickets: each stands for one stream to one port of one copy of a VM, or of a worker's host, for a short time, once. Pure; the
//! controller holds the store, issues on `connect.open` and `connect.host`, and redeems when the relay asks.
//!
//! Only the SHA-256 of a ticket is kept, and looked up: a copy of the store opens nothing, and the time a look-up takes
//! says nothing about the tickets in it.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::{AccountName, CopyId, Timestamp, VmName, WorkerName};

/// How long a ticket is good for: long enough for a slow dial to the relay, short enough to be worth no theft.
pub const TICKET_TTL: Duration = Duration::from_secs(30);

/// How many tickets may be outstanding: 2,000 new sessions a second over their whole time, some 15 MB.
pub const MAX_TICKETS: usize = 60_000;

/// How many of them one account may have: each is used at once by whoever means it, and nobody takes the others' share.
pub const MAX_TICKETS_PER_ACCOUNT: usize = 512;

/// What a ticket stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who asked.
    pub account: AccountName,
    /// What it leads to.
    pub target: Target,
    /// By way of which worker: where the copy runs, or whose host it is.
    pub worker: WorkerName,
    /// TCP port there; of a VM also [`EXEC_PORT`](super::header::EXEC_PORT).
    pub port: u16,
    /// Since when the account had had its token then.
    pub since: Option<Timestamp>,
}

impl Grant {
    /// What it leads to, for logs and records: a VM by its name, a host as `worker/NAME`.
    pub fn place(&self) -> String {
        match &self.target {
            Target::Vm { name, .. } => name.to_string(),
            Target::Host => format!("worker/{}", self.worker),
        }
    }
}

/// What a stream leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A guest.
    Vm {
        /// The VM, by the name it was asked for.
        name: VmName,
        /// Which copy of it.
        copy: CopyId,
    },
    /// The worker's own machine, at its loopback address.
    Host,
}

impl Target {
    /// Of which kind it is.
    pub fn kind(&self) -> TargetKind {
        match self {
            Target::Vm { .. } => TargetKind::Vm,
            Target::Host => TargetKind::Host,
        }
    }
}

/// Kinds of targets: what a right to connect is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetKind {
    /// Guests.
    Vm,
    /// Workers' own machines.
    Host,
}

/// Why a ticket is not issued or not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Too many are outstanding.
    #[error("{0} tunnel tickets are outstanding, which is the limit; try again in a few seconds")]
    Full(usize),
    /// Too many of this account are outstanding.
    #[error(
        "this account has {0} tunnel tickets that it has not used, which is the limit; use them, or try again in a few seconds"
    )]
    TooMany(usize),
    /// This very secret is outstanding already: the caller's randomness is broken.
    #[error("this tunnel ticket was issued already")]
    Duplicate,
    /// Never issued, or used already.
    #[error("the tunnel ticket is unknown or was used already; each opens one stream, ask for a new one")]
    Unknown,
    /// Its time is over.
    #[error("the tunnel ticket has expired; ask for a new one")]
    Expired,
}

impl From<TicketError> for ApiError {
    fn from(error: TicketError) -> Self {
        let code = match error {
            TicketError::Full(_) | TicketError::TooMany(_) => ErrorCode::LimitExceeded,
            TicketError::Duplicate => ErrorCode::Internal,
            TicketError::Unknown | TicketError::Expired => ErrorCode::Unauthenticated,
        };
        ApiError::new(code, error.to_string())
    }
}

type Hash = [u8; 32];

/// The outstanding tickets. All times are monotonic, from the same origin.
#[derive(Debug)]
pub struct Tickets {
    limit: usize,
    grants: BTreeMap<Hash, (Duration, Grant)>,
    /// The same tickets in order of expiry.
    expiries: BTreeMap<(Duration, Hash), ()>,
    /// How many each account has.
    held: BTreeMap<AccountName, usize>,
}

impl Default for Tickets {
    fn default() -> Self {
        Self::new(MAX_TICKETS)
    }
}

impl Tickets {
    /// A store for at most `limit` tickets.
    pub fn new(limit: usize) -> Self {
        Self { limit, grants: BTreeMap::new(), expiries: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// Makes `secret` stand for `grant` until `now + ttl`. Expired tickets make room, the oldest first.
    ///
    /// # Errors
    /// [`TicketError::Full`] when all that are outstanding are still good, [`TicketError::TooMany`] when the account has its
    /// share, [`TicketError::Duplicate`].
    pub fn issue(&mut self, secret: &Secret, grant: Grant, now: Duration, ttl: Duration) -> Result<(), TicketError> {
        let hash = hash(secret.expose());
        let held = loop {
            let held = self.held.get(&grant.account).copied().unwrap_or(0);
            let full = if self.grants.len() >= self.limit {
                TicketError::Full(self.limit)
            } else if held >= MAX_TICKETS_PER_ACCOUNT {
                TicketError::TooMany(held)
            } else {
                break held;
            };
            let oldest = self.expiries.first_key_value().map(|(key, ())| *key);
            let Some((expiry, expired)) = oldest.filter(|(expiry, _)| *expiry <= now) else { return Err(full) };
            self.expiries.remove(&(expiry, expired));
            self.take(&expired);
        };
        if self.grants.contains_key(&hash) {
            return Err(TicketError::Duplicate);
        }
        let expiry = now.saturating_add(ttl);
        self.expiries.insert((expiry, hash), ());
        self.held.insert(grant.account.clone(), held + 1);
        self.grants.insert(hash, (expiry, grant));
        Ok(())
    }

    fn take(&mut self, hash: &Hash) -> Option<(Duration, Grant)> {
        let (expiry, grant) = self.grants.remove(hash)?;
        if let Some(held) = self.held.get_mut(&grant.account) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.held.remove(&grant.account);
            }
        }
        Some((expiry, grant))
    }

    /// Takes the ticket out of the store: whatever the answer, it opens nothing a second time.
    ///
    /// # Errors
    /// [`TicketError::Unknown`] or [`TicketError::Expired`].
    pub fn redeem(&mut self, secret: &str, now: Duration) -> Result<Grant, TicketError> {
        let hash = hash(secret);
        let (expiry, grant) = self.take(&hash).ok_or(TicketError::Unknown)?;
        self.expiries.remove(&(expiry, hash));
        if expiry <= now {
            return Err(TicketError::Expired);
        }
        Ok(grant)
    }

    /// Takes back every ticket of `account`: it has lost its right to them, or another token.
    pub fn revoke(&mut self, account: &AccountName) {
        self.grants.retain(|hash, (expiry, grant)| {
            let stays = grant.account != *account;
            if !stays {
                self.expiries.remove(&(*expiry, *hash));
            }
            stays
        });
        self.held.remove(account);
    }

    /// How many are kept, expired ones included.
    pub fn len(&self) -> usize {
        self.grants.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }
}

fn hash(secret: &str) -> Hash {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::VmUid;

    fn grant(port: u16) -> Grant {
        Grant {
            account: "alice".parse().unwrap(),
            target: Target::Vm {
                name: "vm-1".parse().unwrap(),
                copy: CopyId { uid: VmUid(uuid::Uuid::nil()), attempt: 0 },
            },
            worker: "w1".parse().unwrap(),
            port,
            since: None,
        }
    }

    fn secret(number: u8) -> Secret {
        Secret::new(format!("ticket-{number}"))
    }

    #[test]
    fn a_ticket_opens_once() {
        let mut tickets = Tickets::default();
        let ttl = Duration::from_secs(30);
        tickets.issue(&secret(1), grant(22), Duration::ZERO, ttl).unwrap();
        assert_eq!(tickets.redeem("ticket-2", Duration::ZERO), Err(TicketError::Unknown));
        assert_eq!(tickets.redeem("ticket-1", Duration::ZERO), Ok(grant(22)));
        assert_eq!(tickets.redeem("ticket-1", Duration::ZERO), Err(TicketError::Unknown));
        assert!(tickets.is_empty());
    }

    #[test]
    fn what_is_taken_back_opens_nothing_and_leaves_others_alone() {
        let mut tickets = Tickets::default();
        let of = |name: &str| Grant { account: name.parse().unwrap(), ..grant(22) };
        for (number, name) in [(1, "ann"), (2, "bob"), (3, "ann")] {
            tickets.issue(&secret(number), of(name), Duration::ZERO, TICKET_TTL).unwrap();
        }
        tickets.revoke(&"ann".parse().unwrap());
        assert_eq!((tickets.len(), tickets.expiries.len()), (1, 1));
        assert_eq!(tickets.redeem("ticket-1", Duration::ZERO), Err(TicketError::Unknown));
        assert_eq!(tickets.redeem("ticket-2", Duration::ZERO), Ok(of("bob")));
    }

    #[test]
    fn one_account_cannot_take_the_others_share() {
        let mut tickets = Tickets::default();
        let of = |name: &str| Grant { account: name.parse().unwrap(), ..grant(22) };
        let named = |n: usize| Secret::new(format!("greedy-{n}"));
        for n in 0..MAX_TICKETS_PER_ACCOUNT {
            tickets.issue(&named(n), of("greedy"), Duration::ZERO, TICKET_TTL).unwrap();
        }
        let more = tickets.issue(&secret(1), of("greedy"), Duration::ZERO, TICKET_TTL);
        assert_eq!(more, Err(TicketError::TooMany(MAX_TICKETS_PER_ACCOUNT)));
        tickets.issue(&secret(1), of("modest"), Duration::ZERO, TICKET_TTL).unwrap();
        tickets.redeem(named(0).expose(), Duration::ZERO).unwrap();
        tickets.issue(&secret(2), of("greedy"), Duration::ZERO, TICKET_TTL).unwrap();
        tickets.issue(&secret(3), of("greedy"), TICKET_TTL, TICKET_TTL).unwrap();
        tickets.revoke(&"greedy".parse().unwrap());
        tickets.issue(&secret(4), of("greedy"), Duration::ZERO, TICKET_TTL).unwrap();
    }

    #[test]
    fn the_store_does_not_hold_the_secret() {
        let mut tickets = Tickets::default();
        tickets.issue(&secret(1), grant(22), Duration::ZERO, TICKET_TTL).unwrap();
        assert!(!format!("{tickets:?}").contains("ticket-1"));
    }

    /// What the store must do, said in the plainest way: a list of (number, expiry), oldest first.
    #[derive(Default)]
    struct Model(Vec<(u8, u64)>);

    impl Model {
        fn issue(&mut self, number: u8, now: u64, ttl: u64, limit: usize) -> Result<(), TicketError> {
            if self.0.len() >= limit {
                let oldest = self.0.iter().enumerate().min_by_key(|(_, (_, expiry))| *expiry).unwrap();
                if oldest.1.1 > now {
                    return Err(TicketError::Full(limit));
                }
                // Among equals the store may drop any: the test below uses distinct expiries.
                self.0.remove(oldest.0);
            }
            if self.0.iter().any(|(n, _)| *n == number) {
                return Err(TicketError::Duplicate);
            }
            self.0.push((number, now + ttl));
            Ok(())
        }

        fn redeem(&mut self, number: u8, now: u64) -> Result<Grant, TicketError> {
            let place = self.0.iter().position(|(n, _)| *n == number).ok_or(TicketError::Unknown)?;
            let (_, expiry) = self.0.remove(place);
            if expiry <= now { Err(TicketError::Expired) } else { Ok(grant(number.into())) }
        }
    }

    proptest! {
        #[test]
        fn the_store_behaves_like_the_model(steps in prop::collection::vec((any::<bool>(), 0u8..12, 0u64..20, 1u64..60), 1..200)) {
            const LIMIT: usize = 5;
            let (mut tickets, mut model, mut now) = (Tickets::new(LIMIT), Model::default(), 0u64);
            for (step, (issue, number, pause, ttl)) in steps.into_iter().enumerate() {
                now += pause * 1000;
                // The step's number in the last digits makes every expiry distinct.
                let ttl = ttl * 1000 + u64::try_from(step).unwrap();
                let at = Duration::from_micros(now);
                if issue {
                    let got = tickets.issue(&secret(number), grant(number.into()), at, Duration::from_micros(ttl));
                    prop_assert_eq!(got, model.issue(number, now, ttl, LIMIT));
                } else {
                    prop_assert_eq!(tickets.redeem(secret(number).expose(), at), model.redeem(number, now));
                }
                prop_assert_eq!(tickets.len(), model.0.len());
                prop_assert_eq!(tickets.expiries.len(), model.0.len());
                prop_assert!(tickets.len() <= LIMIT);
            }
        }
    }
}
