//! The slow oracle: the rule of exactly once, written again from the specification, and a small
//! cluster that makes traffic for it and for the engine.
//!
//! ```text
//! plan (random) --> world: topology, ways, loads --> sightings --> rule: how many reports of each
//!                     |                                  `------> taps (the engine) --> reports
//!                     `--> truth: of each packet the right node and ends
//! ```
//!
//! Nothing is hashed and nothing is shared with the engine but its public face in `taps`: packets
//! are parsed, cut and compared by this crate's own code, byte for byte.

mod counts;
pub mod cut;
pub mod generate;
pub mod identity;
pub mod load;
pub mod packet;
pub mod rule;
pub mod taps;
pub mod topology;
pub mod way;
pub mod world;
