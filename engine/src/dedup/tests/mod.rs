//! All of these are run by `tests/models` too; what does atomics, also under Miri.

#[cfg(not(miri))]
mod changes;
#[cfg(not(miri))]
mod collisions;
#[cfg(not(miri))]
mod fingerprint;
mod oracle;
mod state;
mod table;
