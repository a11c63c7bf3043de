//! The embedded broker seen by raw sockets and by `async-nats`.

mod apart;
mod clients;
mod hostile;
mod memory;
mod protocol;
mod support;
