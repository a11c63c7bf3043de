//! The worker: runs on each host, keeps its VMs as the controller wants them.

pub mod runtime;
