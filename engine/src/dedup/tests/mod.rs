//! All of these are run by `tests/models` too, and under Miri.

mod changes;
mod collisions;
mod fingerprint;
mod oracle;
mod state;
mod table;
