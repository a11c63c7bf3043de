//! What a create costs that is on the disk before it is answered: against bare LMDB, which syncs once for each, in the same
//! folder and the same run.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use heed::CommitOrAbort;
use heed::types::Bytes;
use orchard::bus::access::CreateAccount;
use orchard::bus::client::{Bus, BusOptions, Login, Trust};
use orchard::bus::message::CreateVm;
use orchard::controller::auth::BOOTSTRAP_ADMIN;
use orchard::controller::cluster::Timing;
use orchard::controller::store::Store;
use orchard::controller::store::writer::{self, Writer};
use orchard::controller::{BusSource, Controller, ControllerOptions};
use orchard::identity;
use orchard::model::access::Roles;
use orchard::model::{AccountName, Clock, VmUid};

use super::ground::{CALL, at, at_least, at_most, millis, spec};

/// Commits of bare LMDB, and creates one after another.
const LONE: usize = 1_500;
/// Creates in the crowd.
const CROWD: usize = 40_000;
/// Callers at once.
const CALLERS: usize = 64;
/// Accounts that they share on the bus.
const ACCOUNTS: usize = 8;
/// What a VM is on the disk, as in `controller::store`.
const RECORD: usize = 600;
/// Each is measured so often, in turns; the median counts, as a neighbour's burst would ruin one.
const ROUNDS: usize = 3;

pub async fn run() {
    println!("durable creates, {CALLERS} at once and alone:");
    let dir = tempfile::tempdir().unwrap();
    let (mut bare, mut stored, mut over_bus, mut lone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let folder = dir.path().join(round.to_string());
        std::fs::create_dir(&folder).unwrap();
        let times = commits(&folder);
        stored.push(through_the_writer(&folder.join("store")).await);
        let (rate, alone) = through_the_bus(&folder.join("controller")).await;
        over_bus.push(rate);
        // Before and after, as disks have their moods.
        bare.push([times, commits(&folder.join("store"))].concat());
        lone.push(alone);
    }
    let rates: Vec<f64> = bare.iter().map(|times| times.len() as f64 / total(times).as_secs_f64()).collect();
    let row = |what: &str, rate: f64, times: &[Duration]| {
        println!("  {what:<50} {rate:>8.0}/s   p50 {:>9.1?}  p99 {:>9.1?}", at(times, 500), at(times, 990));
    };
    for round in 0..ROUNDS {
        row("one synced LMDB commit each, bare", rates[round], &bare[round]);
        row("the writer of the store", stored[round].0, &stored[round].1);
        row("over the bus", over_bus[round].0, &over_bus[round].1);
        let alone = lone[round].len() as f64 / total(&lone[round]).as_secs_f64();
        row("over the bus, one after another", alone, &lone[round]);
    }
    let ratio = |many: &[(f64, Vec<Duration>)]| median(many.iter().zip(&rates).map(|((rate, _), bare)| rate / bare));
    at_least("the writer, as a multiple of one commit each", ratio(&stored), 15.0, "x");
    at_least("over the bus, as a multiple of one commit each", ratio(&over_bus), 4.0, "x");
    let beyond =
        |tail: usize| median(lone.iter().zip(&bare).map(|(lone, bare)| millis(at(lone, 990)) - millis(at(bare, tail))));
    at_most("p99 of a lone create over the bus, beyond the p99 of a commit", beyond(990), 1.0, "ms");
    at_most("p99 of a lone create over the bus, beyond the p50 of a commit", beyond(500), 1.0, "ms");
}

fn total(times: &[Duration]) -> Duration {
    times.iter().sum()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One put and one synced commit, again and again.
#[allow(unsafe_code)] // LMDB maps the file, which is this bench's alone
fn commits(folder: &Path) -> Vec<Duration> {
    let folder = folder.join("bare");
    std::fs::create_dir_all(&folder).unwrap();
    let mut options = heed::EnvOpenOptions::new();
    options.map_size(1 << 30);
    // SAFETY: nobody else has this folder.
    let env = unsafe { options.open(&folder) }.unwrap();
    let txn = env.write_txn().unwrap();
    let made = env.create_databases_and_commit(txn, |open, txn| {
        let table = open.create_database::<Bytes, Bytes>(txn, None)?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(table))
    });
    let CommitOrAbort::Commit(table) = made.unwrap() else { panic!("no table") };
    let record = [7; RECORD];
    let times = (0..LONE as u64).map(|number| {
        let started = Instant::now();
        let mut txn = env.write_txn().unwrap();
        table.put(&mut txn, &number.to_be_bytes(), &record).unwrap();
        txn.commit().unwrap();
        started.elapsed()
    });
    let times = times.collect();
    env.prepare_for_closing().wait();
    times
}

