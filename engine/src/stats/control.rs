//! What clients that connect to the tap did, and what became of them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of the control connections; the control thread is the only writer.
#[derive(Debug, Default)]
pub struct ControlStats {
    /// Connections that were accepted from the listeners.
    pub connections: AtomicU64,
    /// Those of them that stand now.
    pub clients: AtomicU64,
    /// Connections refused because the host is not in the list, or guessed too often.
    pub refused_hosts: AtomicU64,
    /// Connections refused or dropped because there were too many.
    pub refused_connections: AtomicU64,
    /// AUTH refused, in both modes.
    pub auth_failures: AtomicU64,
    /// Connections ended because nothing came, or nothing was read, for too long, in both modes.
    pub timeouts: AtomicU64,
    /// Times that the system could not accept a connection: no descriptor, no memory.
    pub accept_failures: AtomicU64,
}

impl ControlStats {
    /// Counts one. Relaxed throughout: nothing is read through these.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
