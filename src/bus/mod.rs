//! The bus: typed messages over NATS subjects. [`client::Bus`] is the one way to it for controller, workers and CLI,
//! and none of them can tell the embedded broker from an outside nats-server.

pub mod access;
pub mod client;
pub mod connect;
pub mod encoding;
pub mod images;
pub mod inventory;
pub mod life;
pub mod log;
pub mod measure;
pub mod message;
pub mod parts;
pub mod placing;
pub mod probe;
mod refusal;
pub mod settings;
mod shut_out;
pub mod status;
pub mod strays;
pub mod subject;
pub mod traces;
