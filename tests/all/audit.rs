//! The audit trail: who did what from where, numbered, kept and published.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use orchard::broker::stamp::CLIENT_ADDRESS;
use orchard::bus::access::ListAudit;
use orchard::bus::client::{Bus, Login, Trust};
use orchard::bus::message::{
    CreateVm, DeleteVm, GetInfo, Heartbeat, HeartbeatAck, ListVms, ListWorkers, decode, encode,
};
use orchard::bus::subject::{self, WorkerVerb};
use orchard::controller::{BusSource, Controller};
use orchard::identity::{new_token, tls};
use orchard::model::SessionId;
use orchard::model::access::Role;
use orchard::model::audit::{AuditRecord, AuditType, CONTROLLER, Outcome};
use orchard::model::error::ErrorCode;
use orchard::model::vm::VmSpec;
use orchard::tunnel::Transport;
use orchard::tunnel::header::WorkerHello;
use orchard::tunnel::worker::{LinkOptions, WorkerLink};
use tokio::io::AsyncReadExt;

use crate::harness::{Access, Cluster, LIMIT, any_port, controller_options};
use crate::tunnel::rights;
use crate::tunnel::world::Guests;
use crate::wait::until;

async fn trail(access: &Access) -> Vec<AuditRecord> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = access.call(&ListAudit { after, limit: 0 }).await.unwrap();
        all.extend(page.records);
        if page.next >= page.last {
            return all;
        }
        after = page.next;
    }
}

/// The first record that `wanted` says yes to.
async fn find(access: &Access, wanted: impl Fn(&AuditRecord) -> bool) -> AuditRecord {
    until("the record", LIMIT, || async {
        let all = trail(access).await;
        all.iter().find(|record| wanted(record)).cloned().ok_or(all)
    })
    .await
}

/// Whether `address` is the exact one of a connection from this machine.
fn is_loopback(address: &str) -> bool {
    address.parse().is_ok_and(|peer: std::net::SocketAddr| peer.ip().is_loopback() && peer.port() != 0)
}

