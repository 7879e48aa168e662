//! A value that one thread replaces now and then, and workers look at once per batch.
//!
//! ```text
//! writer: replace(new)  -> value under the mutex, then generation + 1
//! reader: Reader::get() -> one load of the generation; the mutex only when it has moved
//! ```
//!
//! Nothing is freed under a reader: each holds an `Arc` of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A replaceable value; clones of the handle see the same one.
#[derive(Debug)]
pub struct Shared<T> {
    inner: Arc<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    generation: AtomicU64,
    value: Mutex<Arc<T>>,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> Shared<T> {
    /// A handle on `value`, generation 0.
    #[must_use]
    pub fn new(value: T) -> Self {
        let value = Mutex::new(Arc::new(value));
        Self { inner: Arc::new(Inner { generation: AtomicU64::new(0), value }) }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<T>> {
        // A panic while the lock was held cannot have left the Arc half written.
        self.inner.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value now.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&self.lock())
    }

    /// Puts `value` in place; returns the generation from which readers see it.
    pub fn replace(&self, value: T) -> u64 {
        self.update(|_| value)
    }

    /// Puts what `change` makes of the value in place; no other writer comes between.
    pub fn update(&self, change: impl FnOnce(&T) -> T) -> u64 {
        let mut slot = self.lock();
        let next = Arc::new(change(&slot));
        *slot = next;
        // ORDER: Release, pairs with the Acquire in `Reader::refresh`: who sees the new generation
        // and then takes the mutex finds this value or a later one.
        self.inner.generation.fetch_add(1, Ordering::Release) + 1
    }

    /// A reader's own view, current as of now.
    #[must_use]
    pub fn reader(&self) -> Reader<T> {
        let slot = self.lock();
        let generation = self.inner.generation.load(Ordering::Acquire);
        let value = Arc::clone(&slot);
        drop(slot);
        Reader { shared: self.clone(), generation, value }
    }
}

/// One reader's copy of the handle; see [`Shared::reader`].
#[derive(Debug)]
pub struct Reader<T> {
    shared: Shared<T>,
    generation: u64,
    value: Arc<T>,
}

impl<T> Reader<T> {
    /// The value as of the last [`refresh`](Self::refresh).
    #[must_use]
    pub fn get(&self) -> &Arc<T> {
        &self.value
    }

    /// The generation of [`get`](Self::get)'s value.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes the newest value if there is one; true if so.
    pub fn refresh(&mut self) -> bool {
        // ORDER: Acquire, pairs with the Release in `Shared::update`.
        if self.shared.inner.generation.load(Ordering::Acquire) == self.generation {
            return false;
        }
        *self = self.shared.reader();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_a_change_once() {
        let shared = Shared::new(1);
        let mut reader = shared.reader();
        assert!(!reader.refresh());
        let generation = shared.update(|old| old + 1);
        assert_eq!(**reader.get(), 1, "only refresh moves the view");
        assert!(reader.refresh());
        assert_eq!((**reader.get(), reader.generation()), (2, generation));
        assert!(!reader.refresh());
    }
}
