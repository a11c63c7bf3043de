//! Orchard turns a pile of machines behind NATs into one pool of virtual machines.
//!
//! One binary plays every part: controller (with the embedded broker and the tunnel relay), worker and command line.
//! Parts meet in two places only: the messages in [`bus::message`] and the stream header in [`tunnel::header`].
//!
//! # Layers
//!
//! A module may name those in the rows below its own, never one beside or above it; `tests/all/layers.rs` checks it.
//!
//! | layer | modules |
//! |---|---|
//! | commands | [`cli`] (names everything) |
//! | parts | [`controller`], [`worker`], [`client`] |
//! | means | [`broker`], [`tunnel`], [`bus`], [`config`], [`ssh`], [`vnc`] |
//! | ground | [`duplex`], [`identity`], [`metrics`], [`model`], [`task`], [`trace`] |
//!
//! Beside them, in unit tests only, stands `simulation`: the parts' pure code without its shell.
//!
//! # Core and shell
//!
//! What decides is pure: `broker::{protocol,trie,session,permission}`, `bus::{subject,message}`,
//! `tunnel::{header,ticket}`, `controller::{cluster,scheduler}`, `vnc::conversation` and `worker::plan` take `now` and data and return
//! actions. Sockets, clocks, the LMDB environment and child processes live in the thin shell around them.

pub mod broker;
pub mod bus;
pub mod cli;
pub mod client;
pub mod config;
pub mod controller;
pub mod duplex;
pub mod identity;
pub mod metrics;
pub mod model;
#[cfg(test)]
mod simulation;
pub mod ssh;
pub mod task;
pub mod trace;
pub mod tunnel;
pub mod vnc;
pub mod worker;