fn vm(name: &str) -> CreateVm {
    CreateVm { name: name.parse().unwrap(), spec: VmSpec { image: "any".into(), ..VmSpec::default() }, key: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_done_failed_and_refused_are_recorded_and_mere_reading_is_not() {
    let cluster = Cluster::start().await;
    let auditor = rights::account(&cluster, "auditor", &[Role::AdminRead]).await;
    let reader = rights::account(&cluster, "reader", &[Role::ComputeRead]).await;
    cluster.access.call(&vm("one")).await.unwrap();
    assert_eq!(cluster.access.call(&vm("one")).await.unwrap_err().code, ErrorCode::Conflict);
    reader.call(&ListVms::default()).await.unwrap();
    assert!(reader.call(&vm("two")).await.is_err());
    cluster.access.call(&DeleteVm { name: "one".parse().unwrap() }).await.unwrap();

    let of = |verb: &'static str, outcome| move |record: &AuditRecord| record.verb == verb && record.outcome == outcome;
    let made = find(&auditor, of("vm.create", Outcome::Done)).await;
    assert_eq!((made.kind, made.account.as_str()), (AuditType::Request, "bootstrap-admin"));
    assert_eq!(made.target, "one");
    assert!(made.message.starts_with("uid ") && made.message.ends_with("image any"), "{made:?}");
    assert!(is_loopback(&made.address), "{made:?}");
    let failed = find(&auditor, of("vm.create", Outcome::Failed)).await;
    assert!(failed.target == "one" && failed.message.contains("already"), "{failed:?}");
    let refused = find(&auditor, of("vm.create", Outcome::Refused)).await;
    assert!(refused.account == "reader" && is_loopback(&refused.address), "{refused:?}");
    assert_eq!(refused.target, "two", "out of the request, which the broker did not pass on");
    find(&auditor, of("vm.delete", Outcome::Done)).await;
    let account = find(&auditor, of("service-account.create", Outcome::Done)).await;
    assert_eq!((account.target.as_str(), account.message.as_str()), ("auditor", "roles admin:read, no end"));
    let all = trail(&auditor).await;
    assert!(all.iter().all(|record| record.verb != "vm.list" && record.verb != "audit.list"), "{all:?}");
    assert!(all.iter().map(|record| record.number).eq(1..=u64::try_from(all.len()).unwrap()));
    let ask = reader.bus().await.call(&reader.account, &ListAudit::default(), LIMIT).await;
    assert_eq!(ask.unwrap_err().code, ErrorCode::Forbidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_logins_are_recorded_with_what_was_claimed_and_from_where() {
    let cluster = Cluster::start().await;
    let nobody = cluster.access.of("mallory", &new_token());
    assert_eq!(nobody.try_bus().await.unwrap_err().code, ErrorCode::Unauthenticated);
    let record = find(&cluster.access, |record| record.kind == AuditType::LoginFailed).await;
    assert_eq!((record.account.as_str(), record.outcome), ("mallory", Outcome::Refused));
    let peer: std::net::SocketAddr = record.address.parse().unwrap();
    assert!(peer.ip().is_loopback() && peer.port() != 0 && !record.message.is_empty(), "{record:?}");
    assert!(!format!("{record:?}").contains(nobody.token.expose()));
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_and_tunnels_are_recorded() {
    let (cluster, user) = rights::cluster().await;
    let joined = find(&cluster.access, |record| record.kind == AuditType::Join).await;
    assert_eq!((joined.target.as_str(), joined.outcome), ("w1", Outcome::Done));
    assert!(joined.account.starts_with("join/") && is_loopback(&joined.address), "{joined:?}");

    let ticket = rights::ticket(&user).await.unwrap();
    let (client, mut stream) = rights::redeem(&ticket).await.unwrap();
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).await.unwrap();
    drop(stream);
    assert!(rights::redeem(&ticket).await.is_err());
    client.close().await;
    let is = |kind, outcome| move |record: &AuditRecord| record.kind == kind && record.outcome == outcome;
    let opened = find(&cluster.access, is(AuditType::TunnelOpened, Outcome::Done)).await;
    assert_eq!((opened.account.as_str(), opened.target.as_str()), ("user", "box:22"));
    let peer: std::net::SocketAddr = opened.address.parse().unwrap();
    assert!(peer.ip().is_loopback() && peer.port() != 0);
    let closed = find(&cluster.access, is(AuditType::TunnelClosed, Outcome::Done)).await;
    assert_eq!((&closed.account, &closed.target, &closed.address), (&opened.account, &opened.target, &opened.address));
    assert!(closed.message.contains("bytes to the VM") && closed.message.contains(" s"), "{closed:?}");
    let refused = find(&cluster.access, is(AuditType::TunnelOpened, Outcome::Refused)).await;
    assert!(refused.message.contains("unknown or was used already"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_go_on_without_a_gap_after_a_restart() {
    let Cluster { access, controller, dir, .. } = Cluster::start().await;
    for n in 0..20 {
        access.call(&vm(&format!("a{n}"))).await.unwrap();
    }
    controller.shutdown().await;
    let options = controller_options(&dir.path().join("controller"));
    // A reading that was under way at the end of the first may hold the store for a moment.
    let controller = until("the store", LIMIT, || Controller::start(options.clone())).await;
    let trust = controller.fingerprint().map_or(Trust::Plain, Trust::Certificate);
    let access = Access { url: controller.bus_url().to_owned(), trust, ..access };
    for n in 0..20 {
        access.call(&vm(&format!("b{n}"))).await.unwrap();
    }
    let all = trail(&access).await;
    assert!(all.iter().map(|record| record.number).eq(1..=u64::try_from(all.len()).unwrap()), "{all:?}");
    assert_eq!(all.iter().filter(|record| record.verb == "vm.create").count(), 40);
    controller.shutdown().await;
}

/// A client as anybody would write it.
async fn stock(access: &Access) -> async_nats::Client {
    let user = access.account.to_string();
    let inbox = subject::inbox(&user);
    let Trust::Certificate(fingerprint) = access.trust else { panic!("no TLS") };
    let config = tls::client_config(fingerprint, &[]).unwrap();
    async_nats::ConnectOptions::with_user_and_password(user, access.token.expose().to_owned())
        .custom_inbox_prefix(inbox)
        .tls_client_config(config)
        .require_tls(true)
        .connect(&access.url)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_with_admin_read_follows_the_trail_and_one_with_compute_read_cannot() {
    let cluster = Cluster::start().await;
    let auditor = stock(&rights::account(&cluster, "auditor", &[Role::AdminRead]).await).await;
    let reader = stock(&rights::account(&cluster, "reader", &[Role::ComputeRead]).await).await;
    let mut followed = auditor.subscribe("orchard.v1.events.audit.>").await.unwrap();
    let mut forbidden = reader.subscribe("orchard.v1.events.audit.>").await.unwrap();
    auditor.flush().await.unwrap();
    reader.flush().await.unwrap();
    for n in 0..5 {
        cluster.access.call(&vm(&format!("vm{n}"))).await.unwrap();
    }
    let mut numbers = Vec::new();
    while numbers.len() < 5 {
        let message = tokio::time::timeout(LIMIT, followed.next()).await.unwrap().unwrap();
        let record: AuditRecord = decode(&message.payload).unwrap();
        let headers = message.headers.unwrap();
        assert_eq!(headers.get("ce-id").unwrap().as_str(), record.number.to_string());
        let id = headers.get("Nats-Msg-Id").unwrap().as_str();
        assert!(id.ends_with(&format!("-audit-{}", record.number)), "{id}");
        assert_eq!(message.subject.as_str(), subject::audit(&record));
        if record.verb == "vm.create" {
            numbers.push(record.number);
        }
    }
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    reader.flush().await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(forbidden.next()).flatten().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_and_failed_logins_does_not_fill_the_trail() {
    let cluster = Cluster::start().await;
    let reader = rights::account(&cluster, "reader", &[Role::ComputeRead]).await;
    let client = stock(&reader).await;
    let forbidden = subject::api(&reader.account, "vm", "create");
    let started = Instant::now();
    for _ in 0..5_000 {
        client.publish(forbidden.clone(), "".into()).await.unwrap();
    }
    client.flush().await.unwrap();
    for _ in 0..40 {
        let _ = cluster.access.of("nobody", &reader.token).try_bus().await;
    }
    cluster.access.call(&vm("after")).await.unwrap();
    find(&cluster.access, |record| record.target == "after").await;
    // The flood is sent, and may still be read.
    let refused = async || {
        let all = trail(&cluster.access).await;
        all.iter().filter(|record| record.outcome == Outcome::Refused).count()
    };
    until("the refusals", LIMIT, || async {
        let refused = refused().await;
        if refused >= 20 { Ok(()) } else { Err(refused) }
    })
    .await;
    // Whatever waits before this to be recorded.
    cluster.access.call(&vm("last")).await.unwrap();
    find(&cluster.access, |record| record.target == "last").await;
    let refused = refused().await;
    // Each of the two sources has some at once, and one more every ten seconds.
    let most = 50 + 2 * usize::try_from(started.elapsed().as_secs() / 10).unwrap();
    assert!(refused <= most, "{refused} records");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_accounts_flood_of_requests_does_not_delay_anothers() {
    const FLOOD: usize = 5_000;
    let cluster = Cluster::start().await;
    let flooder = rights::account(&cluster, "flooder", &[Role::ComputeRead]).await;
    let user = rights::account(&cluster, "user", &[Role::ComputeRead]).await;
    let bus = user.bus().await;
    let client = stock(&flooder).await;
    let mut answers = client.subscribe(format!("{}.>", subject::inbox("flooder"))).await.unwrap();
    let (to, request) = (subject::api(&flooder.account, "controller", "info"), encode(&GetInfo {}).unwrap());
    let started = Instant::now();
    for n in 0..FLOOD {
        let reply = format!("{}.{n}", subject::inbox("flooder"));
        client.publish_with_reply(to.clone(), reply, request.clone().into()).await.unwrap();
    }
    let quick = Duration::from_secs(20);
    bus.call(&user.account, &ListVms::default(), quick).await.unwrap();
    for _ in 0..FLOOD {
        tokio::time::timeout(LIMIT, answers.next()).await.unwrap().unwrap();
    }
    let is_limit = |record: &AuditRecord| record.message.contains("requests under way");
    let first = find(&cluster.access, is_limit).await;
    assert_eq!((first.account.as_str(), first.verb.as_str()), ("flooder", "controller.info"));
    let told = trail(&cluster.access).await.iter().filter(|record| is_limit(record)).count();
    // One at once, and one for each minute that it has lasted.
    let most = 2 + usize::try_from(started.elapsed().as_secs() / 60).unwrap();
    assert!(told <= most, "{told} records of one flood");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_key_that_is_refused_is_recorded_by_the_key() {
    let cluster = Cluster::start().await;
    let pair = nkeys::KeyPair::new_user();
    let login = Login::Key(orchard::model::secret::Secret::new(pair.seed().unwrap()));
    assert!(Bus::connect(cluster.access.options("worker/w9", login)).await.is_err());
    let record = find(&cluster.access, |record| record.kind == AuditType::LoginFailed).await;
    assert!(format!("{record:?}").contains(&pair.public_key()), "{record:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_recorded_with_the_address_of_its_own_connection_whatever_its_headers_say() {
    let cluster = Cluster::start().await;
    let ann = rights::account(&cluster, "ann", &[Role::ComputeWrite]).await;
    let (first, second) = (stock(&ann).await, stock(&ann).await);
    for (client, names) in [(&first, ["a0", "a1"]), (&second, ["b0", "b1"])] {
        for name in names {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(CLIENT_ADDRESS, "203.0.113.1:1");
            let to = subject::api(&ann.account, "vm", "create");
            let request = encode(&vm(name)).unwrap();
            client.request_with_headers(to, headers, request.into()).await.unwrap();
        }
    }
    let mut addresses = Vec::new();
    for name in ["a0", "a1", "b0", "b1"] {
        let made = find(&cluster.access, |record| record.verb == "vm.create" && record.target == name).await;
        assert!(is_loopback(&made.address), "{made:?}");
        addresses.push(made.address);
    }
    assert!(
        addresses[0] == addresses[1] && addresses[2] == addresses[3] && addresses[0] != addresses[2],
        "{addresses:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_no_text_do_not_cut_the_controller_off() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let source = BusSource::Embedded { listen: any_port(), tls: false, host: None };
    let token = new_token();
    let cluster = Cluster::start_on(source, token.clone()).await;
    let stream = tokio::net::TcpStream::connect(cluster.controller.bus_addr().unwrap()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let user = cluster.access.account.to_string();
    let connect = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true,\"user\":\"{user}\",\"pass\":\"{}\"}}\r\nSUB {}.> 1\r\n",
        token.expose(),
        subject::inbox(&user)
    );
    stream.write_all(connect.as_bytes()).await.unwrap();
    let request = encode(&GetInfo {}).unwrap();
    let headers = b"NATS/1.0\r\nA: \xff\r\n\r\n";
    let to = subject::api(&cluster.access.account, "controller", "info");
    let line = format!("HPUB {to} {}.1 {} {}\r\n", subject::inbox(&user), headers.len(), headers.len() + request.len());
    stream.write_all(&[line.as_bytes(), headers, &request, b"\r\n"].concat()).await.unwrap();
    let answered = async {
        let mut line = Vec::new();
        while !line.starts_with(b"MSG") && !line.starts_with(b"HMSG") {
            line.clear();
            assert!(stream.read_until(b'\n', &mut line).await.unwrap() > 0, "closed");
        }
    };
    tokio::time::timeout(LIMIT, answered).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_controller_does_by_itself_is_recorded_as_its_own() {
    let cluster = Cluster::start().await;
    let restored = find(&cluster.access, |record| record.verb == "service-account.restore").await;
    assert_eq!((restored.account.as_str(), restored.target.as_str()), (CONTROLLER, "bootstrap-admin"));
    assert!(restored.message.contains("before: there was none"), "{restored:?}");
    let made = cluster.controller.create_join_token(Duration::from_secs(60), 3, None).await.unwrap();
    let record = find(&cluster.access, |record| record.target == made.id).await;
    assert_eq!((record.account.as_str(), record.verb.as_str()), (CONTROLLER, "bootstrap-token.create"));
    assert!(record.message.starts_with("for 60 s until ") && record.message.contains("3 uses"), "{record:?}");
    assert!(!format!("{record:?}").contains(made.secret.expose()));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_refused_are_recorded() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", std::sync::Arc::new(orchard::worker::runtime::synthetic::Synthetic::new())).await;
    until("the worker", LIMIT, || async {
        let workers = cluster.access.call(&ListWorkers::default()).await.unwrap().workers;
        if workers.iter().any(|view| view.connectable) { Ok(()) } else { Err(format!("{workers:?}")) }
    })
    .await;
    // Another process with the same key, in a session that is not the open one.
    let options = cluster.access.join(&"w1".parse().unwrap(), &cluster.worker_dir("w1")).await;
    let bus = Bus::connect(options).await.unwrap();
    let beat = Heartbeat { session: SessionId(uuid::Uuid::nil()), revision: 1, told: None, load: None, digest: None };
    let to = subject::worker(&"w1".parse().unwrap(), WorkerVerb::Heartbeat);
    let refused = bus.request::<_, HeartbeatAck>(to, &beat, LIMIT).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    let record = find(&cluster.access, |record| record.verb == "worker.heartbeat").await;
    assert_eq!((record.account.as_str(), record.outcome), ("worker/w1", Outcome::Refused));
    assert!(is_loopback(&record.address) && record.message.contains("is not open here"), "{record:?}");
    // Somebody who says, on the way for tunnels, that it is this worker.
    let worker = "w1".parse().unwrap();
    let hello = WorkerHello { worker, session: SessionId(uuid::Uuid::nil()), secret: new_token(), proof: None };
    let options = LinkOptions {
        address: cluster.controller.tunnel_addr().into(),
        fingerprint: cluster.controller.fingerprint().unwrap(),
        hello,
        key: None,
        transport: Transport::default(),
    };
    let _link = WorkerLink::start(options, std::sync::Arc::new(Guests));
    let record = find(&cluster.access, |record| record.verb == "tunnel").await;
    assert_eq!((record.account.as_str(), record.kind), ("worker/w1", AuditType::LoginFailed));
    assert!(record.stranger && is_loopback(&record.address), "{record:?}");
}
