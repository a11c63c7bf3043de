//! Rights that are taken away cut what is open, through the whole controller: within a second, and with a reason.

use std::sync::Arc;
use std::time::{Duration, Instant};

use orchard::bus::access::{
    CreateAccount, DeleteAccount, DeleteWorker, Expiry, NewToken, RotateAccount, UpdateAccount,
};
use orchard::bus::connect::{OpenTunnel, TunnelTicket};
use orchard::bus::message::{CreateVm, GetVm};
use orchard::model::Timestamp;
use orchard::model::access::{Role, Roles};
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::vm::{VmSpec, VmStatus};
use orchard::tunnel::client::Client;
use orchard::tunnel::stream::TunnelStream;
use orchard::tunnel::{Address, Transport};
use orchard::worker::runtime::synthetic::Synthetic;
use tokio::io::AsyncReadExt;

use crate::harness::{Access, Cluster, LIMIT};
use crate::wait::{PROMPT, until};

/// A cluster with a running VM `box` and the account `user` that may connect.
pub async fn cluster() -> (Cluster, Access) {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    let spec = VmSpec { image: "any".into(), ..VmSpec::default() };
    cluster.access.call(&CreateVm { name: "box".parse().unwrap(), spec, key: None }).await.unwrap();
    let user = account(&cluster, "user", &[Role::ComputeConnect]).await;
    until("the VM", LIMIT, || async {
        let vm = cluster.access.call(&GetVm { name: "box".parse().unwrap() }).await.unwrap();
        if vm.status == VmStatus::Running { Ok(()) } else { Err(vm.status_message) }
    })
    .await;
    until("the way to it", LIMIT, || async { ticket(&user).await.map(drop) }).await;
    (cluster, user)
}

pub async fn account(cluster: &Cluster, name: &str, roles: &[Role]) -> Access {
    let roles: Roles = roles.iter().copied().collect();
    let request =
        CreateAccount { name: name.parse().unwrap(), roles, expires_at: None, token: None, ssh_keys: Vec::new() };
    let NewToken { token, .. } = cluster.access.call(&request).await.unwrap();
    cluster.access.of(name, &token)
}

pub async fn ticket(user: &Access) -> Result<TunnelTicket, ApiError> {
    user.call(&OpenTunnel { vm: "box".parse().unwrap(), port: 22 }).await
}

pub async fn redeem(ticket: &TunnelTicket) -> Result<(Client, TunnelStream), ApiError> {
    let endpoint = &ticket.endpoint;
    let address = Address { host: endpoint.host.clone().unwrap_or_else(|| "127.0.0.1".into()), port: endpoint.port };
    let client = Client::connect(address, endpoint.fingerprint.parse().unwrap(), Transport::default()).await?;
    let stream = client.open(&ticket.ticket, LIMIT).await?;
    Ok((client, stream))
}

/// A stream into the VM over which its SSH server has spoken.
async fn open(user: &Access) -> (Client, TunnelStream) {
    let (client, mut stream) = redeem(&ticket(user).await.unwrap()).await.unwrap();
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"SSH-");
    (client, stream)
}

/// What ends the stream, which must come at once.
async fn end(stream: &mut TunnelStream, since: Instant) -> String {
    let end = tokio::time::timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(since.elapsed() < PROMPT, "{:?}", since.elapsed());
    end.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_taken_away_an_account_deleted_or_its_token_changed_cut_open_streams() {
    let (cluster, user) = cluster().await;
    let name = user.account();

    let (_client, mut stream) = open(&user).await;
    let unused = ticket(&user).await.unwrap();
    let update = UpdateAccount { name: name.clone(), roles: Some(Roles::default()), expiry: None, ssh_keys: None };
    let started = Instant::now();
    cluster.access.call(&update).await.unwrap();
    assert!(end(&mut stream, started).await.contains("may not connect any more"));
    assert_eq!(redeem(&unused).await.unwrap_err().code, ErrorCode::Forbidden);

    let update = UpdateAccount {
        name: name.clone(),
        roles: Some([Role::ComputeWrite].into_iter().collect()),
        expiry: None,
        ssh_keys: None,
    };
    cluster.access.call(&update).await.unwrap();
    let (_client, mut stream) = open(&user).await;
    let unused = ticket(&user).await.unwrap();
    let started = Instant::now();
    let NewToken { token, .. } = cluster.access.call(&RotateAccount { name: name.clone() }).await.unwrap();
    assert!(end(&mut stream, started).await.contains("token was changed"));
    assert_eq!(redeem(&unused).await.unwrap_err().code, ErrorCode::Unauthenticated);

    let user = cluster.access.of("user", &token);
    let (_client, mut stream) = open(&user).await;
    let unused = ticket(&user).await.unwrap();
    let started = Instant::now();
    cluster.access.call(&DeleteAccount { name }).await.unwrap();
    assert!(end(&mut stream, started).await.contains("may not connect any more"));
    assert_eq!(redeem(&unused).await.unwrap_err().code, ErrorCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_expires_is_cut_although_nothing_else_happens() {
    let (cluster, user) = cluster().await;
    let (_client, mut stream) = open(&user).await;
    // Logged in already, as that may take its time.
    let bus = cluster.access.bus().await;
    let ends_in = Duration::from_secs(5); // the request must be there before
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let end_at = Timestamp::from_millis(i64::try_from((now + ends_in).as_millis()).unwrap());
    let started = Instant::now() + ends_in;
    let update = UpdateAccount { name: user.account(), roles: None, expiry: Some(Expiry::At(end_at)), ssh_keys: None };
    bus.call(&cluster.access.account(), &update, LIMIT).await.unwrap();
    assert!(end(&mut stream, started).await.contains("has expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_worker_loses_its_data_path() {
    let (cluster, user) = cluster().await;
    let (_client, mut stream) = open(&user).await;
    let started = Instant::now();
    cluster.access.call(&DeleteWorker { name: "w1".parse().unwrap(), force: true }).await.unwrap();
    assert!(end(&mut stream, started).await.contains("worker"));
}
