//! The proof that the simulation finds what it is for.
