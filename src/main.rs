//! The `orchard` binary: arguments, tracing, run the command, exit code. Nothing else.

fn main() {}
