//! Capture files written.
//!
//! ```text
//! WireFrame --pcap----> file or pipe      (replay)
//! packets   --pcapng--> file or pipe      (sensor: one interface block a tap)
//! ```
//!
//! Reading them is [`crate::source::file`]'s business. No writer here looks at the clock or at
//! the machine: the same frames give the same bytes.

pub mod pcap;
pub mod pcapng;
