//! What `dedup::sync` is to the table, for models.
//!
//! Loom has no 128-bit atomic. One is a loom `AtomicU64` here that holds the number of a value in a
//! list of all the values that there have been. The numbers are as equal or different as the values,
//! so each load and compare-exchange does what it would do with the value itself, with the ordering
//! that it was given, and loom sees one atomic cell. The list is not part of what is modelled: it
//! only grows, and nothing in a model depends on what number a value has.

use std::sync::{Mutex, PoisonError};

pub(super) use loom::sync::atomic::{AtomicU64, Ordering};

static VALUES: Mutex<Vec<u128>> = Mutex::new(Vec::new());

fn number(value: u128) -> u64 {
    let mut values = VALUES.lock().unwrap_or_else(PoisonError::into_inner);
    let at = values.iter().position(|known| *known == value).unwrap_or_else(|| {
        values.push(value);
        values.len() - 1
    });
    at as u64
}

fn value(number: u64) -> u128 {
    let values = VALUES.lock().unwrap_or_else(PoisonError::into_inner);
    values[usize::try_from(number).expect("a place in a list")]
}

#[derive(Debug)]
pub(super) struct AtomicU128(AtomicU64);

impl AtomicU128 {
    pub(super) fn new(value: u128) -> Self {
        Self(AtomicU64::new(number(value)))
    }

    pub(super) fn load(&self, ordering: Ordering) -> u128 {
        value(self.0.load(ordering))
    }

    pub(super) fn compare_exchange(
        &self,
        old: u128,
        new: u128,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u128, u128> {
        let exchanged = self.0.compare_exchange(number(old), number(new), success, failure);
        exchanged.map(value).map_err(value)
    }
}
