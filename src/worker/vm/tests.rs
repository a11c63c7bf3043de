//! A copy's task on a synthetic host, without a controller.

use std::sync::Arc;

use super::*;
use crate::model::VmUid;
use crate::model::vm::{SCRIPT_INTERRUPTED, StartupScript, VmSpec};
use crate::task;
use crate::worker::runtime::Runtime;
use crate::worker::runtime::synthetic::Synthetic;
use crate::worker::runtime::synthetic::behaviour::Step as HostStep;
use crate::worker::runtime::synthetic::host::SyntheticHost;

fn spec() -> CopySpec {
    let id = CopyId { uid: VmUid(uuid::Uuid::from_u128(1)), attempt: 0 };
    CopySpec { id, name: "a".parse().unwrap(), spec: VmSpec::default(), cpu: 1, memory: 1 }
}

async fn host(runtime: Synthetic, dir: &std::path::Path) -> Host {
    Host::unheard(Arc::new(runtime), dir).await
}

fn task_for(host: &Host, copy: &CopySpec, seen: Seen) -> (watch::Sender<Order>, CopyTask) {
    let order = Order {
        wish: Wish::Run,
        name: copy.name.clone(),
        copy: Some(Arc::new(copy.clone())),
        generation: 0,
        boot: 0,
        ran: false,
    };
    let (sender, orders) = watch::channel(order);
    (sender, CopyTask::new(copy.id, host.clone(), orders, seen))
}

