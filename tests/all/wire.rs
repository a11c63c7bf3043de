//! The bytes of every message on the bus, pinned: a change of the wire shows here before it shows in the field.
//!
//! `schemas/messages.txt` holds one message a line, its name and its MessagePack in hex. `ORCHARD_UPDATE_SCHEMAS=1
//! cargo test wire::` writes the file anew; a line that changes breaks releases one older or newer.

mod answers;

use std::fmt::Write as _;
use std::path::PathBuf;

use orchard::bus::access::{
    AccountPage, AuditPage, CreateAccount, CreateJoinToken, DeleteAccount, DeleteJoinToken, DeleteWorker, Expiry,
    GetAccount, Join, JoinTokenPage, Joined, ListAccounts, ListAudit, ListJoinTokens, NewJoinToken, NewToken,
    RotateAccount, UpdateAccount,
};
use orchard::bus::connect::{GetAddress, HostTicket, OpenHost, OpenTunnel, TunnelEndpoint, TunnelTicket, VmAddress};
use orchard::bus::images::{
    CancelPull, DesiredPull, GetPull, HeldImage, HeldPage, HeldView, ImagePage, ImageView, ImagesReport,
    ListHeldImages, ListImages, ListPulls, PullImage, PullOnWorker, PullPage, PullProgress, PullReport, PullView,
};
use orchard::bus::life::{SpecChange, UpdateVm};
use orchard::bus::log::{LogLine, LogLines};
use orchard::bus::message::{
    Answer, Assignment, CreateVm, DeleteVm, DesiredCopy, Done, EventPage, GetInfo, GetVm, GetWorker, Heartbeat,
    HeartbeatAck, Hello, ListEvents, ListVms, ListWorkers, Observation, Report, RunSpec, Want, Welcome, decode, encode,
};
use orchard::bus::placing::{DrainWorker, ExplainVm, Explained, Obstacle, PauseWorker, ResumeWorker};
use orchard::bus::settings::{GetSettings, SetSettings};
use orchard::bus::status::GetStatus;
use orchard::bus::strays::{DeleteStray, ListStrays, StrayPage, StrayView};
use orchard::model::CopyId;
use orchard::model::access::{Role, Roles};
use orchard::model::account::{AccountView, JoinId, JoinTokenView};
use orchard::model::audit::{AuditRecord, AuditType, Deed, Outcome};
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::event::{Event, EventObject, EventType, LogStream};
use orchard::model::image::{PullId, PullState, WorkerSelector};
use orchard::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use orchard::model::secret::Secret;
use orchard::model::settings::{ClusterSettings, HostDirPolicy, Profile};
use orchard::model::vm::{
    Arch, OnUnseen, Os, PowerState, RestartPolicy, RuntimeKind, StartupScript, Vm, VmSpec, VmStatus,
};
use orchard::model::worker::{HostLoad, WorkerInfo};
use orchard::model::{AccountName, SessionId, Timestamp, VmUid, WorkerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

fn uid() -> VmUid {
    VmUid(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001))
}

fn session() -> SessionId {
    SessionId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0002))
}

fn spec() -> VmSpec {
    VmSpec {
        image: "/images/a.qcow2".into(),
        os: Some(Os::Linux),
        arch: Some(Arch::Amd64),
        runtime: Some(RuntimeKind::Qemu),
        cpu: 2,
        memory: 512,
        disk_size: 10,
        headless: true,
        username: Some("admin".into()),
        password: Some(Secret::new("pw")),
        startup_script: Some(StartupScript {
            script_content: "true".into(),
            env: [("K".to_owned(), Secret::new("v"))].into(),
        }),
        restart_policy: RestartPolicy::OnFailure,
        resources: [("gpu", 1)].into(),
        labels: [("role".to_owned(), "ci".to_owned())].into(),
        ..VmSpec::default()
    }
}

fn info() -> WorkerInfo {
    WorkerInfo {
        name: "mini.local".parse().unwrap(),
        machine_id: "m".into(),
        os: Os::Darwin,
        arch: Arch::Arm64,
        runtime: RuntimeKind::Tart,
        resources: [(LOGICAL_CORES, 8), (MEMORY_MIB, 16_384)].into(),
        labels: [("role".to_owned(), "ci".to_owned())].into(),
        default_cpu: 4,
        default_memory: 8_192,
        version: "0.1.0".into(),
    }
}

