//! The bucket with loom's atomics.
#![expect(unreachable_pub, reason = "what is public in the engine")]

#[path = "../../../engine/src/dedup/bucket.rs"]
mod bucket;
#[path = "../../../engine/src/dedup/key.rs"]
#[expect(dead_code, reason = "what only the table and the fingerprints need")]
mod key;
mod models;
#[path = "../../../engine/src/dedup/prefetch.rs"]
mod prefetch;
#[path = "../../../engine/src/dedup/state.rs"]
mod state;
mod sync;
