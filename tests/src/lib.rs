//! podtap against real kernels: a lab of network namespaces, traffic with known counts, and a
//! comparison that says what is missing and what is doubled.
//!
//! ```text
//! lab: pods, nodes, router --> traffic: real packets --> the pods' own captures --+
//!            |                                                                    v
//!            +--> a tap on each node --> sensor --> pcapng -----------------> compare: Report
//! ```
//!
//! Nothing here uses the engine's idea of a packet: what judges the tap must not share its code.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod balance;
pub mod churn;
pub mod compare;
pub mod exactly_once;
pub mod lab;
pub mod oracle;
pub mod rpcap_spec;
pub mod scenario;
mod sys;
pub mod tap;
pub mod traffic;
