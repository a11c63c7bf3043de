//! Every message of the bus with the schema of its type.

use orchard::bus::access::{
    CreateAccount, CreateJoinToken, DeleteAccount, DeleteJoinToken, DeleteWorker, GetAccount, Join, Joined,
    ListAccounts, ListAudit, ListJoinTokens, RotateAccount, UpdateAccount,
};
use orchard::bus::connect::{GetAddress, OpenHost, OpenTunnel};
use orchard::bus::encoding::Encoding;
use orchard::bus::images::{CancelPull, GetPull, ImagesReport, ListHeldImages, ListImages, ListPulls, PullImage};
use orchard::bus::life::UpdateVm;
use orchard::bus::log::LogLines;
use orchard::bus::message::{
    Answer, ApiCall, Assignment, CreateVm, DeleteVm, Done, GetInfo, GetVm, GetWorker, Heartbeat, HeartbeatAck, Hello,
    ListEvents, ListVms, ListWorkers, Report, Welcome,
};
use orchard::bus::placing::{DrainWorker, ExplainVm, PauseWorker, ResumeWorker};
use orchard::bus::settings::{GetSettings, SetSettings};
use orchard::bus::status::GetStatus;
use orchard::bus::strays::{DeleteStray, ListStrays};
use orchard::bus::subject::WorkerVerb;
use orchard::model::access::VERBS;
use orchard::model::audit::AuditRecord;
use orchard::model::error::ApiError;
use orchard::model::event::Event;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One message.
pub struct Message {
    /// Its name, which those of its samples begin with.
    pub name: String,
    pub schema: Value,
    /// Whether the controller takes it, from others; else it sends it.
    pub taken: bool,
    /// Reads a payload as that type, and tells what was understood.
    pub read: fn(Encoding, &[u8]) -> Result<Value, ApiError>,
}

/// What stands on the bus: it has a schema, and goes there and back.
pub trait Wire: JsonSchema + Serialize + DeserializeOwned {}

impl<T: JsonSchema + Serialize + DeserializeOwned> Wire for T {}

impl Message {
    /// Its file within the folder `schemas`.
    pub fn path(&self) -> String {
        format!("json/{}.json", self.name)
    }

    /// What it says of itself.
    pub fn description(&self) -> &str {
        self.schema.get("description").and_then(Value::as_str).unwrap_or_default()
    }
}

/// What the controller takes.
fn request<T: Wire>(name: &str) -> Message {
    message::<T>(name, SchemaSettings::draft2020_12().for_deserialize(), true)
}

/// What the controller sends.
fn told<T: Wire>(name: &str) -> Message {
    message::<T>(name, SchemaSettings::draft2020_12().for_serialize(), false)
}

fn message<T: Wire>(name: &str, settings: SchemaSettings, taken: bool) -> Message {
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = Value::from(schema);
    tidy(&mut schema);
    schema["title"] = name.into();
    let read = |form: Encoding, payload: &[u8]| Ok(serde_json::to_value(form.decode::<T>(payload)?).unwrap());
    Message { name: name.to_owned(), schema, taken, read }
}

/// Makes prose of what was written for Rust's documentation, and one line of each paragraph.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| match value {
            Value::String(text) if key == "description" => {
                *text = text.replace("[`", "`").replace("`]", "`");
            }
            value => tidy(value),
        }),
        Value::Array(values) => values.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn call<C: ApiCall>() -> [Message; 2] {
    let verb = format!("{}.{}", C::RESOURCE, C::VERB);
    [request::<C>(&verb), told::<Answer<C::Reply>>(&format!("answer/{verb}"))]
}

macro_rules! calls {
    ($($call:ty),+ $(,)?) => { vec![$(call::<$call>()),+] };
}

/// Every message, of the API in the order of its table.
pub fn messages() -> Vec<Message> {
    let mut calls: Vec<Message> = calls![
        CreateVm,
        GetVm,
        ListVms,
        UpdateVm,
        DeleteVm,
        ExplainVm,
        GetWorker,
        ListWorkers,
        DeleteWorker,
        PauseWorker,
        ResumeWorker,
        DrainWorker,
        ListStrays,
        DeleteStray,
        ListImages,
        ListHeldImages,
        ListPulls,
        GetPull,
        PullImage,
        CancelPull,
        GetSettings,
        SetSettings,
        ListEvents,
        OpenTunnel,
        OpenHost,
        GetAddress,
        GetInfo,
        GetStatus,
        CreateAccount,
        GetAccount,
        ListAccounts,
        UpdateAccount,
        RotateAccount,
        DeleteAccount,
        CreateJoinToken,
        ListJoinTokens,
        DeleteJoinToken,
        ListAudit,
    ]
    .into_iter()
    .flatten()
    .collect();
    let place = |message: &Message| {
        let verb = message.name.trim_start_matches("answer/");
        VERBS.iter().position(|rule| verb == format!("{}.{}", rule.resource, rule.verb))
    };
    calls.sort_by_key(place);
    let of_workers = WorkerVerb::ALL.into_iter().flat_map(|verb| {
        let name = format!("worker/{}", verb.as_str());
        let answer = format!("{name}/answer");
        match verb {
            WorkerVerb::Hello => [request::<Hello>(&name), told::<Answer<Welcome>>(&answer)],
            WorkerVerb::Heartbeat => [request::<Heartbeat>(&name), told::<Answer<HeartbeatAck>>(&answer)],
            WorkerVerb::Report => [request::<Report>(&name), told::<Answer<Done>>(&answer)],
            WorkerVerb::Log => [request::<LogLines>(&name), told::<Answer<Done>>(&answer)],
            WorkerVerb::Images => [request::<ImagesReport>(&name), told::<Answer<Done>>(&answer)],
        }
    });
    let others = [
        told::<Assignment>("worker/assign"),
        request::<Join>("join"),
        told::<Answer<Joined>>("join/answer"),
        told::<Event>("event"),
        told::<AuditRecord>("audit/record"),
    ];
    calls.into_iter().chain(of_workers).chain(others).collect()
}

#[test]
fn every_verb_that_may_be_called_is_in_the_catalog() {
    let messages = messages();
    for rule in VERBS {
        let verb = format!("{}.{}", rule.resource, rule.verb);
        let count = messages.iter().filter(|message| message.name == verb).count();
        assert_eq!(count, 1, "{verb}: add its type to the list in catalog.rs");
    }
}