fn load() -> HostLoad {
    HostLoad {
        cpu_permille: Some(250),
        memory_mib: Some(16_384),
        memory_available_mib: Some(9_000),
        disk_mib: Some(500_000),
        disk_free_mib: Some(120_000),
    }
}

fn endpoint() -> TunnelEndpoint {
    TunnelEndpoint { host: Some("ctl".into()), port: 6120, fingerprint: "ab".repeat(32) }
}

fn assignment() -> Assignment {
    let run = RunSpec { spec: spec(), generation: 1, cpu: 2, memory: 512, ran: true };
    let copy = |attempt, want| DesiredCopy { name: "a".parse().unwrap(), uid: uid(), attempt, boot: 1, want };
    let wishes = [Want::Run(Box::new(run)), Want::Suspend, Want::Keep, Want::Absent];
    let copies = (0..).zip(wishes).map(|(attempt, want)| copy(attempt, want)).collect();
    Assignment { session: session(), revision: 3, part: 0, parts: 1, copies, pulls: Vec::new() }
}

fn event(kind: EventType, object: EventObject) -> Event {
    let time = Timestamp::from_millis(1_700_000_000_123);
    let worker = Some("w".parse().unwrap());
    let (message, stream) = ("text".into(), Some(LogStream::Stderr));
    Event { number: 7, time, kind, object, message, worker, stream, said_at: None }
}

/// Samples of all messages.
#[derive(Default)]
pub struct Samples {
    /// A line for each, as in the file.
    pub lines: String,
    /// The same as JSON.
    pub json: Vec<(String, serde_json::Value)>,
}

/// One line of the file, after a round trip.
fn line<T: Serialize + DeserializeOwned>(file: &mut Samples, name: &str, message: &T) {
    let bytes = encode(message).unwrap();
    let back: T = decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(encode(&back).unwrap(), bytes, "{name} changes in a round trip");
    writeln!(file.lines, "{name} {}", data_encoding::HEXLOWER.encode(&bytes)).unwrap();
    file.json.push((name.to_owned(), serde_json::to_value(message).unwrap()));
}

/// What concerns images.
fn images(file: &mut Samples) {
    let worker: WorkerName = "w".parse().unwrap();
    let (id, time) = (PullId(uid().0), Timestamp::from_millis(1_700_000_000_123));
    let image = || "https://h/i.qcow2".to_owned();
    let held =
        HeldImage { image: image(), bytes: 7, digest: Some("sha256:ab".into()), last_used: Some(time), in_use: true };
    let least = HeldImage { digest: None, last_used: None, in_use: false, ..held.clone() };
    let far = PullReport { id, state: PullState::Pulling, message: "42 %".into() };
    let done = PullReport { id, state: PullState::Done, message: String::new() };
    let images_of = Some(vec![held.clone(), least.clone()]);
    let report = ImagesReport { session: session(), images: images_of, left_out: 2, pulls: vec![far, done] };
    line(file, "worker/images", &report);
    line(file, "worker/images/least", &ImagesReport { images: None, left_out: 0, pulls: Vec::new(), ..report });
    let pulls = vec![DesiredPull { id, image: image() }];
    line(file, "worker/assign/pulls", &Assignment { copies: Vec::new(), pulls, ..assignment() });
    line(file, "image.list", &ListImages { after: Some(image()), limit: 5 });
    let view = ImageView { image: image(), bytes: 7, workers: 2, in_use: 1, last_used: Some(time) };
    line(file, "answer/image.list", &Answer::Ok(ImagePage { images: vec![view], more: true }));
    let (of, after) = (Some(worker.clone()), Some((worker.clone(), image())));
    line(file, "image.list-held", &ListHeldImages { worker: of, image: Some(image()), after, limit: 5 });
    let views = [held, least].map(|held| HeldView { worker: worker.clone(), held });
    line(file, "answer/image.list-held", &Answer::Ok(HeldPage { images: views.to_vec(), more: true }));
    let labels = [("role".to_owned(), "ci".to_owned())].into();
    let selector = WorkerSelector { labels, worker: Some(worker.clone()), runtime: Some(RuntimeKind::Tart) };
    line(file, "image.pull", &PullImage { image: image(), selector: selector.clone(), ttl_s: 60 });
    let any = PullImage { image: image(), selector: WorkerSelector::default(), ttl_s: 0 };
    line(file, "image.pull/least", &any);
    line(file, "image.cancel-pull", &CancelPull { image: image() });
    line(file, "image.list-pulls", &ListPulls {});
    let pull = PullView {
        id,
        image: image(),
        selector,
        created_at: time,
        created_by: Some("ann".parse().unwrap()),
        expires_at: time,
        workers: 4,
        done: 1,
        failed: 1,
        offline: 1,
    };
    line(file, "answer/image.list-pulls", &Answer::Ok(PullPage { pulls: vec![pull.clone()] }));
    line(file, "image.get-pull", &GetPull { id, after: Some(worker.clone()), limit: 5 });
    let on = PullOnWorker { worker, online: true, state: PullState::Failed, message: "m".into() };
    let waiting = PullOnWorker { online: false, state: PullState::Waiting, message: String::new(), ..on.clone() };
    line(file, "answer/image.get-pull", &Answer::Ok(PullProgress { pull, workers: vec![on, waiting], more: true }));
}

