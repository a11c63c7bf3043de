//! Messages that the protocol allows and clients stumble over: nobody may cut the controller's own connections with them.

use orchard::bus::client::Login;
use orchard::bus::message::{ListVms, encode};
use orchard::bus::subject::{self, WorkerVerb};
use orchard::controller::BusSource;
use orchard::controller::cluster::Timing;
use orchard::identity::new_token;
use orchard::model::access::Role;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::floods::Flooder;
use super::people::account;
use crate::harness::{Cluster, LIMIT, any_port};
use crate::wait;

const REPLIES: [&[u8]; 5] = [b"x\xff", b"x\x0by", b"x\x0cy", "x\u{85}y".as_bytes(), "x\u{2003}y".as_bytes()];

/// Sends one request with each of [`REPLIES`], and yields what the broker says to them.
async fn poison(cluster: &Cluster, who: &Flooder) -> Vec<String> {
    let stream = TcpStream::connect(cluster.controller.bus_addr().unwrap()).await.unwrap();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let info = lines.next_line().await.unwrap().unwrap();
    let mut frames = who.connect(&info).into_bytes();
    for reply in REPLIES {
        let begin = format!("PUB {} {}.", who.subject, subject::inbox(&who.user));
        let end = format!(" {}\r\n", who.payload.len());
        frames.extend([begin.as_bytes(), reply, end.as_bytes(), &who.payload, b"\r\n"].concat());
    }
    frames.extend_from_slice(b"PING\r\n");
    write.write_all(&frames).await.unwrap();
    let mut said = Vec::new();
    loop {
        match lines.next_line().await.unwrap().unwrap().as_str() {
            "PONG" => return said,
            line => said.push(line.to_owned()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_reply_subject_of_an_account_a_worker_or_a_join_token_cuts_the_controllers_connections() {
    let source = BusSource::Embedded { listen: any_port(), tls: false, host: None };
    let cluster = Cluster::start_with(source, new_token(), Timing::default()).await;
    let thief = "thief".parse().unwrap();
    let stolen = cluster.access.join(&thief, &cluster.worker_dir("thief")).await;
    let low = account(&cluster, "low", &[Role::ComputeRead]).await;
    let other = account(&cluster, "other", &[Role::ComputeRead]).await;
    let made = cluster.controller.create_join_token(LIMIT, 1, None).await.unwrap();
    let id = made.id.parse().unwrap();
    let of =
        |user: String, login, subject| Flooder { user, login, subject, payload: encode(&ListVms::default()).unwrap() };
    let mut poisoners = vec![
        of("low".to_owned(), Login::Password(low.token.clone()), subject::api(&low.account, "vm", "list")),
        of(subject::join_user(&id), Login::Password(made.secret), subject::join(&id)),
    ];
    for verb in WorkerVerb::ALL {
        poisoners.push(of(subject::worker_user(&thief), stolen.login.clone(), subject::worker(&thief, verb)));
    }
    let bus = other.bus().await;
    bus.call(&other.account, &ListVms::default(), LIMIT).await.unwrap();
    let before = cluster.controller.bus_stats().unwrap().total_connections;
    for poisoner in &poisoners {
        let said = poison(&cluster, poisoner).await;
        let refused = said.iter().filter(|line| line.contains("Permissions Violation for Publish")).count();
        assert_eq!(refused, REPLIES.len(), "{}: {said:?}", poisoner.user);
        bus.call(&other.account, &ListVms::default(), LIMIT).await.unwrap();
    }
    let after = cluster.controller.bus_stats().unwrap().total_connections;
    assert_eq!(after - before, u64::try_from(poisoners.len()).unwrap(), "somebody had to connect again");
    // What the broker refuses is written down apart from its answers.
    wait::until("the record of a refusal", LIMIT, || async {
        let trail = cluster.run(&["audit", "--output", "json"]).await;
        let told = trail.lines().any(|record| record.contains("low") && record.contains("vm.list"));
        if told { Ok(()) } else { Err(trail) }
    })
    .await;
}
