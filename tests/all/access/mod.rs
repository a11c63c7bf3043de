//! Who may say and hear what, proven on the wire against a running controller.

mod attacks;
mod floods;
mod given_up;
mod hostile;
mod matrix;
mod operator;
pub mod people;
mod poison;
mod strangers;
mod workers;