/// What concerns who may do what.
fn access(file: &mut Samples) {
    let name: AccountName = "ci".parse().unwrap();
    let worker: WorkerName = "mini.local".parse().unwrap();
    let time = Timestamp::from_millis(1_700_000_000_123);
    let roles: Roles = [Role::ComputeRead, Role::ComputeConnect].into_iter().collect();
    let create = CreateAccount {
        name: name.clone(),
        roles: roles.clone(),
        expires_at: Some(time),
        token: Some(Secret::new("t")),
        ssh_keys: Vec::new(),
    };
    line(file, "service-account.create", &create);
    let least = CreateAccount { roles: Roles::default(), expires_at: None, token: None, ..create };
    line(file, "service-account.create/least", &least);
    line(file, "service-account.get", &GetAccount { name: name.clone() });
    line(file, "service-account.list", &ListAccounts { after: Some(name.clone()), limit: 10 });
    let at = Some(Expiry::At(time));
    line(
        file,
        "service-account.update",
        &UpdateAccount { name: name.clone(), roles: Some(roles.clone()), expiry: at, ssh_keys: None },
    );
    let never = Some(Expiry::Never);
    line(
        file,
        "service-account.update/never",
        &UpdateAccount { name: name.clone(), roles: None, expiry: never, ssh_keys: None },
    );
    line(file, "service-account.rotate", &RotateAccount { name: name.clone() });
    line(file, "service-account.delete", &DeleteAccount { name: name.clone() });
    let view = AccountView {
        name,
        roles,
        created_at: time,
        rotated_at: Some(time),
        expires_at: Some(time),
        ssh_keys: Vec::new(),
    };
    line(file, "answer/service-account.get", &Answer::Ok(view.clone()));
    line(file, "answer/service-account.list", &Answer::Ok(AccountPage { accounts: vec![view.clone()], more: true }));
    line(file, "answer/service-account.create", &Answer::Ok(NewToken { account: view, token: Secret::new("t") }));
    let token = CreateJoinToken { ttl_s: 86_400, uses: 1, worker: Some(worker.clone()) };
    line(file, "bootstrap-token.create", &token);
    let made = NewJoinToken {
        id: "0102030405060708".into(),
        secret: Secret::new("s"),
        expires_at: time,
        bus_url: Some("tls://ctl:4222".into()),
        fingerprint: Some("ab".repeat(32)),
    };
    line(file, "answer/bootstrap-token.create", &Answer::Ok(made));
    let id = JoinId::new([7; 8]);
    line(file, "bootstrap-token.list", &ListJoinTokens { after: Some(id.clone()), limit: 10 });
    line(file, "bootstrap-token.delete", &DeleteJoinToken { id: id.clone() });
    let made_by = "ann".parse().unwrap();
    let only = Some(worker.clone());
    let view =
        JoinTokenView { id, created_by: made_by, created_at: time, expires_at: time, uses_left: 3, worker: only };
    line(file, "answer/bootstrap-token.list", &Answer::Ok(JoinTokenPage { tokens: vec![view], more: true }));
    line(file, "join", &Join { worker: worker.clone(), public_key: "U".into(), machine_id: "m".into() });
    line(file, "join/answer", &Answer::Ok(Joined {}));
    line(file, "worker.delete", &DeleteWorker { name: worker, force: true });
    line(file, "audit.list", &ListAudit { after: 5, limit: 10 });
    let deed = Deed {
        kind: AuditType::TunnelClosed,
        account: "a".into(),
        address: "192.0.2.1:5".into(),
        verb: "connect.open".into(),
        target: "vm:22".into(),
        outcome: Outcome::Done,
        message: "m".into(),
        request: String::new(),
    };
    let record = AuditRecord::new(7, time, deed);
    line(file, "audit/record", &record);
    let empty = String::new;
    let least = AuditRecord { address: empty(), verb: empty(), target: empty(), message: empty(), ..record.clone() };
    line(file, "audit/record/least", &least);
    line(file, "audit/record/request", &AuditRecord { request: "r-1".into(), ..record.clone() });
    line(file, "answer/audit.list", &Answer::Ok(AuditPage { records: vec![record], next: 7, last: 9, first_kept: 1 }));
}

