//! What podtap costs, beside what else could do the same, in one run.
//!
//! ```text
//! subcommand --rounds, everything compared in turn within each--> samples --> Record (JSON file)
//! records --report--> tables and charts of PERF.md, beside the aims
//! ```
//!
//! Every figure is the median of its rounds, with the least and the most beside it. Nothing here asserts
//! a time: `report` says what was reached and what was not.
#![warn(missing_docs)]

pub mod aims;
pub mod all;
pub mod cli;
pub mod compare;
pub mod error;
pub mod interrupt;
pub mod machine;
pub mod net;
pub mod pipeline;
pub mod record;
pub mod report;
pub mod stats;
pub mod table;
pub mod workload;
