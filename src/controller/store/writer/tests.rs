//! The writer against a real LMDB.
