//! Samples of answers that are larger.

use orchard::bus::access::NewToken;
use orchard::bus::images::PullView;
use orchard::bus::message::{Answer, ControllerInfo, Done, VmPage, WorkerPage};
use orchard::bus::status::{
    BrokerStatus, ControllerStatus, FeedStatus, QueueStatus, RequestStatus, SchedulerStatus, StoreStatus, TunnelStatus,
    WorkersStatus,
};
use orchard::model::Timestamp;
use orchard::model::access::{Role, Roles};
use orchard::model::account::AccountView;
use orchard::model::image::{PullId, WorkerSelector};
use orchard::model::resources::MEMORY_MIB;
use orchard::model::secret::Secret;
use orchard::model::settings::ClusterSettings;
use orchard::model::vm::{Vm, VmStatus};
use orchard::model::worker::{DataPath, Drain, Worker, WorkerState, WorkerView};

use super::{Samples, info, line, load, spec, uid};

pub fn add(file: &mut Samples) {
    let time = Timestamp::from_millis(1_700_000_000_123);
    let mut vm = Vm::requested("a".parse().unwrap(), uid(), time, spec());
    vm.created_by = Some("ann".parse().unwrap());
    (vm.generation, vm.observed_generation) = (2, 1);
    vm.image_fqn = Some("i@sha256:ab".into());
    vm.status = VmStatus::Running;
    vm.set_conditions(true, true);
    vm.status_message = "ready".into();
    vm.ready = true;
    vm.worker = Some("mini.local".parse().unwrap());
    vm.assigned = [(MEMORY_MIB, 512)].into();
    vm.placed_because = "the only worker there is".into();
    (vm.assigned_cpu, vm.assigned_memory, vm.restart_count) = (2, 512, 1);
    (vm.restarted_at, vm.scheduled_at, vm.started_at) = (Some(time), Some(time), Some(time));
    line(file, "answer/vm.get", &Answer::Ok(vm.clone().redacted()));
    line(file, "answer/vm.create", &Answer::Ok(vm.clone().redacted()));
    line(file, "answer/vm.list", &Answer::Ok(VmPage { vms: vec![vm.redacted()], more: true }));
    let path = DataPath {
        address: "192.0.2.1:5".into(),
        rtt_us: 1_500,
        sent: 9,
        lost: 1,
        age_s: 60,
        answered_s: Some(3),
        connects: 2,
    };
    let drain = Some(Drain { began: time, deadline_s: Some(60), done: false });
    let view = WorkerView {
        worker: Worker { info: info(), created_at: time, scheduling_paused: true, drain, lease_ms: 60_000 },
        state: WorkerState::Unseen,
        connectable: false,
        not_connectable_because: "it is silent".into(),
        path: Some(path),
        last_seen: Some(time),
        load: Some(load()),
        used: [(MEMORY_MIB, 512)].into(),
        vms: 1,
        strays: 2,
    };
    line(file, "answer/worker.get", &Answer::Ok(view.clone()));
    line(file, "answer/worker.list", &Answer::Ok(WorkerPage { workers: vec![view], more: true }));
    let roles: Roles = [Role::ComputeRead].into_iter().collect();
    let told = ControllerInfo { version: "0.1.0".into(), last_event: 7, roles: Some(roles), outside_bus: true };
    line(file, "answer/controller.info", &Answer::Ok(told));
    let counted = |name: &str| [(name.to_owned(), 1)].into();
    let status = ControllerStatus {
        version: "0.1.0".into(),
        started: time,
        uptime_s: 60,
        warnings: vec!["the disk of the database is nearly full".into()],
        store: StoreStatus {
            schema: 3,
            used_bytes: 1,
            map_bytes: 2,
            disk_free_bytes: Some(3),
            disk_bytes: Some(4),
            commits: 5,
            commit_failures: 6,
            commit_p99_us: Some(7),
        },
        events: FeedStatus { first: 1, last: 9, unpublished: 2 },
        audit: FeedStatus::default(),
        queues: QueueStatus { writer: 1, writer_capacity: 4_096, requests: 1 },
        scheduler: SchedulerStatus {
            last_pass_ms: 250,
            placements: 1,
            last_placement: Some(time),
            pending: counted("worker"),
        },
        vms: counted("running"),
        workers: WorkersStatus { states: counted("online"), connectable: 1, paused: 0, strays: 0 },
        broker: Some(BrokerStatus::default()),
        tunnel: TunnelStatus::default(),
        requests: RequestStatus { answered: 3, failed: 0, p99_us: Some(1_000) },
    };
    line(file, "answer/controller.status", &Answer::Ok(status));
    let pull = PullView {
        id: PullId(uid().0),
        image: "https://h/i.qcow2".into(),
        selector: WorkerSelector::default(),
        created_at: time,
        created_by: None,
        expires_at: time,
        workers: 0,
        done: 0,
        failed: 0,
        offline: 0,
    };
    line(file, "answer/image.pull", &Answer::Ok(pull));
    others(file);
}

/// Those that others have samples of the same type for: each is a message of its own.
fn others(file: &mut Samples) {
    for name in [
        "answer/worker.delete",
        "answer/worker.pause",
        "answer/worker.resume",
        "answer/worker.drain",
        "answer/worker.delete-stray",
        "answer/image.cancel-pull",
        "answer/service-account.delete",
        "answer/bootstrap-token.delete",
        "worker/report/answer",
        "worker/log/answer",
        "worker/images/answer",
    ] {
        line(file, name, &Answer::Ok(Done {}));
    }
    let policies = vec!["/srv:ro".parse().unwrap()];
    let settings = ClusterSettings { host_dir_policies: policies, ..ClusterSettings::default() };
    line(file, "answer/cluster-settings.set", &Answer::Ok(settings));
    let account = AccountView {
        name: "ci".parse().unwrap(),
        roles: [Role::ComputeWrite].into_iter().collect(),
        created_at: Timestamp::from_millis(1_700_000_000_123),
        rotated_at: None,
        expires_at: None,
        ssh_keys: Vec::new(),
    };
    line(file, "answer/service-account.update", &Answer::Ok(account.clone()));
    line(file, "answer/service-account.rotate", &Answer::Ok(NewToken { account, token: Secret::new("t") }));
}
