//! The one integration binary: every theme is a module, so that a rebuild links once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a failed test says so by panicking

mod access;
mod accounts;
mod api;
mod audit;
mod broker;
mod broker_run;
mod cli;
mod conformance;
mod contexts;
mod crash;
mod endings;
mod fencing;
mod flow;
mod guest;
mod harness;
mod images;
mod joining;
mod layers;
mod life;
mod liveness;
mod netns;
mod placing;
mod processes;
mod qemu;
mod real;
mod secrets;
mod ssh;
mod standin;
mod stock;
mod storage;
mod suspend;
mod tart;
mod tunnel;
mod wait;
mod wire;
