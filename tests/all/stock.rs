//! Clients as their users get them from the registries, unmodified, against `orchard broker run`.

pub mod certificates;
mod javascript;
mod python;
mod rust;
pub mod scripts;
pub mod standalone;
