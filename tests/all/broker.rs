//! The embedded broker seen by raw sockets and by `async-nats`.

mod access;
mod clients;
mod hostile;
mod leaving;
mod protocol;
pub mod support;
mod tls;
