//! Model tests of the core.
