//! The AsyncAPI document: every subject, who may publish and subscribe there, and what is said. It is written from the
//! controller's side: what it receives, others send.

use std::collections::HashSet;

use orchard::bus::subject::{ROOT, WorkerVerb};
use orchard::bus::traces::TRACES;
use orchard::model::access::{EVENTS, Needs, VERBS};
use orchard::model::request::REQUEST_ID;
use orchard::trace::TRACEPARENT;
use serde_json::{Map, Value, json};

use super::catalog::Message;
use super::validator_of_asyncapi;

/// Builds the document piece by piece.
#[derive(Default)]
struct Document {
    channels: Map<String, Value>,
    operations: Map<String, Value>,
}

fn reference(path: &str) -> Value {
    json!({ "$ref": path })
}

fn needs(needs: Needs) -> Vec<&'static str> {
    match needs {
        Needs::Nothing => Vec::new(),
        Needs::AnyOf(roles) => roles.iter().map(|role| role.as_str()).collect(),
    }
}

/// Whether a message is said in JSON, too: requests of accounts and their answers, and what is published.
fn has_json(name: &str) -> bool {
    let verb = name.trim_start_matches("answer/");
    matches!(name, "event" | "audit/record")
        || VERBS.iter().any(|rule| verb == format!("{}.{}", rule.resource, rule.verb))
}

/// The name of the same message in JSON.
fn in_json(name: &str) -> String {
    format!("{name}.json")
}

/// The key of a message among the components: slashes have a meaning in references.
fn key(name: &str) -> String {
    name.replace('/', ".")
}

impl Document {
    /// A channel on which these messages go; `parameters` with what each stands for.
    fn channel(&mut self, id: &str, address: &str, messages: &[&str], parameters: &[(&str, &str)]) {
        let parameters: Map<_, _> =
            parameters.iter().map(|(name, what)| ((*name).to_owned(), json!({ "description": what }))).collect();
        let messages = messages.iter().map(|message| key(message));
        let messages: Map<_, _> =
            messages.map(|key| (key.clone(), reference(&format!("#/components/messages/{key}")))).collect();
        let channel = json!({ "address": address, "messages": messages, "parameters": parameters });
        self.channels.insert(id.to_owned(), channel);
    }

    fn operation(&mut self, id: &str, action: &str, messages: &[&str], may: Value) -> &mut Value {
        let channel = format!("#/channels/{id}");
        let messages = messages.iter().map(|message| reference(&format!("{channel}/messages/{}", key(message))));
        let messages: Vec<_> = messages.collect();
        let operation = json!({
            "action": action,
            "channel": reference(&channel),
            "messages": messages,
            "x-orchard-permission": may,
        });
        self.operations.entry(id.to_owned()).or_insert(operation)
    }

    /// A request, which is answered to the asker's inbox.
    fn request(&mut self, id: &str, messages: &[&str], answers: &[&str], may: Value) {
        let answers = answers.iter().map(|answer| reference(&format!("#/channels/inbox/messages/{}", key(answer))));
        let answers: Vec<_> = answers.collect();
        let operation = self.operation(id, "receive", messages, may);
        operation["reply"] = json!({ "channel": reference("#/channels/inbox"), "messages": answers });
    }

    fn verbs(&mut self) {
        let account = ("account", "The name of the asking account, its own; a dot is written %2E.");
        for rule in VERBS {
            let verb = format!("{}.{}", rule.resource, rule.verb);
            let (json, answer) = (in_json(&verb), format!("answer/{verb}"));
            self.channel(&verb, &format!("{ROOT}.api.{{account}}.{verb}"), &[&verb, &json], &[account]);
            let may = json!({
                "publish": { "who": "accounts, each under its own name", "anyOfRoles": needs(rule.needs) },
                "subscribe": { "who": "the controller" },
                "changes": rule.changes,
            });
            self.request(&verb, &[&verb, &json], &[&answer, &in_json(&answer)], may);
        }
    }