/// Creates by callers of the writer.
async fn through_the_writer(folder: &Path) -> (f64, Vec<Duration>) {
    let store = Store::open(folder).unwrap();
    let (writer, signals, thread) = writer::start(store, Timing::default(), Clock::start()).unwrap();
    let create = |n: usize| {
        let writer = writer.clone();
        async move { create_in(&writer, n).await }
    };
    let result = crowd(create).await;
    drop((writer, signals));
    thread.join().await;
    result
}

async fn create_in(writer: &Writer, n: usize) {
    let request = CreateVm { name: format!("vm-{n}").parse().unwrap(), spec: spec(), key: None };
    let by: AccountName = BOOTSTRAP_ADMIN.parse().unwrap();
    let uid = VmUid(uuid::Uuid::now_v7());
    let step =
        move |step: &mut writer::Step<'_>| step.cluster.create_vm(Some(by), request, uid, step.now, step.changes);
    writer.submit(step).await.unwrap();
}

/// The same from an account's connection on.
async fn through_the_bus(folder: &Path) -> ((f64, Vec<Duration>), Vec<Duration>) {
    let token = identity::new_token();
    let local = "127.0.0.1:0".parse().unwrap();
    let controller = Controller::start(ControllerOptions {
        data_dir: folder.to_owned(),
        bus: BusSource::Embedded { listen: local, tls: true, host: None },
        listen: local,
        tunnel_host: None,
        timing: Timing::default(),
        events_kept: orchard::controller::store::Retention::default(),
        certificate: None,
        jump: None,
        bootstrap_token: Some(token.clone()),
    })
    .await
    .unwrap();
    let login = BusOptions {
        url: controller.bus_url().to_owned(),
        user: BOOTSTRAP_ADMIN.into(),
        trust: controller.fingerprint().map_or(Trust::Plain, Trust::Certificate),
        login: Login::Password(token),
        client_name: "bench".into(),
        patient: false,
    };
    // The controller lets one account do 5,000 things a second, so there are some.
    let mut buses = vec![(BOOTSTRAP_ADMIN.parse().unwrap(), Bus::connect(login.clone()).await.unwrap())];
    for n in 1..ACCOUNTS {
        let name: AccountName = format!("account-{n}").parse().unwrap();
        let request = CreateAccount {
            name: name.clone(),
            roles: Roles::all(),
            expires_at: None,
            token: None,
            ssh_keys: Vec::new(),
        };
        let made = buses[0].1.call(&buses[0].0, &request, CALL).await.unwrap();
        let login = BusOptions { user: name.to_string(), login: Login::Password(made.token), ..login.clone() };
        buses.push((name, Bus::connect(login).await.unwrap()));
    }
    let buses = Arc::new(buses);
    let create = |n: usize| {
        let buses = buses.clone();
        async move {
            let (account, bus) = &buses[if n < CROWD { n % ACCOUNTS } else { 0 }];
            let request = CreateVm { name: format!("vm-{n}").parse().unwrap(), spec: spec(), key: None };
            bus.call(account, &request, CALL).await.unwrap();
        }
    };
    create(usize::MAX).await;
    let mut lone = Vec::new();
    for n in 0..LONE {
        let started = Instant::now();
        create(CROWD + n).await;
        lone.push(started.elapsed());
    }
    let rate = crowd(create).await;
    controller.shutdown().await;
    (rate, lone)
}

/// [`CROWD`] creates, [`CALLERS`] at once: how many a second, and how long each took.
async fn crowd<F: Future<Output = ()>>(create: impl Fn(usize) -> F) -> (f64, Vec<Duration>) {
    let started = Instant::now();
    let timed = |n| {
        let done = create(n);
        async move {
            let started = Instant::now();
            done.await;
            started.elapsed()
        }
    };
    let times: Vec<Duration> =
        futures_util::stream::iter(0..CROWD).map(timed).buffer_unordered(CALLERS).collect().await;
    (CROWD as f64 / started.elapsed().as_secs_f64(), times)
}
