//! To come.
pub mod header;
pub mod ticket;
