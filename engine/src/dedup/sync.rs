//! The atomics of the table, in one place so that a model checker can stand in for them
//! (`tests/models` does).

pub(super) use portable_atomic::AtomicU128;
pub(super) use std::sync::atomic::{AtomicU64, Ordering};
