//! The dedup table's own sources, apart from the engine.
//!
//! ```text
//! engine/src/{wire,dedup}  --as they are--> their unit tests here too, also under Miri
//! engine/src/dedup/{key,state,bucket} --with loom's atomics for `sync`--> models: every interleaving
//! ```
//!
//! `cargo test -p models`; `cargo +nightly miri test -p models --target-dir target/miri dedup`.
#![allow(clippy::duplicate_mod, reason = "once as it is, once with loom's atomics")]

#[path = "../../../engine/src/dedup/mod.rs"]
pub mod dedup;
#[cfg(test)]
#[cfg(not(miri))]
mod modelled;
#[path = "../../../engine/src/wire/mod.rs"]
pub mod wire;
