//! Unit tests of the synthetic runtime: its states, its levers, its counts.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use super::behaviour::{Behaviour, Delay};
use super::ledger::Ledger;
use super::*;
use crate::model::VmUid;
use crate::model::vm::VmSpec;
use crate::ssh::client::{Session, Stdio};
use crate::ssh::{AcceptAny, ExitStatus, Login, banner};
use crate::worker::runtime::FoundState;

fn copy(number: u128, attempt: u32) -> CopySpec {
    let id = CopyId { uid: VmUid(Uuid::from_u128(number)), attempt };
    CopySpec { id, name: format!("vm-{number}").parse().unwrap(), spec: VmSpec::default(), cpu: 1, memory: 1 }
}

async fn running(runtime: &Synthetic, number: u128) -> CopySpec {
    let copy = copy(number, 0);
    runtime.create(&copy, &Progress::new().0).await.unwrap();
    runtime.start(&copy).await.unwrap();
    copy
}

async fn states(runtime: &Synthetic) -> Vec<FoundState> {
    runtime.list().await.unwrap().into_iter().map(|found| found.state).collect()
}

#[tokio::test(start_paused = true)]
async fn a_copy_passes_through_its_states() {
    let runtime = Synthetic::new();
    let one = copy(1, 0);
    assert!(matches!(runtime.start(&one).await, Err(RuntimeError::NotFound)));
    runtime.create(&one, &Progress::new().0).await.unwrap();
    assert_eq!(states(&runtime).await, [FoundState::Incomplete], "it never ran");
    assert!(matches!(runtime.dial(one.id, 80).await, Err(RuntimeError::Refused(_))));
    runtime.start(&one).await.unwrap();
    assert_eq!(states(&runtime).await, [FoundState::Running]);
    assert!(matches!(runtime.start(&one).await, Err(RuntimeError::State(_))));
    assert!(matches!(runtime.create(&one, &Progress::new().0).await, Err(RuntimeError::State(_))));
    runtime.stop(one.id, Duration::from_secs(1)).await.unwrap();
    runtime.stop(one.id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(states(&runtime).await, [FoundState::Stopped]);
    runtime.delete(one.id).await.unwrap();
    runtime.delete(one.id).await.unwrap();
    assert_eq!(states(&runtime).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_creation_is_found_incomplete_and_can_be_made_again() {
    let runtime = Synthetic::new();
    runtime.host().adjust(|b| b.create = Delay::Fixed(Duration::from_secs(60)));
    let one = copy(1, 0);
    let progress = Progress::new().0;
    assert!(timeout(Duration::from_secs(1), runtime.create(&one, &progress)).await.is_err());
    assert_eq!(states(&runtime).await, [FoundState::Incomplete]);
    assert!(matches!(runtime.start(&one).await, Err(RuntimeError::State(_))));
    runtime.create(&one, &progress).await.unwrap();
    runtime.start(&one).await.unwrap();
    assert_eq!(states(&runtime).await, [FoundState::Running]);
}

#[tokio::test(start_paused = true)]
async fn steps_fail_and_hang_as_told() {
    let runtime = Synthetic::new();
    let one = copy(1, 0);
    let progress = Progress::new().0;
    runtime.host().fail_next(Step::Create, 2, "disk full");
    for _ in 0..2 {
        assert!(matches!(runtime.create(&one, &progress).await, Err(RuntimeError::Image(text)) if text == "disk full"));
    }
    runtime.create(&one, &progress).await.unwrap();
    runtime.host().adjust(|b| b.hang.extend([Step::Start, Step::Stop]));
    assert!(matches!(runtime.start(&one).await, Err(RuntimeError::Timeout(_))));
    runtime.host().adjust(|b| b.hang.retain(|step| *step != Step::Start));
    runtime.start(&one).await.unwrap();
    let exit = runtime.wait_exit(one.id);
    let (stopped, exit) = tokio::join!(runtime.stop(one.id, Duration::from_secs(5)), exit);
    stopped.unwrap();
    assert!(matches!(exit, Exit::Crashed(_)), "the grace ran out: {exit:?}");
    runtime.host().adjust(|b| b.max_running = Some(0));
    assert!(matches!(runtime.start(&one).await, Err(RuntimeError::Tool(_))));
}

#[tokio::test(start_paused = true)]
async fn every_waiter_learns_how_a_copy_ended_also_over_a_worker_restart() {
    let host = Arc::<SyntheticHost>::default();
    let before = Synthetic::on(host.clone());
    let one = running(&before, 1).await;
    drop(before);
    let after = Synthetic::on(host.clone());
    assert_eq!(states(&after).await, [FoundState::Running]);
    let waiting = after.wait_exit(one.id);
    let (exit, crashed) = tokio::join!(waiting, async { host.crash(one.id, "panic") });
    assert!(crashed && exit == Exit::Crashed("panic".to_owned()));
    assert_eq!(after.wait_exit(one.id).await, exit, "also who asks late learns it");
    assert!(!host.power_off(one.id));
    after.start(&one).await.unwrap();
    let (exit, _) = tokio::join!(after.wait_exit(one.id), async { host.power_off(one.id) });
    assert_eq!(exit, Exit::PoweredOff);
    after.start(&one).await.unwrap();
    host.reboot();
    assert_eq!(states(&after).await, [FoundState::Stopped]);
}

#[tokio::test(start_paused = true)]
async fn two_copies_of_one_vm_at_once_are_noticed_across_hosts() {
    let ledger = Arc::<Ledger>::default();
    let host = || Synthetic::on(Arc::new(SyntheticHost::new(Behaviour::default(), 7, ledger.clone())));
    let (one, other) = (host(), host());
    let first = running(&one, 1).await;
    one.stop(first.id, Duration::ZERO).await.unwrap();
    running(&other, 1).await;
    assert_eq!((ledger.counts().most_copies, ledger.counts().starts), (1, 2));
    one.start(&first).await.unwrap();
    assert_eq!(ledger.counts().doubled, [first.id.uid]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_answers_once_it_has_booted() {
    let runtime = Synthetic::new();
    runtime.host().adjust(|b| b.boot = Delay::Between(Duration::from_secs(5), Duration::from_secs(9)));
    let one = running(&runtime, 1).await;
    assert!(matches!(runtime.dial(one.id, 22).await, Err(RuntimeError::Refused(_))));
    let started = tokio::time::Instant::now();
    runtime.booted(one.id).await;
    assert!(started.elapsed() >= Duration::from_secs(5));
    let mut stream = runtime.dial(one.id, 22).await.unwrap();
    banner::probe(&mut stream, banner::PROBE_WAIT).await.unwrap();
    runtime.host().adjust(|b| b.refused_ports.extend([22]));
    assert!(matches!(runtime.dial(one.id, 22).await, Err(RuntimeError::Refused(_))));
}

#[tokio::test]
async fn other_ports_echo_until_the_copy_is_gone() {
    let runtime = Synthetic::new();
    let one = running(&runtime, 1).await;
    let mut stream = runtime.dial(one.id, 5900).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
    let mut half_closed = runtime.dial(one.id, 80).await.unwrap();
    half_closed.write_all(b"bye").await.unwrap();
    half_closed.shutdown().await.unwrap();
    let mut rest = Vec::new();
    half_closed.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"bye");
    runtime.host().crash(one.id, "gone");
    assert_eq!(stream.read(&mut got).await.unwrap(), 0);
    assert!(stream.write_all(b"x").await.is_err());
}

#[tokio::test]
async fn a_thousand_copies_start_and_a_hundred_answer_at_once() {
    let runtime = Synthetic::new();
    for number in 0..1000 {
        running(&runtime, number).await;
    }
    let mut sessions = tokio::task::JoinSet::new();
    for number in 0..100u128 {
        let runtime = runtime.clone();
        sessions.spawn(async move {
            let stream = runtime.dial(copy(number, 0).id, 22).await.unwrap();
            let login = Login::with_password("admin", VmSpec::default().guest_password());
            let session = Session::connect(stream, login, AcceptAny, Duration::from_secs(60)).await.unwrap();
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let stdio = Stdio { stdin: tokio::io::empty(), stdout: &mut stdout, stderr: &mut stderr };
            let status = session.exec("hostname", stdio).await.unwrap();
            assert_eq!((status, stdout), (ExitStatus::Code(0), format!("vm-{number}\n").into_bytes()));
        });
    }
    while let Some(ended) = sessions.join_next().await {
        ended.unwrap();
    }
    let counts = runtime.host().ledger().counts();
    assert_eq!((counts.running.len(), counts.dials, counts.most_copies), (1000, 100, 1));
}
