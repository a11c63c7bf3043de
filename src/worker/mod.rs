//! The worker: makes this host's VMs what the controller wants them to be.

pub mod runtime;
