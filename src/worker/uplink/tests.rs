//! What is told, in which order, and when it counts as told.

use futures_util::FutureExt as _;

use super::*;
use crate::model::VmUid;

#[tokio::test]
async fn a_copy_that_is_gone_is_forgotten_once_the_controller_knows() {
    let uplink = Uplink::unheard().await;
    let id = CopyId { uid: VmUid(uuid::Uuid::nil()), attempt: 0 };
    let preparing = Observation::Preparing { message: "x".into() };
    uplink.observe(id, preparing.clone());
    uplink.observe(id, Observation::Absent);
    uplink.settle(id, 0, &preparing);
    assert!(uplink.tells(id, &Observation::Absent), "only an older observation was acknowledged");
    uplink.settle(id, 0, &Observation::Absent);
    assert!(uplink.copies().is_empty());
}

#[tokio::test]
async fn all_is_told_once_every_copy_was_acknowledged_in_this_session() {
    let uplink = Uplink::unheard().await;
    let copy = |n| CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 0 };
    let (now, before) = (SessionId(uuid::Uuid::from_u128(1)), SessionId(uuid::Uuid::nil()));
    let stray = Observation::Stray { name: "a".into(), running: Some(true) };
    let preparing = Observation::Preparing { message: "x".into() };
    let (wished, unwished) = ([copy(1)].into(), [copy(2)].into());
    uplink.has_found(Inventory { session: now, wished, unwished });
    uplink.observe(copy(1), preparing.clone());
    uplink.observe(copy(2), preparing.clone());
    uplink.settle(copy(1), 0, &preparing);
    uplink.settle(copy(2), 0, &preparing);
    assert!(!uplink.has_told(now), "nothing is served");
    uplink.shared.session.send_replace(Some(now));
    assert!(!uplink.has_told(now), "that it is a stray is still to come");
    uplink.observe(copy(2), stray.clone());
    assert!(!uplink.has_told(now), "nobody has acknowledged it");
    assert_eq!(uplink.digest(now), None);
    uplink.settle(copy(2), 0, &stray);
    assert!(uplink.has_told(now));
    let mut digest = inventory::Inventory::default();
    digest.add(copy(1), 0, State::Coming);
    assert_eq!(uplink.digest(now), Some(digest.digest()), "what nobody wishes for is left out");
    uplink.tell_all();
    assert!(!uplink.has_told(now), "it is to be told again");
    uplink.settle(copy(1), 0, &preparing);
    uplink.settle(copy(2), 0, &stray);
    uplink.shared.session.send_replace(Some(before));
    assert!(!uplink.has_told(before), "by the wishes of another session");
}

#[tokio::test(start_paused = true)]
async fn that_a_copy_has_ended_is_told_after_what_it_said_but_not_never() {
    let uplink = Uplink::unheard().await;
    let copy = |n| CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 0 };
    let failed = || Observation::Failed { message: "x".into(), disk: true, halted: false };
    let logs = [uplink.log_to_come((copy(1), 4)), uplink.log_to_come((copy(2), 3))];
    for n in [1, 2] {
        uplink.tell(copy(n), 4, failed());
    }
    let mut waiting = BTreeMap::new();
    let mut due =
        || -> Vec<CopyId> { uplink.due(&BTreeSet::new(), &mut waiting).into_iter().map(|(id, ..)| id).collect() };
    assert_eq!(due(), [copy(2)], "lines of another boot are no reason to wait");
    tokio::time::advance(LOG_FIRST).await;
    assert_eq!(due(), [copy(1), copy(2)]);
    uplink.tell(copy(1), 4, Observation::Fenced { message: "x".into() });
    assert_eq!(due(), [copy(1), copy(2)]);
    uplink.tell(copy(1), 4, failed());
    assert_eq!(due(), [copy(2)]);
    drop(logs);
    assert_eq!(due(), [copy(1), copy(2)]);
    assert!(waiting.is_empty(), "nobody waits any more");
}

#[test]
fn what_an_older_controller_cannot_read_is_not_sent_for_ever() {
    assert!(is_final(ErrorCode::Invalid) && is_final(ErrorCode::Conflict));
    for code in [ErrorCode::Unavailable, ErrorCode::Timeout, ErrorCode::Internal, ErrorCode::Unauthenticated] {
        assert!(!is_final(code), "{code:?}");
    }
}

#[tokio::test]
async fn lines_wait_until_it_is_told_that_their_vm_runs() {
    let uplink = Uplink::unheard().await;
    let (id, boot) = (CopyId { uid: VmUid(uuid::Uuid::from_u128(1)), attempt: 0 }, 3);
    let waits = || uplink.told_that_it_runs((id, boot)).now_or_never().is_none();
    assert!(!waits(), "lines that a worker before this one left wait for nothing");
    let running = |message: &str| {
        let message = message.to_owned();
        Observation::Running { message, ready: false, generation: 0, image_fqn: None }
    };
    uplink.tell(id, boot, running("booting"));
    assert!(waits());
    uplink.settle(id, boot - 1, &running("booting"));
    assert!(waits(), "that was told of another boot");
    uplink.tell(id, boot, running("waiting for SSH"));
    uplink.settle(id, boot, &running("booting"));
    assert!(!waits(), "what is told since says no less");
    uplink.tell(id, boot + 1, running("booting"));
    let mut next = Box::pin(uplink.told_that_it_runs((id, boot + 1)));
    assert!((&mut next).now_or_never().is_none());
    uplink.tell(id, boot + 1, Observation::Failed { message: "x".into(), disk: true, halted: false });
    assert!(next.now_or_never().is_some(), "its end waits for the lines");
}
