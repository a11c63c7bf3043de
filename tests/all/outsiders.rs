//! What others build on: events and the API in JSON, and the programs of deploy/examples with the stock clients of their
//! languages, which miss no event whatever is killed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt as _;
use orchard::bus::access::{CreateAccount, DeleteAccount, UpdateAccount};
use orchard::bus::client::Bus;
use orchard::bus::message::{CreateVm, DeleteVm, GetInfo, ListEvents, decode};
use orchard::model::access::Role;
use orchard::model::error::ErrorCode;
use orchard::model::event::Event;
use orchard::model::vm::VmSpec;
use orchard::worker::runtime::synthetic::Synthetic;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::harness::{Access, Cluster, LIMIT};
use crate::processes::{self, Server};
use crate::stock::scripts::installed;
use crate::wait::until;

/// An account of `access` that may only read.
async fn reader(access: &Access, name: &str) -> Access {
    let roles = [Role::ComputeRead].into_iter().collect();
    let name = name.parse().unwrap();
    let request = CreateAccount { name, roles, expires_at: None, token: None, ssh_keys: Vec::new() };
    let made = access.call(&request).await.unwrap();
    access.of(made.account.name.as_str(), &made.token)
}

/// Asks in JSON.
async fn ask(bus: &Bus, subject: &str, request: &str) -> Value {
    let reply = bus.raw().request(subject.to_owned(), request.to_owned().into()).await.unwrap();
    serde_json::from_slice(&reply.payload).unwrap()
}

