//! See the crate's picture.

mod capture;
mod client;
mod message;
mod numbering;
mod output;
mod reassembly;
mod summary;

pub use summary::{Counts, Malformed, Record, Summary, TapStats};