    fn workers(&mut self) {
        let worker = ("worker", "The worker's name; a dot is written %2E.");
        let own = json!({ "who": "that worker" });
        let controller = json!({ "who": "the controller" });
        for verb in WorkerVerb::ALL {
            let (id, name) = (format!("worker-{}", verb.as_str()), format!("worker/{}", verb.as_str()));
            self.channel(&id, &format!("{ROOT}.worker.{{worker}}.{}", verb.as_str()), &[&name], &[worker]);
            self.request(
                &id,
                &[&name],
                &[&format!("{name}/answer")],
                json!({ "publish": own, "subscribe": controller }),
            );
        }
        self.channel("worker-assign", &format!("{ROOT}.worker.{{worker}}.assign"), &["worker/assign"], &[worker]);
        let may = json!({ "publish": controller, "subscribe": own });
        self.operation("worker-assign", "send", &["worker/assign"], may.clone());
        let command = ("command", "None yet: kept for what later releases tell a worker beside its assignment.");
        self.channel(
            "worker-command",
            &format!("{ROOT}.worker.{{worker}}.command.{{command}}"),
            &[],
            &[worker, command],
        );
        self.operation("worker-command", "send", &[], may);
        let token = ("token", "The public part of the join token.");
        self.channel("join", &format!("{ROOT}.join.{{token}}"), &["join"], &[token]);
        let may = json!({ "publish": { "who": "whoever logged in with that join token" }, "subscribe": controller });
        self.request("join", &["join"], &["join/answer"], may);
    }

    /// What belongs to NATS itself.
    fn nats(&mut self) {
        self.channel("user-info", "$SYS.REQ.USER.INFO", &[], &[]);
        let may = json!({ "publish": { "who": "accounts" }, "subscribe": { "who": "the broker itself" } });
        let operation = self.operation("user-info", "receive", &[], may);
        operation["summary"] = "Who the asker is there, as nats-server answers it.".into();
        let request =
            ("request", "PING, INFO or STATS; .orchard and the id of a controller may follow, as NATS defines it.");
        self.channel("service-api", "$SRV.{request}", &[], &[request]);
        let nobody = "nobody on the embedded broker; whom the operator lets on NATS servers of his own";
        let may = json!({ "publish": { "who": nobody }, "subscribe": { "who": "the controller" } });
        let operation = self.operation("service-api", "receive", &[], may);
        operation["summary"] = "The service API of NATS: the controller is the service orchard.".into();
    }

    fn events(&mut self) {
        for (kind, roles) in EVENTS {
            let (message, object) = match *kind {
                "audit" => ("audit/record", "The account that asked, or what a failed login called itself."),
                _ => ("event", "The name of whom it is about; a dot is written %2E."),
            };
            let parameters = [(*kind, object), ("type", "What happened.")];
            for (branch, form) in [("events", ""), ("events-json", ".json")] {
                let (id, message) = (format!("{branch}.{kind}"), format!("{message}{form}"));
                let address = format!("{ROOT}.{branch}.{kind}.{{{kind}}}.{{type}}");
                self.channel(&id, &address, &[&message], &parameters);
                let may = json!({
                    "publish": { "who": "the controller" },
                    "subscribe": { "who": "accounts", "anyOfRoles": needs(*roles) },
                });
                self.operation(&id, "send", &[&message], may);
            }
        }
    }

    /// Where answers go: to any of the asker's own.
    fn inbox(&mut self, messages: &[Message]) {
        let names = messages.iter().map(|message| message.name.clone());
        let names = names.filter(|name| name.starts_with("answer/") || name.ends_with("/answer"));
        let forms = names.flat_map(|name| [has_json(&name).then(|| in_json(&name)), Some(name)]);
        let answers = forms.flatten().map(|name| key(&name));
        let answers: Map<_, _> =
            answers.map(|name| (name.clone(), reference(&format!("#/components/messages/{name}")))).collect();
        let parameters = json!({
            "identity": { "description": "The name of the asking user, its own; a dot is written %2E." },
            "id": { "description": "Whatever the asker chose." },
        });
        let address = "_INBOX.{identity}.{id}";
        let may = json!({
            "publish": { "who": "the controller" },
            "subscribe": { "who": "every user, each under its own name" },
        });
        let inbox = json!({
            "address": address,
            "messages": answers,
            "parameters": parameters,
            "x-orchard-permission": may,
        });
        self.channels.insert("inbox".to_owned(), inbox);
    }
}

