//! The embedded broker seen by raw sockets and by `async-nats`.

mod access;
mod apart;
mod clients;
mod hostile;
mod leaving;
mod memory;
mod order;
mod pace;
mod protocol;
pub mod support;
mod tls;
