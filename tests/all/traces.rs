//! One trace from a command of a user to the command of the runtime that it leads to, as a collector gets it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use orchard::task::{self, Task};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{Access, LIMIT, any_port, succeed};
use crate::processes::{Server, access, controller_command, worker_command};
use crate::tart::host::Host;
use crate::wait::until;

/// One span, as it was exported.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: BTreeMap<String, String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |attribute: KeyValue| match attribute.value?.value? {
        Value::StringValue(text) => Some((attribute.key, text)),
        _ => None,
    };
    attributes.into_iter().filter_map(text).collect()
}

/// Takes what is exported by OTLP over HTTP.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    _task: Task,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let taken = spans.clone();
        let task = task::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(take(stream, taken.clone()));
            }
        });
        Self { address, spans, _task: task }
    }

    fn variables(&self) -> [(&'static str, String); 2] {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", self.address)),
            ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
        ]
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

/// Answers the requests of one connection.
async fn take(mut stream: TcpStream, spans: Arc<Mutex<Vec<Span>>>) {
    let mut received = Vec::new();
    loop {
        let head = received.windows(4).position(|end| end == b"\r\n\r\n");
        let Some(head) = head else {
            if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return;
            }
            continue;
        };
        let text = String::from_utf8_lossy(&received[..head]).to_lowercase();
        assert!(text.starts_with("post /v1/traces ") && text.contains("application/x-protobuf"), "{text}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let end = head + 4 + length.trim().parse::<usize>().unwrap();
        while received.len() < end {
            if stream.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let request = ExportTraceServiceRequest::decode(&received[head + 4..end]).unwrap();
        spans.lock().unwrap().extend(read(request));
        received.drain(..end);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    }
}

fn read(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let told = texts(resource.resource.unwrap_or_default().attributes);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                service: told.get("service.name").cloned().unwrap_or_default(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: texts(span.attributes),
            });
        }
    }
    spans
}

/// A controller and a worker with the stand-in, as processes with these variables.
struct World {
    access: Access,
    host: Host,
    dir: tempfile::TempDir,
    _servers: [Server; 2],
}

impl World {
    async fn start(variables: &[(&'static str, String)]) -> Self {
        let (dir, host) = (tempfile::tempdir().unwrap(), Host::tart());
        let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
        let mut command = controller_command(&home, &data, "127.0.0.1:0", "127.0.0.1:0");
        command.envs(variables.iter().cloned());
        let controller = Server::start(command).await;
        let access = access(&home);
        let token = access.bootstrap_token().await;
        let mut command = worker_command("w", &dir.path().join("far"), "tart", &[]);
        command.env("PATH", format!("{}:{}", host.folder().display(), std::env::var("PATH").unwrap()));
        command.envs(variables.iter().cloned()).args(["--bootstrap-token", token.to_text().expose()]);
        let worker = Server::start(command).await;
        Self { access, host, dir, _servers: [controller, worker] }
    }

    async fn create(&self, variables: &[(&'static str, String)]) {
        self.run(&["create", "vm", "a", "--image", "i"], variables).await;
    }

    async fn run(&self, arguments: &[&str], variables: &[(&'static str, String)]) {
        let mut command = self.access.cli(&self.dir.path().join("home"), arguments);
        command.envs(variables.iter().cloned());
        succeed(command).await;
    }

    /// The variable `TRACEPARENT` of the last call of `verb`, if it had one.
    fn told(&self, verb: &str) -> Result<String, String> {
        let text = std::fs::read_to_string(self.host.file("env").join(verb)).map_err(|error| error.to_string())?;
        let found = text.lines().find_map(|line| line.strip_prefix("TRACEPARENT=")).map(str::to_owned);
        found.ok_or_else(|| format!("{verb} belongs to no trace"))
    }

    /// The same, once there is one.
    async fn traceparent(&self, verb: &str) -> String {
        until("the runtime to be called", LIMIT, || async { self.told(verb) }).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_spans_command_line_controller_worker_and_the_command_of_the_runtime() {
    let collector = Collector::start().await;
    let variables = collector.variables();
    let world = World::start(&variables).await;
    world.create(&variables).await;
    let told = world.traceparent("clone").await;
    let (trace, span) = (told[3..35].to_owned(), told[36..52].to_owned());
    let of_trace = until("the spans of all parts", LIMIT, || async {
        let spans: Vec<Span> = collector.spans().into_iter().filter(|span| span.trace == trace).collect();
        // Each process exports its own in its own time, and two of them have one called vm.create: there are all once the
        // way leads from the command of the runtime up to the root.
        let (mut id, mut top) = (&span, "");
        for _ in &spans {
            let Some(one) = spans.iter().find(|one| one.id == *id) else { break };
            (id, top) = (&one.parent, one.name.as_str());
        }
        let whole = top == "orchard create";
        if whole { Ok(spans) } else { Err(spans) }
    })
    .await;
    // From the command of the runtime up to the root.
    let mut way = Vec::new();
    let mut id = span;
    while let Some(span) = of_trace.iter().find(|span| span.id == id) {
        way.push((span.service.as_str(), span.name.clone()));
        id.clone_from(&span.parent);
    }
    let names: Vec<&str> = way.iter().map(|(_, name)| name.as_str()).collect();
    let services: Vec<&str> = way.iter().map(|(service, _)| *service).collect();
    assert_eq!(names[..3], ["tart", "runtime create", "assign"], "{way:?}");
    assert_eq!(names[3], "vm.create", "{way:?}");
    assert_eq!(names.last(), Some(&"orchard create"), "{way:?}");
    assert_eq!(services[..4], ["orchard-worker", "orchard-worker", "orchard-controller", "orchard-controller"]);
    assert!(services[4..].iter().all(|service| *service == "orchard") && services.len() >= 6, "{way:?}");
    let clone = of_trace.iter().find(|span| span.name == "tart" && span.attributes["verb"] == "clone");
    assert!(clone.is_some(), "{of_trace:?}");
    let request =
        of_trace.iter().find(|span| span.name == "vm.create" && span.service == "orchard-controller").unwrap();
    assert!(request.attributes.contains_key("id") && request.attributes["account"] == "bootstrap-admin", "{request:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_of_somebody_else_is_handed_on_although_nothing_is_exported() {
    let world = World::start(&[]).await;
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    world.create(&[("TRACEPARENT", theirs.to_owned())]).await;
    assert_eq!(world.traceparent("clone").await, theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_with_a_vm_later_belongs_to_the_trace_of_who_asked_for_it() {
    let world = World::start(&[]).await;
    // The arguments, and the command of the runtime that they lead to.
    let steps: [(&[&str], &str); 4] = [
        (&["create", "vm", "a", "--image", "i"], "run"),
        (&["stop", "vm", "a"], "stop"),
        (&["start", "vm", "a"], "run"),
        (&["delete", "vm", "a"], "delete"),
    ];
    for (number, (arguments, verb)) in steps.into_iter().enumerate() {
        let theirs = format!("00-4bf92f3577b34da6a3ce929d0e0e473{number}-00f067aa0ba902b7-01");
        world.run(arguments, &[("TRACEPARENT", theirs.clone())]).await;
        until("the runtime to be called for it", LIMIT, || async {
            let told = world.told(verb)?;
            if told == theirs { Ok(()) } else { Err(format!("{verb} belongs to {told} instead of {theirs}")) }
        })
        .await;
    }
}
