//! Clients as their users get them from the registries, unmodified, against `orchard broker run`.

mod javascript;
mod python;
mod rust;
mod scripts;
pub mod standalone;
