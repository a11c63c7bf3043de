//! A copy's task on a synthetic host, without a controller.

use super::*;
use crate::model::VmUid;
use crate::model::vm::VmSpec;
use crate::worker::runtime::synthetic::Synthetic;
use crate::worker::runtime::synthetic::behaviour::Step as HostStep;
use crate::worker::runtime::synthetic::host::SyntheticHost;

fn spec() -> CopySpec {
    let id = CopyId { uid: VmUid(uuid::Uuid::from_u128(1)), attempt: 0 };
    CopySpec { id, name: "a".parse().unwrap(), spec: VmSpec::default(), cpu: 1, memory: 1 }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_only_once_the_copy_certainly_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let on = Arc::new(SyntheticHost::default());
    let runtime = Synthetic::on(on.clone());
    let copy = spec();
    // It runs already, so that starting it fails; and at first it cannot be stopped.
    runtime.create(&copy, &Progress::new().0).await.unwrap();
    runtime.start(&copy).await.unwrap();
    on.fail_next(HostStep::Stop, 2, "the host hangs");
    let host = Host {
        runtime: Arc::new(runtime),
        uplink: Uplink::unheard().await,
        journal: Journal::open(dir.path()).unwrap(),
        boot_slots: Arc::new(Semaphore::new(1)),
    };
    let order = Order { wish: Wish::Run, name: copy.name.clone(), copy: Some(Arc::new(copy.clone())), generation: 0 };
    let (_orders, receiver) = watch::channel(order);
    let task = CopyTask { id: copy.id, host: host.clone(), orders: receiver, seen: Seen::Created };
    let _task = task::spawn(task.run());
    let failed = Observation::Failed { message: "cannot start the VM: VM a runs already".into() };
    let began = tokio::time::Instant::now();
    while !host.uplink.tells(copy.id, &failed) {
        assert!(began.elapsed() < Duration::from_secs(60), "it was never told");
        tokio::time::advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
    }
    assert!(on.found().iter().all(|found| found.state != super::super::runtime::FoundState::Running));
    assert_eq!(host.boot_slots.available_permits(), 1);
}