/// The attributes of a CloudEvent, as headers.
fn cloud_event() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    json!({
        "type": "object",
        "properties": {
            "ce-specversion": { "type": "string", "const": "1.0" },
            "ce-id": text("The number."),
            "ce-source": text("/orchard/ and the id of the cluster; of the audit trail, whose numbers are its own, /audit follows."),
            "ce-type": text("orchard.v1.vm.created and so on: the last part is the event's type."),
            "ce-subject": text("The name of the VM or worker; of an audit record, who asked."),
            "ce-time": { "type": "string", "format": "date-time" },
            "ce-datacontenttype": text("The form of the payload."),
            "content-type": text("The same, by the name that the NATS binding of CloudEvents gives it."),
            "Nats-Msg-Id": text("By this a JetStream tells repetitions: with the cluster's id, as several may share a stream."),
        },
        "required": ["ce-specversion", "ce-id", "ce-source", "ce-type"],
    })
}

/// What comes beside a message that means the same without.
fn headers(name: &str) -> Option<Value> {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let traces = "The VM's identity, a blank and a traceparent, for each VM that a request is traced to; it may come several times.";
    let properties = match name {
        "event" | "audit/record" => return Some(cloud_event()),
        "worker/assign" | "worker/hello/answer" => json!({ TRACES: text(traces) }),
        request if VERBS.iter().any(|rule| request == format!("{}.{}", rule.resource, rule.verb)) => json!({
            TRACEPARENT: text("The trace that the request belongs to, as W3C Trace Context writes it."),
            REQUEST_ID: text("What the asker calls this request; it stands in the audit trail."),
        }),
        _ => return None,
    };
    Some(json!({ "type": "object", "properties": properties }))
}

/// The whole document.
pub fn document(messages: &[Message]) -> Value {
    let mut document = Document::default();
    document.verbs();
    document.workers();
    document.events();
    document.nats();
    document.inbox(messages);
    let mut components = Map::new();
    for message in messages {
        let schema_format = "application/schema+json;version=draft-2020-12";
        let mut entry = json!({
            "name": message.name,
            "summary": message.description(),
            "contentType": "application/msgpack",
            "payload": { "schemaFormat": schema_format, "schema": reference(&format!("./{}", message.path())) },
        });
        if let Some(headers) = headers(&message.name) {
            entry["headers"] = headers;
        }
        if has_json(&message.name) {
            let mut json = entry.clone();
            json["name"] = in_json(&message.name).into();
            json["contentType"] = "application/json".into();
            components.insert(key(&in_json(&message.name)), json);
        }
        components.insert(key(&message.name), entry);
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Orchard",
            "version": "1",
            "description": "The bus of an Orchard controller: NATS, with MessagePack payloads. Requests of accounts may be \
                JSON: one that begins with { is answered in JSON, with the same fields. Written from the controller's \
                side: it receives what others may publish. Compatibility: schemas/README.md.",
        },
        "defaultContentType": "application/msgpack",
        "servers": {
            "bus": {
                "host": "controller.example.com:4222",
                "protocol": "nats",
                "description": "The embedded broker, or the NATS servers that the controller was pointed at; TLS.",
            },
        },
        "channels": document.channels,
        "operations": document.operations,
        "components": { "messages": components },
    })
}

/// Every local reference leads somewhere, and every file that is named is there.
#[test]
fn every_reference_leads_somewhere() {
    let messages = super::catalog::messages();
    let files: HashSet<String> = messages.iter().map(Message::path).collect();
    let document = document(&messages);
    let mut left = vec![&document];
    let mut count = 0;
    while let Some(value) = left.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(to) = fields.get("$ref").and_then(Value::as_str) {
                    count += 1;
                    match to.strip_prefix('#') {
                        Some(pointer) => assert!(document.pointer(pointer).is_some(), "{to} leads nowhere"),
                        None => assert!(files.contains(to.trim_start_matches("./")), "{to} is no file"),
                    }
                }
                left.extend(fields.values());
            }
            Value::Array(values) => left.extend(values),
            _ => {}
        }
    }
    assert!(count > 200, "{count}");
}

/// Held against the JSON Schema that the AsyncAPI project publishes.
#[test]
fn the_document_is_one_of_asyncapi() {
    let Some(validator) = validator_of_asyncapi() else { return };
    let document = document(&super::catalog::messages());
    let wrong: Vec<_> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut broken = document;
    broken["channels"]["vm.get"]["address"] = 7.into();
    assert!(!validator.is_valid(&broken), "it would take anything");
}
