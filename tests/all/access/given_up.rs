//! Workers that are taken out of the cluster while their machine goes on: what becomes of its VMs and of its process, and
//! who is the worker when its data folder was copied.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use orchard::bus::access::DeleteWorker;
use orchard::bus::client::{Bus, BusOptions};
use orchard::bus::message::{Hello, ListEvents, ListWorkers, Welcome};
use orchard::bus::subject::{self, WorkerVerb};
use orchard::controller::BusSource;
use orchard::controller::cluster::Timing;
use orchard::identity::new_token;
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::event::EventType;
use orchard::model::worker::{WorkerInfo, WorkerState};
use orchard::model::{CopyId, SessionId, VmUid, WorkerName};
use orchard::worker::GIVE_UP_AFTER;
use orchard::worker::join::Candidate;
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::host::SyntheticHost;
use orchard::worker::runtime::{CopySpec, Progress, Runtime};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use uuid::Uuid;

use crate::harness::{Cluster, LIMIT, TIMING, any_port, info};
use crate::processes::within;
use crate::wait::until;

fn name(text: &str) -> WorkerName {
    text.parse().unwrap()
}

async fn delete(cluster: &Cluster, worker: &str) {
    cluster.access.call(&DeleteWorker { name: name(worker), force: true }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_comes_back_stops_what_was_given_up_and_keeps_what_nobody_knows() {
    let mut cluster = Cluster::start().await;
    let host = Arc::new(SyntheticHost::default());
    let runtime = || Arc::new(Synthetic::on(host.clone()));
    cluster.add_worker("w", runtime()).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let given_up = host.found()[0].id;
    // One that this controller has never heard of, as after a restored backup.
    let unknown = CopyId { uid: VmUid(Uuid::from_u128(7)), attempt: 0 };
    let spec = CopySpec { id: unknown, name: "b".parse().unwrap(), spec: Default::default(), cpu: 1, memory: 1 };
    runtime().create(&spec, &Progress::new().0).await.unwrap();
    runtime().start(&spec).await.unwrap();

    delete(&cluster, "w").await;
    let there = |id| host.found().iter().any(|found| found.id == id);
    assert!(there(given_up), "whoever is not let in any more leaves its VMs alone");
    for worker in cluster.workers.drain(..) {
        assert!(worker.revoked().await.to_string().contains("orchard get bootstrap-token"));
        worker.shutdown().await;
    }
    cluster.add_worker("w", runtime()).await;
    until("what was given up to go", LIMIT, || async { if there(given_up) { Err(host.found()) } else { Ok(()) } })
        .await;
    let told = until("the stray to be told of", LIMIT, || async {
        let events = cluster.access.call(&ListEvents::default()).await.unwrap().events;
        let stray =
            |id: CopyId| events.iter().any(|e| e.kind == EventType::Stray && e.message.contains(&id.to_string()));
        if stray(unknown) { Ok(events) } else { Err(()) }
    });
    let told = told.await;
    assert!(told.iter().any(|event| event.message.contains("given up")), "{told:?}");
    assert!(there(unknown), "what nobody gave up is kept");
}

/// `orchard worker run` as a process, once it runs; and how it will log in.
async fn process(cluster: &Cluster, folder: &Path) -> tokio::process::Child {
    let token = cluster.access.bootstrap_token().await.to_text();
    let mut command = within(&[]);
    command.env("ORCHARD_HOME", folder).args([
        "worker",
        "run",
        "--name",
        "w",
        "--runtime",
        "synthetic",
        "--give-up-after",
        "1s",
    ]);
    command.args(["--bootstrap-token", token.expose()]).arg("--data-dir").arg(folder.join("data"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).await.unwrap();
    assert!(line.contains("runs and keeps itself joined"), "{line}");
    until("the worker to be online", LIMIT, || async {
        let workers = cluster.access.call(&ListWorkers::default()).await.unwrap().workers;
        let online = workers.iter().any(|seen| seen.state == WorkerState::Online);
        if online { Ok(()) } else { Err(workers) }
    })
    .await;
    child
}

/// It must end by itself, with code 1, and say how to come back.
async fn gives_up(mut child: tokio::process::Child) {
    let mut said = String::new();
    let ended = async {
        child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(LIMIT, ended).await.expect("it goes on for ever");
    assert_eq!(status.code(), Some(1), "{said}");
    for hint in ["error: worker w is not let in", "Its VMs go on", "orchard get bootstrap-token"] {
        assert!(said.contains(hint), "{hint}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_deleted_while_it_runs_ends_and_says_how_to_come_back() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let child = process(&cluster, dir.path()).await;
    delete(&cluster, "w").await;
    gives_up(child).await;
    // A supervisor that starts it with a new token brings it back.
    process(&cluster, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_key_was_replaced_ends_too() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let child = process(&cluster, dir.path()).await;
    let machine_id = std::fs::read_to_string(dir.path().join("data/machine-id")).unwrap();
    let made = cluster.controller.create_join_token(LIMIT, 1, Some(name("w"))).await.unwrap();
    let token = orchard::config::join::BootstrapToken {
        url: cluster.access.url.clone(),
        fingerprint: made.fingerprint.map(|print| print.parse().unwrap()),
        id: made.id.parse().unwrap(),
        secret: made.secret,
    };
    let data_dir = cluster.worker_dir("second");
    orchard::identity::make_private_dir(&data_dir).unwrap();
    let candidate = Candidate {
        data_dir: &data_dir,
        name: Some(name("w")),
        default_name: None,
        machine_id: machine_id.trim(),
        token: Some(token),
    };
    candidate.become_member().await.unwrap();
    gives_up(child).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_controller_is_silent_goes_on() {
    // Takes connections and says nothing: no controller, and nobody who says that the worker is not let in.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut cluster = Cluster::start().await;
    let login = cluster.access.join(&name("w"), &cluster.worker_dir("w")).await;
    let url = login
        .url
        .replace(&cluster.controller.bus_addr().unwrap().to_string(), &silent.local_addr().unwrap().to_string());
    assert_ne!(url, login.url);
    let bus = Bus::connect(BusOptions { url, patient: true, ..login }).await.unwrap();
    let mut shut_out = std::pin::pin!(bus.shut_out(Duration::ZERO));
    for _ in 0..3 {
        tokio::select! {
            _ = &mut shut_out => panic!("nobody has said so"),
            tried = silent.accept() => drop(tried.unwrap()),
        }
    }
    // And one that nobody listens for at all.
    drop(silent);
    cluster.add_worker("x", Arc::new(Synthetic::new())).await;
    assert!(futures_util::FutureExt::now_or_never(shut_out).is_none());
    assert!(futures_util::FutureExt::now_or_never(cluster.workers[0].revoked()).is_none());
}

/// A connection with the key of worker `w`, as a copy of its data folder has it.
async fn copied_key(cluster: &Cluster) -> Bus {
    let data_dir = &cluster.worker_dir("w");
    let candidate = Candidate { data_dir, name: None, default_name: None, machine_id: "test-w", token: None };
    Bus::connect(candidate.become_member().await.unwrap().bus()).await.unwrap()
}

/// What the controller answers when `copy` registers from `place`.
async fn hello(copy: &Bus, info: WorkerInfo, place: &str) -> Result<Welcome, ApiError> {
    let hello = Hello { session: SessionId(Uuid::now_v7()), info, place: place.into(), delete_unknown_s: None };
    copy.request(subject::worker(&name("w"), WorkerVerb::Hello), &hello, LIMIT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_folder_does_not_take_the_worker_from_the_machine_that_is_heard() {
    let bus = BusSource::Embedded { listen: any_port(), tls: true, host: None };
    // It is heard all the while, however late a beat of a busy machine comes.
    let timing = Timing { unseen: Duration::from_secs(30), ..TIMING };
    let mut cluster = Cluster::start_with(bus, new_token(), timing).await;
    let runtime = Arc::new(Synthetic::new());
    cluster.add_worker("w", runtime.clone()).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let copy = copied_key(&cluster).await;
    let own = info(&name("w"), &*runtime);
    for _ in 0..20 {
        let refused = hello(&copy, own.clone(), "copy").await.unwrap_err();
        assert!(refused.code == ErrorCode::Unavailable && refused.message.contains("machine-id"), "{refused}");
    }
    let refused = hello(&copy, WorkerInfo { machine_id: "other".into(), ..own }, "copy").await.unwrap_err();
    assert!(refused.code == ErrorCode::Conflict && refused.message.contains("is a copy"), "{refused}");
    let online = cluster.access.call(&ListEvents::default()).await.unwrap().events;
    assert_eq!(online.iter().filter(|event| event.kind == EventType::Online).count(), 1);
    cluster.run(&["ssh", "vm", "a", "true"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_folder_does_not_take_the_vms_of_a_worker_that_is_stopped_for_long() {
    let mut cluster = Cluster::start().await;
    let host = Arc::new(SyntheticHost::default());
    cluster.add_worker("w", Arc::new(Synthetic::on(host.clone()))).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let before = host.found();
    cluster.workers.remove(0).shutdown().await;
    let own = info(&name("w"), &Synthetic::on(host.clone()));
    let copy = copied_key(&cluster).await;
    until("the lease to be over", LIMIT, || async {
        let refused = hello(&copy, own.clone(), "another.start.disk.folder").await.unwrap_err();
        if refused.code == ErrorCode::Conflict { Ok(refused) } else { Err(refused) }
    })
    .await;
    let refused = hello(&copy, own, "").await.unwrap_err();
    assert!(refused.code == ErrorCode::Conflict && refused.message.contains("orchard delete worker w"), "{refused}");
    cluster.add_worker("w", Arc::new(Synthetic::on(host.clone()))).await;
    cluster.run(&["ssh", "vm", "a", "true"]).await;
    assert_eq!(host.found(), before, "it still is the same copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_worker_goes_on_until_its_time_is_over() {
    let cluster = Cluster::start().await;
    let login = cluster.access.join(&name("w"), &cluster.worker_dir("w")).await;
    let bus = Bus::connect(BusOptions { patient: true, ..login }).await.unwrap();
    delete(&cluster, "w").await;
    // The quick rule of the commands says when there were enough refusals; a worker does not end yet.
    tokio::time::timeout(LIMIT, bus.shut_out(Duration::ZERO)).await.expect("it is refused");
    assert!(futures_util::FutureExt::now_or_never(bus.shut_out(GIVE_UP_AFTER)).is_none());
    let soon = tokio::time::timeout(LIMIT, bus.shut_out(Duration::from_secs(1))).await.expect("it is refused for long");
    assert!(soon.message.contains("orchard get bootstrap-token"), "{soon}");
    assert!(futures_util::FutureExt::now_or_never(bus.shut_out(GIVE_UP_AFTER)).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_refuses_in_plain_text_does_not_make_a_worker_end() {
    let cluster = Cluster::start().await;
    let login = cluster.access.join(&name("w"), &cluster.worker_dir("w")).await;
    let own = cluster.controller.bus_addr().unwrap().to_string();
    let info = r#"INFO {"server_id":"x","version":"2","max_payload":1024,"nonce":"x"}"#;
    let refusal = "-ERR 'Authorization Violation'\r\n";
    // All of it before TLS, in which they could not show the certificate.
    let says = async |words: String| {
        let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = login.url.replace(&own, &stranger.local_addr().unwrap().to_string());
        assert_ne!(url, login.url);
        let bus = Bus::connect(BusOptions { url, patient: true, ..login.clone() }).await.unwrap();
        let mut shut_out = std::pin::pin!(bus.shut_out(Duration::ZERO));
        for _ in 0..5 {
            tokio::select! {
                _ = &mut shut_out => panic!("a stranger was believed: {words}"),
                tried = stranger.accept() => {
                    let mut tried = tried.unwrap().0;
                    let _ = tried.write_all(words.as_bytes()).await;
                    let _ = tried.shutdown().await;
                    // Until the other side has had enough of it.
                    let _ = tokio::time::timeout(LIMIT, tried.read_to_end(&mut Vec::new())).await;
                }
            }
        }
        assert!(futures_util::FutureExt::now_or_never(shut_out).is_none(), "{words}");
    };
    let other = "-ERR 'authorization violation: authorization'\r\n";
    tokio::join!(says(refusal.into()), says(other.into()), says(format!("{info}\r\n{refusal}")));
}