/// At least one of each message.
pub fn samples() -> Samples {
    let mut file = Samples::default();
    let vm: orchard::model::VmName = "a".parse().unwrap();
    line(&mut file, "vm.create", &CreateVm { name: vm.clone(), spec: spec(), key: None });
    line(
        &mut file,
        "vm.create/least",
        &CreateVm { name: vm.clone(), spec: VmSpec { image: "i".into(), ..VmSpec::default() }, key: None },
    );
    let keyed = CreateVm { name: vm.clone(), spec: VmSpec::default(), key: Some("k".into()) };
    line(&mut file, "vm.create/key", &keyed);
    let change = SpecChange {
        os: Some(Os::Linux),
        arch: Some(Arch::Amd64),
        runtime: Some(RuntimeKind::Qemu),
        power_state: Some(PowerState::Stopped),
        suspendable: Some(true),
        restart_policy: Some(RestartPolicy::Always),
        on_unseen: Some(OnUnseen::Replace),
        priority: Some(-1),
        ttl_s: Some(60),
        ..SpecChange::default()
    };
    let softnet = SpecChange {
        net_softnet: Some(true),
        net_softnet_allow: Some(vec!["10.0.0.0/8".into()]),
        net_softnet_block: Some(Vec::new()),
        ..SpecChange::default()
    };
    line(&mut file, "vm.update/softnet", &UpdateVm { name: vm.clone(), if_generation: None, change: softnet });
    line(&mut file, "vm.update", &UpdateVm { name: vm.clone(), if_generation: Some(3), change });
    line(
        &mut file,
        "vm.update/least",
        &UpdateVm { name: vm.clone(), if_generation: None, change: SpecChange::default() },
    );
    let mut made = Vm::requested(vm.clone(), uid(), Timestamp::from_millis(1_700_000_000_123), VmSpec::default());
    made.boot = 2;
    line(&mut file, "answer/vm.update", &Answer::Ok(made));
    line(&mut file, "vm.get", &GetVm { name: vm.clone() });
    line(&mut file, "vm.list", &ListVms { after: Some(vm.clone()), limit: 10 });
    line(&mut file, "vm.delete", &DeleteVm { name: vm.clone() });
    line(&mut file, "worker.list", &ListWorkers::default());
    line(&mut file, "worker.get", &GetWorker { name: "w".parse().unwrap() });
    let of_one = ListEvents { after: 5, limit: 10, vm: Some(uid()), ..ListEvents::default() };
    line(&mut file, "event.list", &of_one);
    let some = ListEvents {
        name: Some(vm.clone()),
        worker: Some("w".parse().unwrap()),
        types: vec![EventType::Failed],
        ..ListEvents::default()
    };
    line(&mut file, "event.list/filter", &some);
    line(&mut file, "connect.open", &OpenTunnel { vm, port: 22 });
    line(&mut file, "controller.info", &GetInfo {});
    line(&mut file, "controller.status", &GetStatus {});
    line(&mut file, "answer/ok", &Answer::Ok(Done {}));
    line(&mut file, "answer/error", &Answer::<Done>::Error(ApiError::new(ErrorCode::NotFound, "no such VM")));
    let ticket = TunnelTicket { endpoint: endpoint(), ticket: Secret::new("t"), uid: uid(), attempt: None };
    line(&mut file, "answer/connect.open/attempt", &Answer::Ok(TunnelTicket { attempt: Some(3), ..ticket.clone() }));
    line(&mut file, "connect.host", &OpenHost { worker: "w".parse().unwrap(), port: 22 });
    let host = HostTicket { endpoint: endpoint(), ticket: Secret::new("t"), machine_id: "m".into() };
    line(&mut file, "answer/connect.host", &Answer::Ok(host));
    line(&mut file, "connect.address", &GetAddress { vm: "a".parse().unwrap() });
    line(&mut file, "answer/connect.address", &Answer::Ok(VmAddress { ip: "10.0.2.15".into(), uid: uid() }));
    line(&mut file, "answer/connect.open", &Answer::Ok(ticket));
    let deletes = Hello { session: session(), info: info(), place: "p".into(), delete_unknown_s: Some(3_600) };
    line(&mut file, "worker/hello/delete-unknown", &deletes);
    line(
        &mut file,
        "worker/hello",
        &Hello { session: session(), info: info(), place: "p".into(), delete_unknown_s: None },
    );
    let welcome = Welcome {
        lease_ms: 15_000,
        heartbeat_ms: 3_000,
        tunnel: endpoint(),
        tunnel_secret: Secret::new("s"),
        assignment: assignment(),
    };
    line(&mut file, "worker/hello/answer", &Answer::Ok(welcome));
    line(
        &mut file,
        "worker/heartbeat",
        &Heartbeat { session: session(), revision: 3, told: None, load: None, digest: None },
    );
    line(
        &mut file,
        "worker/heartbeat/told",
        &Heartbeat { session: session(), revision: 3, told: Some(true), load: None, digest: None },
    );
    let full =
        Heartbeat { session: session(), revision: 3, told: Some(true), load: Some(load()), digest: Some(u64::MAX) };
    line(&mut file, "worker/heartbeat/load", &full);
    let tell_all = HeartbeatAck { revision: 4, tell_all: true };
    line(&mut file, "worker/heartbeat/answer/tell-all", &Answer::Ok(tell_all));
    line(&mut file, "worker/heartbeat/answer", &Answer::Ok(HeartbeatAck { revision: 4, tell_all: false }));
    line(&mut file, "worker/assign", &assignment());
    let message = || "text".to_owned();
    for (name, observation) in [
        ("preparing", Observation::Preparing { message: message() }),
        ("running", Observation::Running { message: message(), ready: true, generation: 1, image_fqn: None }),
        (
            "running/image",
            Observation::Running {
                message: message(),
                ready: true,
                generation: 1,
                image_fqn: Some("i@sha256:ab".into()),
            },
        ),
        ("halted", Observation::Failed { message: message(), disk: true, halted: true }),
        ("failed", Observation::Failed { message: message(), disk: true, halted: false }),
        ("stopped", Observation::Stopped { message: message() }),
        ("fenced", Observation::Fenced { message: message() }),
        ("absent", Observation::Absent),
        ("stray", Observation::Stray { name: "a".into(), running: None }),
        ("stray/running", Observation::Stray { name: "a".into(), running: Some(true) }),
    ] {
        let report = Report { session: session(), uid: uid(), attempt: 2, boot: 1, observation };
        line(&mut file, &format!("worker/report/{name}"), &report);
    }
    let said = |time| vec![LogLine { stream: LogStream::Stdout, text: "hello".into(), time }];
    let time = Some(Timestamp::from_millis(1_700_000_000_123));
    let mut log = LogLines { session: session(), uid: uid(), attempt: 2, boot: 1, first: 9, lines: said(None) };
    line(&mut file, "worker/log", &log);
    log.lines = said(time);
    line(&mut file, "worker/log/with-time", &log);
    let of_vm = EventObject::Vm { name: "a".parse().unwrap(), uid: uid(), attempt: 2 };
    line(&mut file, "event/vm", &event(EventType::Log, of_vm.clone()));
    let late = Event { said_at: time, ..event(EventType::Log, of_vm.clone()) };
    line(&mut file, "event/vm/late", &late);
    line(&mut file, "event/worker", &event(EventType::Online, EventObject::Worker { name: "w".parse().unwrap() }));
    let page = EventPage { events: vec![event(EventType::Created, of_vm)], next: 7, last: 7, first_kept: 1 };
    line(&mut file, "answer/event.list", &Answer::Ok(page));

    let placed = CreateVm {
        name: "a".parse().unwrap(),
        spec: VmSpec { image: "i".into(), priority: -1, ttl_s: 60, ..VmSpec::default() },
        key: None,
    };
    line(&mut file, "vm.create/placed", &placed);
    line(&mut file, "vm.explain", &ExplainVm { name: placed.name.clone() });
    let explained = Explained {
        name: placed.name,
        status: VmStatus::Pending,
        worker: Some("w".parse().unwrap()),
        reason: "r".into(),
        workers: 3,
        fitting: 1,
        obstacles: vec![Obstacle { what: "paused".into(), workers: 2 }],
    };
    line(&mut file, "answer/vm.explain", &Answer::Ok(explained));
    line(&mut file, "worker.drain", &DrainWorker { name: "w".parse().unwrap(), deadline_s: Some(60) });
    line(&mut file, "worker.pause", &PauseWorker { name: "w".parse().unwrap() });
    line(&mut file, "worker.resume", &ResumeWorker { name: "w".parse().unwrap() });

    let copy = CopyId { uid: uid(), attempt: 2 };
    let strays = ListStrays { worker: Some("w".parse().unwrap()), after: Some(("w".parse().unwrap(), copy)), limit: 5 };
    line(&mut file, "worker.list-strays", &strays);
    let stray = StrayView { worker: "w".parse().unwrap(), id: copy, name: "a".into(), running: true, deleting: false };
    line(&mut file, "answer/worker.list-strays", &Answer::Ok(StrayPage { strays: vec![stray], more: true }));
    line(&mut file, "worker.delete-stray", &DeleteStray { name: "w".parse().unwrap(), copy });
    line(&mut file, "cluster-settings.get", &GetSettings {});
    let policy: HostDirPolicy = "/srv:ro".parse().unwrap();
    let set = SetSettings {
        profile: Some(Profile::DistributeLoad),
        cpu_overcommit: Some(2),
        host_dir_policies: Some(Vec::new()),
        add_host_dir_policies: vec![policy.clone()],
    };
    line(&mut file, "cluster-settings.set", &set);
    let settings = ClusterSettings { host_dir_policies: vec![policy], ..ClusterSettings::default() };
    line(&mut file, "answer/cluster-settings.get", &Answer::Ok(settings));
    let shared = VmSpec { image: "i".into(), host_dirs: vec!["a:/srv/x:ro".parse().unwrap()], ..VmSpec::default() };
    line(&mut file, "vm.create/host-dirs", &CreateVm { name: "a".parse().unwrap(), spec: shared, key: None });

    images(&mut file);
    access(&mut file);
    answers::add(&mut file);
    file
}