/// Waits until this is told of a copy.
async fn told(host: &Host, id: CopyId, observation: &Observation) {
    until(&format!("told {observation:?}"), || host.uplink.tells(id, observation)).await;
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
    let host = host(runtime, dir.path()).await;
    let (_orders, task) = task_for(&host, &copy, Seen::Created);
    let _task = task::spawn(task.run());
    let failed =
        Observation::Failed { message: "cannot start the VM: VM a runs already".into(), disk: false, halted: false };
    told(&host, copy.id, &failed).await;
    assert!(on.found().iter().all(|found| found.state != super::super::runtime::FoundState::Running));
    assert_eq!(host.boot_slots.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_script_was_interrupted_runs_on_but_is_not_called_ready() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Synthetic::on(Arc::new(SyntheticHost::default()));
    let mut copy = spec();
    copy.spec.startup_script = Some(StartupScript { script_content: "true".into(), ..StartupScript::default() });
    runtime.create(&copy, &Progress::new().0).await.unwrap();
    runtime.start(&copy).await.unwrap();
    let image_fqn = runtime.image_fqn(copy.id).await;
    assert!(image_fqn.is_some());
    let host = host(runtime, dir.path()).await;
    host.journal.set_script(copy.id, ScriptState::Begun);
    let (_orders, task) = task_for(&host, &copy, Seen::Running);
    let _task = task::spawn(task.run());
    let interrupted =
        Observation::Running { message: SCRIPT_INTERRUPTED.into(), ready: false, generation: 0, image_fqn };
    told(&host, copy.id, &interrupted).await;
}

#[tokio::test(start_paused = true)]
async fn a_script_waits_for_its_guest_up_to_a_limit_and_without_one_the_vm_runs_on() {
    for script in [None, Some(StartupScript::default())] {
        let dir = tempfile::tempdir().unwrap();
        let on = Arc::new(SyntheticHost::default());
        on.adjust(|behaviour| {
            behaviour.refused_ports.insert(22);
        });
        let runtime = Synthetic::on(on.clone());
        let mut copy = spec();
        copy.spec.startup_script = script.clone();
        runtime.create(&copy, &Progress::new().0).await.unwrap();
        let host = host(runtime, dir.path()).await;
        let (_orders, task) = task_for(&host, &copy, Seen::Created);
        let _task = task::spawn(task.run());
        let began = tokio::time::Instant::now();
        while began.elapsed() < Duration::from_secs(3_600) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let told = host.uplink.told(copy.id).unwrap();
        match script {
            None => assert!(matches!(told, Observation::Running { ready: false, .. }), "{told:?}"),
            Some(_) => assert!(
                matches!(&told, Observation::Failed { message, disk: true, .. } if message.contains("30 minutes")),
                "{told:?}"
            ),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_script_that_ended_before_its_worker_did_has_ended() {
    let spec =
        CopySpec { spec: VmSpec { startup_script: Some(StartupScript::default()), ..VmSpec::default() }, ..spec() };
    let why = "the startup script failed: exit status 3".to_owned();
    let failed = Observation::Failed { message: why.clone(), disk: true, halted: false };
    for (state, expected) in [(ScriptState::Done, None), (ScriptState::Failed(why), Some(failed))] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Synthetic::on(Arc::new(SyntheticHost::default()));
        runtime.create(&spec, &Progress::new().0).await.unwrap();
        runtime.start(&spec).await.unwrap();
        let image_fqn = runtime.image_fqn(spec.id).await;
        let ready = Observation::Running { message: "ready".into(), ready: true, generation: 0, image_fqn };
        let host = host(runtime, dir.path()).await;
        host.journal.set_script(spec.id, state);
        let (_orders, task) = task_for(&host, &spec, Seen::Running);
        let _task = task::spawn(task.run());
        told(&host, spec.id, &expected.unwrap_or(ready)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_again_to_a_controller_that_had_forgotten_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Synthetic::on(Arc::new(SyntheticHost::default()));
    let copy = spec();
    runtime.create(&copy, &Progress::new().0).await.unwrap();
    let host = host(runtime, dir.path()).await;
    let (orders, task) = task_for(&host, &copy, Seen::Failed);
    let wished = orders.borrow().clone();
    orders.send_replace(Order { wish: Wish::Unknown, copy: None, ..wished.clone() });
    let _task = task::spawn(task.run());
    told(&host, copy.id, &Observation::Stray { name: "a".into(), running: Some(false) }).await;
    orders.send_replace(wished);
    let message = "the VM's process ended while nobody watched".into();
    told(&host, copy.id, &Observation::Failed { message, disk: false, halted: false }).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_waits_neither_for_a_suspension_nor_for_a_start() {
    for (wish, seen) in [(Wish::Suspend, Seen::Running), (Wish::Run, Seen::Created)] {
        let dir = tempfile::tempdir().unwrap();
        let on = Arc::new(SyntheticHost::default());
        let runtime = Synthetic::on(on.clone());
        let copy = spec();
        runtime.create(&copy, &Progress::new().0).await.unwrap();
        if seen == Seen::Running {
            runtime.start(&copy).await.unwrap();
        }
        on.adjust(|behaviour| behaviour.hang.extend([HostStep::Start, HostStep::Suspend]));
        let host = host(runtime, dir.path()).await;
        let (orders, task) = task_for(&host, &copy, seen);
        let wished = orders.borrow().clone();
        orders.send_replace(Order { wish, ..wished.clone() });
        let _task = task::spawn(task.run());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(on.found().len(), 1);
        orders.send_replace(Order { wish: Wish::Absent, copy: None, ..wished });
        told(&host, copy.id, &Observation::Absent).await;
        assert!(on.found().is_empty());
        assert_eq!(host.boot_slots.available_permits(), 1);
    }
}

/// What is told of a copy that ended with its worker, if that is what is told.
fn is_halted(host: &Host, id: CopyId) -> bool {
    matches!(host.uplink.told(id), Some(Observation::Failed { halted: true, disk: true, .. }))
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let began = tokio::time::Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(60), "not yet: {what}");
        tokio::time::advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_with_its_worker_is_told_by_the_next_process_too_and_boots_only_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let on = Arc::new(SyntheticHost::default());
    let runtime = Synthetic::on(on.clone());
    let copy = spec();
    runtime.create(&copy, &Progress::new().0).await.unwrap();
    runtime.start(&copy).await.unwrap();
    let host = host(runtime, dir.path()).await;
    let runs = || on.found()[0].state == super::super::runtime::FoundState::Running;
    let (orders, first) = task_for(&host, &copy, Seen::Running);
    let wished = orders.borrow().clone();
    let task = task::spawn(first.run());
    until("it to be adopted", || matches!(host.uplink.told(copy.id), Some(Observation::Running { .. }))).await;
    assert_eq!(host.resting.busy([&copy.id]), 1);
    orders.send_replace(Order { wish: Wish::Halt, copy: None, ..wished.clone() });
    until("it to end", || is_halted(&host, copy.id) && host.resting.busy([&copy.id]) == 0).await;
    assert!(!runs());
    task.abort().await;

    host.uplink.forget(copy.id);
    let (orders, next) = task_for(&host, &copy, Seen::Ended);
    let _task = task::spawn(next.run());
    until("it to be told again", || is_halted(&host, copy.id)).await;
    assert!(!runs(), "the boot that has ended is not begun again");
    orders.send_replace(Order { boot: 1, ran: true, ..wished });
    until("it to boot", runs).await;
    assert!(!host.journal.halted(copy.id));
}

#[tokio::test(start_paused = true)]
async fn what_did_not_end_with_its_worker_counts_as_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = Synthetic::on(Arc::new(SyntheticHost::default()));
    let copy = spec();
    runtime.create(&copy, &Progress::new().0).await.unwrap();
    runtime.start(&copy).await.unwrap();
    let host = host(runtime, dir.path()).await;
    host.journal.set_halted(copy.id, 0);
    let (_orders, task) = task_for(&host, &copy, Seen::Running);
    let _task = task::spawn(task.run());
    until("it to be adopted", || matches!(host.uplink.told(copy.id), Some(Observation::Running { .. }))).await;
    assert!(!host.journal.halted(copy.id));
}
