//! The tunnel end to end in one process over loopback: client → relay → worker → a TCP server that plays the guest.

mod attacks;
mod doors;
mod fairness;
mod many;
pub mod rights;
mod sessions;
mod stalls;
pub mod world;
