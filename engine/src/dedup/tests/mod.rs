//! `state` and `table` are run by `tests/models` too, under Miri.

mod fingerprint;
mod state;
mod table;
