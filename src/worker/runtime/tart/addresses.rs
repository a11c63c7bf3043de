//! The guests' addresses: asked of the tool, which may take a minute for it, once for all who want to connect at the same
//! time, and remembered for a while.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::CopyId;

/// For how long an address that was told is taken to be the guest's: leases are renewed with the same one.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What the tool has told last, and when.
type Told = Option<(Result<IpAddr, String>, Instant)>;

/// The addresses of all copies.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<HashMap<CopyId, Arc<tokio::sync::Mutex<Told>>>>);

impl Addresses {
    /// The address of a copy: remembered, or as `ask` tells. Who comes while it is asked gets the same answer, also if it is
    /// that there is none.
    ///
    /// Cancel safe: the next who waits asks.
    ///
    /// # Errors
    /// That of `ask`.
    pub(super) async fn of<F: Future<Output = Result<IpAddr, String>>>(
        &self,
        id: CopyId,
        ask: impl FnOnce() -> F,
    ) -> Result<IpAddr, String> {
        let came = Instant::now();
        let cell = self.all().entry(id).or_default().clone();
        let mut told = cell.lock().await;
        match &*told {
            Some((Ok(address), when)) if when.elapsed() < REMEMBERED => return Ok(*address),
            Some((answer, when)) if *when > came => return answer.clone(),
            _ => {}
        }
        let answer = ask().await;
        *told = Some((answer.clone(), Instant::now()));
        answer
    }

    /// Has the next ask again: nothing answers there, or it was started anew.
    pub(super) fn forget(&self, id: CopyId) {
        self.all().remove(&id);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<CopyId, Arc<tokio::sync::Mutex<Told>>>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn id() -> CopyId {
        CopyId { uid: crate::model::VmUid(uuid::Uuid::from_u128(1)), attempt: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_share_one_answer() {
        let (addresses, asked) = (Addresses::default(), AtomicUsize::new(0));
        let ask = |answer: Result<IpAddr, String>| {
            let asked = &asked;
            move || async move {
                asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(60)).await;
                answer
            }
        };
        let began = Instant::now();
        let none = || ask(Err("none".to_owned()));
        let answers = tokio::join!(addresses.of(id(), none()), addresses.of(id(), none()), addresses.of(id(), none()));
        assert!(answers.0.is_err() && answers.1.is_err() && answers.2.is_err());
        assert_eq!((asked.load(Ordering::SeqCst), began.elapsed().as_secs()), (1, 60));
        // That there was none is no reason not to ask again.
        assert_eq!(addresses.of(id(), ask(Ok(ADDRESS))).await, Ok(ADDRESS));
        assert_eq!(addresses.of(id(), none()).await, Ok(ADDRESS));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        addresses.forget(id());
        assert!(addresses.of(id(), none()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_asked_for_again_after_a_while() {
        let addresses = Addresses::default();
        let ask = || std::future::ready(Ok(ADDRESS));
        assert!(addresses.of(id(), ask).await.is_ok());
        tokio::time::advance(REMEMBERED).await;
        assert!(addresses.of(id(), || std::future::ready(Err(String::new()))).await.is_err());
    }
}
