//! Which copy of a packet is reported.
//!
//! ```text
//! frame, headers --fingerprint--> Key { hash of what a host leaves alone, the two ends }
//! Key, point, time --table, bucket, state--> Fresh | Duplicate; of a translated copy: twin or not
//! ```
//!
//! The same packet at another point is a duplicate; the same bytes twice at one point are two
//! packets. One [`Table`] is shared by all workers; it has no lock, allocates nothing after it was
//! made, and forgets in the safe direction: an entry that is lost costs a duplicate.

mod bucket;
mod fingerprint;
mod key;
mod options;
mod prefetch;
mod quoted;
mod state;
mod sync;
mod table;
#[cfg(test)]
mod tests;

pub use fingerprint::Fingerprinter;
pub use key::{Key, Marks, Translated};
pub use table::{MIN_MEMORY, Outcome, Table, TableError, check_memory};
