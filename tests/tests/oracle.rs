//! The engine against the slow oracle: random clusters and traffic through both.
//!
//! ```text
//! plan --> world --> sightings of each node --> engine: pipelines of 1 to 4 workers, one table
//!                       |                          |
//!                       `--> rule, truth ----------`--> the same reports, or a smaller plan that shows why not
//! ```
//!
//! `PROPTEST_CASES` sets how many cases each property gets.

#[cfg(test)]
#[path = "oracle/captures.rs"]
mod captures;
#[cfg(test)]
#[path = "oracle/check.rs"]
mod check;
#[cfg(test)]
#[path = "oracle/nodes.rs"]
mod nodes;
#[cfg(test)]
#[path = "oracle/once.rs"]
mod once;