#[test]
fn the_bytes_of_every_message_are_as_written_down() {
    let file = samples().lines;
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas/messages.txt");
    if std::env::var_os("ORCHARD_UPDATE_SCHEMAS").is_some() {
        std::fs::write(&path, &file).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    for (now, then) in file.lines().zip(written.lines()) {
        assert_eq!(now, then, "the wire has changed; add fields with defaults, never change what is there");
    }
    assert_eq!(file.lines().count(), written.lines().count(), "a message was added or removed");
}

#[test]
fn fields_and_events_of_a_newer_release_are_read_over() {
    let newer = serde_json::json!({"name": "a", "spec": {"image": "i", "gpu_model": "x"}, "priority": 3});
    let read: CreateVm = decode(&rmp_serde::to_vec_named(&newer).unwrap()).unwrap();
    assert_eq!(read.spec.image, "i");
    let newer = serde_json::json!({"number": 1, "time": "2026-01-01T00:00:00Z", "type": "migrated",
        "object": {"kind": "worker", "name": "w"}, "reason": {"x": 1}});
    let read: Event = decode(&rmp_serde::to_vec_named(&newer).unwrap()).unwrap();
    assert_eq!(read.kind, EventType::Unknown);
    let newer = serde_json::json!({"error": {"code": "teapot", "message": "m", "hint": "h"}});
    let read: Answer<Done> = decode(&rmp_serde::to_vec_named(&newer).unwrap()).unwrap();
    assert_eq!(read, Answer::Error(ApiError::new(ErrorCode::Internal, "m")));
}
