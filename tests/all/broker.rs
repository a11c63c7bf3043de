//! The embedded broker seen by raw sockets and by `async-nats`.

mod access;
mod clients;
mod hostile;
mod protocol;
pub mod support;