async fn next(subscriber: &mut Subscriber) -> Message {
    tokio::time::timeout(LIMIT, subscriber.next()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_published_in_both_forms_and_is_a_cloud_event_in_either() {
    let cluster = Cluster::start().await;
    let bus = reader(&cluster.access, "re.ader").await.bus().await;
    let mut packed = bus.subscribe("orchard.v1.events.vm.>").await.unwrap();
    let mut json = bus.subscribe("orchard.v1.events-json.vm.>").await.unwrap();
    cluster.run(&["create", "vm", "a.b", "--image", "any"]).await;
    let (packed, json) = (next(&mut packed).await, next(&mut json).await);
    assert_eq!(packed.subject.as_str(), "orchard.v1.events.vm.a%2Eb.created");
    assert_eq!(json.subject.as_str(), "orchard.v1.events-json.vm.a%2Eb.created");
    let event: Event = decode(&packed.payload).unwrap();
    let in_json: Value = serde_json::from_slice(&json.payload).unwrap();
    assert_eq!(in_json, serde_json::to_value(&event).unwrap());
    for (message, kind) in [(packed, "application/msgpack"), (json, "application/json")] {
        let headers = message.headers.unwrap();
        let value = |name: &str| headers.get(name).unwrap().as_str();
        // Numbers begin with 1 in each cluster: by its id they differ from those of another.
        let cluster = value("ce-source").strip_prefix("/orchard/").unwrap();
        assert!(cluster.len() == 36 && value("Nats-Msg-Id").starts_with(&format!("{cluster}-{}", event.number)));
        for (name, expected) in [
            ("ce-specversion", "1.0"),
            ("ce-id", &event.number.to_string()),
            ("ce-type", "orchard.v1.vm.created"),
            ("ce-subject", "a.b"),
            ("ce-time", &event.time.to_string()),
            ("ce-datacontenttype", kind),
        ] {
            assert_eq!(headers.get(name).map(|value| value.as_str()), Some(expected), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_json_is_answered_in_json_and_needs_the_same_role() {
    let cluster = Cluster::start().await;
    cluster.run(&["create", "vm", "a", "--image", "any"]).await;
    let reader = reader(&cluster.access, "reader").await;
    let bus = reader.bus().await;
    let page = ask(&bus, "orchard.v1.api.reader.event.list", r#" {"after": 0, "limit": 1}"#).await;
    assert_eq!(page["ok"]["events"][0]["type"], "created", "{page}");
    let vm = ask(&bus, "orchard.v1.api.reader.vm.get", r#"{"name": "a"}"#).await;
    assert_eq!((&vm["ok"]["name"], &vm["ok"]["image"]), (&json!("a"), &json!("any")), "{vm}");
    let none = ask(&bus, "orchard.v1.api.reader.vm.get", r#"{"name": "b"}"#).await;
    assert_eq!(none["error"]["code"], "not-found", "{none}");
    let wrong = ask(&bus, "orchard.v1.api.reader.vm.get", r#"{"name": 7}"#).await;
    assert_eq!(wrong["error"]["code"], "invalid", "{wrong}");
    assert!(wrong["error"]["message"].as_str().unwrap().contains("JSON"), "{wrong}");
    let create = r#"{"name": "c", "spec": {"image": "any"}}"#;
    let refused = bus.request::<_, Value>("orchard.v1.api.reader.vm.create".into(), &create, LIMIT).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Forbidden);
    let admin = cluster.access.bus().await;
    let made = ask(&admin, "orchard.v1.api.bootstrap-admin.vm.create", create).await;
    assert_eq!(made["ok"]["status"], "pending", "{made}");
    let trail = cluster.run(&["audit", "--output", "json"]).await;
    assert!(trail.lines().any(|line| line.contains("vm.create") && line.contains(r#""target":"c""#)), "{trail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_json_fits_the_bus_whatever_scripts_print() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    let escapes = "\u{1b}".repeat(8 * 1024 - 8);
    let script = (0..30).map(|_| format!("echo {escapes}\n")).collect::<String>();
    let file = cluster.dir.path().join("script");
    std::fs::write(&file, script).unwrap();
    let script = format!("@{}", file.display());
    cluster.run(&["create", "vm", "a", "--image", "any", "--startup-script", &script, "--wait"]).await;
    let bus = cluster.access.bus().await;
    let (mut after, mut lines) = (0, 0);
    loop {
        let request = json!({ "after": after }).to_string();
        let page = ask(&bus, "orchard.v1.api.bootstrap-admin.event.list", &request).await;
        let events = page["ok"]["events"].as_array().unwrap_or_else(|| panic!("{}", page["error"]));
        lines += events.iter().filter(|event| event["type"] == "log").count();
        after = page["ok"]["next"].as_u64().unwrap();
        if page["ok"]["next"] == page["ok"]["last"] {
            break;
        }
    }
    assert!(lines >= 30, "{lines} lines");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_program_misses_no_event_and_ends_when_it_may_not_follow() {
    let Some(python) = installed("ORCHARD_TEST_PYTHON", "nats.py") else { return };
    let command = |folder: &Path| {
        let mut command = Command::new(&python);
        command.arg(copied("follow.py", folder));
        command
    };
    tokio::join!(misses_nothing(command), ends_when_it_must(command));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_javascript_program_misses_no_event_and_ends_when_it_may_not_follow() {
    let Some(modules) = installed("ORCHARD_TEST_NODE_MODULES", "nats.js") else { return };
    let command = |folder: &Path| {
        let mut command = Command::new("node");
        command.arg(copied("follow.mjs", folder));
        // Where `npm install` would have put them.
        std::os::unix::fs::symlink(&modules, folder.join("node_modules")).unwrap();
        command
    };
    tokio::join!(misses_nothing(command), ends_when_it_must(command));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_program_misses_no_event_and_ends_when_it_may_not_follow() {
    let built = rust_example("follow").await;
    tokio::join!(misses_nothing(|_: &Path| Command::new(&built)), ends_when_it_must(|_: &Path| Command::new(&built)));
}

fn copied(name: &str, folder: &Path) -> PathBuf {
    let copy = folder.join(name);
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(name), &copy).unwrap();
    copy
}

/// The program of an example, built in the profile of these tests: whoever runs one test alone has not built it.
async fn rust_example(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_orchard")).parent().unwrap();
    let profile = match folder.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--offline", "--quiet", "--example", name, "--profile", profile, "--target-dir"]);
    cargo.arg(folder.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR")).kill_on_drop(true);
    let built = cargo.output().await.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    folder.join("examples").join(name)
}

/// A controller as a process, and a program of somebody else that follows its events.
struct World {
    dir: tempfile::TempDir,
    admin: Access,
    reader: Access,
    addresses: [String; 2],
    controller: Option<Server>,
    vms: usize,
    /// How often the program was started.
    runs: usize,
}

/// Kills the controller under the program, then the program, then both.
async fn misses_nothing(command: impl Fn(&Path) -> Command) {
    let mut world = World::start().await;
    let mut command = world.prepared(command);
    let worker = world.admin.worker("w", &world.dir.path().join("worker"), Arc::new(Synthetic::new())).await;

    world.happen(3).await;
    let mut program = world.run(&mut command);
    world.happen(3).await;
    world.caught_up(&mut program).await;

    world.happen(2).await;
    world.kill_controller().await;
    world.start_controller().await;
    world.happen(3).await;
    world.caught_up(&mut program).await;

    world.happen(2).await;
    program.kill().await.unwrap();
    world.happen(3).await;
    let mut program = world.run(&mut command);
    world.happen(2).await;
    world.caught_up(&mut program).await;

    world.happen(2).await;
    program.kill().await.unwrap();
    world.kill_controller().await;
    world.start_controller().await;
    let mut program = world.run(&mut command);
    world.happen(2).await;
    world.caught_up(&mut program).await;
    worker.shutdown().await;
    world.check().await;
}

/// Takes the role away, then the account; and spoils the file.
async fn ends_when_it_must(command: impl Fn(&Path) -> Command) {
    let mut world = World::start().await;
    let mut command = world.prepared(command);
    let last = world.dir.path().join("program/last");
    for garbage in ["", "seven\n", "-1", "1 2"] {
        std::fs::write(&last, garbage).unwrap();
        let program = world.run(&mut command);
        let why = world.ended(program).await;
        assert!(why.contains("holds no number of an event") && !why.contains("Traceback"), "{garbage:?}: {why}");
        assert_eq!(std::fs::read_to_string(&last).unwrap(), garbage);
    }
    std::fs::remove_file(&last).unwrap();

    world.happen(2).await;
    let mut program = world.run(&mut command);
    world.caught_up(&mut program).await;
    let account = world.reader.account.clone();
    let roles = |roles: &[Role]| UpdateAccount {
        name: account.clone(),
        roles: Some(roles.iter().copied().collect()),
        expiry: None,
        ssh_keys: None,
    };
    world.admin.call(&roles(&[])).await.unwrap();
    let why = world.ended(program).await;
    assert!(why.contains("let in no more, or may not follow events"), "{why}");

    // As a supervisor would: it goes on where it was, once the role is back.
    let program = world.run(&mut command);
    let why = world.ended(program).await;
    assert!(why.contains("let in no more, or may not follow events"), "{why}");
    world.happen(2).await;
    world.admin.call(&roles(&[Role::ComputeRead])).await.unwrap();
    let mut program = world.run(&mut command);
    world.caught_up(&mut program).await;

    world.admin.call(&DeleteAccount { name: account.clone() }).await.unwrap();
    let why = world.ended(program).await;
    assert!(why.contains("let in no more, or may not follow events") || why.contains("is closed"), "{why}");
}

impl World {
    /// The program in its folder, with what it needs to know.
    fn prepared(&self, command: impl Fn(&Path) -> Command) -> Command {
        let folder = self.dir.path().join("program");
        std::fs::create_dir(&folder).unwrap();
        let mut command = command(&folder);
        command
            .arg(folder.join("last"))
            .env("ORCHARD_URL", &self.reader.url)
            .env("ORCHARD_SERVICE_ACCOUNT_NAME", self.reader.account.as_str())
            .env("ORCHARD_SERVICE_ACCOUNT_TOKEN", self.reader.token.expose())
            .env("ORCHARD_CA", self.data().join("controller.crt"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Waits until the program has ended by itself, with exit code 1; what it says of that.
    async fn ended(&self, mut program: Child) -> String {
        let status = tokio::time::timeout(LIMIT, program.wait()).await;
        let complaints = std::fs::read_to_string(self.file("complaints", self.runs - 1)).unwrap();
        let status = status.unwrap_or_else(|_| panic!("it goes on: {complaints}")).unwrap();
        assert_eq!(status.code(), Some(1), "{complaints}");
        complaints
    }

    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
        let (server, admin) = processes::controller(&home, &data, "127.0.0.1:0", "127.0.0.1:0").await;
        let addresses = [server.value("bus").replace("tls://", ""), server.value("tunnels")];
        let reader = reader(&admin, "out.sider").await;
        Self { dir, admin, reader, addresses, controller: Some(server), vms: 0, runs: 0 }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("controller")
    }

    async fn kill_controller(&mut self) {
        self.controller.take().unwrap().kill().await;
    }

    async fn start_controller(&mut self) {
        let [bus, tunnels] = &self.addresses;
        let home = self.dir.path().join("home");
        self.controller = Some(processes::controller(&home, &self.data(), bus, tunnels).await.0);
    }

    /// Makes so many VMs, and deletes one.
    async fn happen(&mut self, vms: usize) {
        let name = |n: usize| format!("vm-{n}").parse().unwrap();
        for _ in 0..vms {
            let spec = VmSpec { image: "any".into(), ..VmSpec::default() };
            self.admin.call(&CreateVm { name: name(self.vms), spec, key: None }).await.unwrap();
            self.vms += 1;
        }
        self.admin.call(&DeleteVm { name: name(self.vms - 1) }).await.unwrap();
    }

    /// Starts the program; what it says goes into a file of this run.
    fn run(&mut self, command: &mut Command) -> Child {
        let [said, complaints] = ["said", "complaints"].map(|what| File::create(self.file(what, self.runs)).unwrap());
        self.runs += 1;
        command.stdout(said).stderr(complaints).spawn().unwrap()
    }

    fn file(&self, what: &str, run: usize) -> PathBuf {
        self.dir.path().join("program").join(format!("{what}-{run}"))
    }

    fn events(&self, run: usize) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file("said", run)).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until the program has seen all that there is now.
    async fn caught_up(&self, program: &mut Child) {
        let newest = self.admin.call(&GetInfo {}).await.unwrap().last_event;
        let run = self.runs - 1;
        until("the program to see all", LIMIT, || {
            let ended = program.try_wait().unwrap();
            let complaints = || std::fs::read_to_string(self.file("complaints", run)).unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", complaints());
            let last = self.events(run).last().and_then(|event| event["number"].as_u64());
            std::future::ready(if last >= Some(newest) { Ok(()) } else { Err((last, newest, complaints())) })
        })
        .await;
    }

    /// Each run says every event once and in order, each goes on where the one before was, and they are those of the
    /// controller.
    async fn check(&self) {
        let mut all: Vec<Value> = Vec::new();
        for run in 0..self.runs {
            let events = self.events(run);
            let numbers: Vec<u64> = events.iter().map(|event| event["number"].as_u64().unwrap()).collect();
            assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "run {run}: {numbers:?}");
            let repeated = all.last().filter(|last| last["number"] == events[0]["number"]).is_some();
            // It was killed between doing it and noting that it was done.
            all.extend(events.into_iter().skip(usize::from(repeated)));
        }
        let request = ListEvents { limit: 500, ..ListEvents::default() };
        let page = self.admin.call(&request).await.unwrap();
        let stored: Vec<Value> = page.events.iter().map(|event| serde_json::to_value(event).unwrap()).collect();
        assert!(all.len() > 40 && stored.len() >= all.len(), "{} of {}", all.len(), stored.len());
        assert_eq!(all[..], stored[..all.len()]);
    }
}
