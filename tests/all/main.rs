//! The one integration binary: every theme is a module, so that a rebuild links once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a failed test says so by panicking

mod guest;
mod images;
mod layers;
mod qemu;
mod tart;
mod wait;
