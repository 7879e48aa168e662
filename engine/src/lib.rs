//! podtap: a packet tap for Kubernetes nodes.
//!
//! ```text
//!  kernel                  one pinned worker per core                            network
//!  ------   ------------------------------------------------------------------   -------
//!  ring --> source --Frame--> classify --> dedup --> session (filter, encode) --> datagrams
//!              ^                 ^            ^            ^
//!              |                 |            |            |
//!            files             net: View   one table     control: RPCAP with the sensor
//!          (replay)          (netlink)    for all        (a thread of its own)
//! ```
//!
//! Data flows one way; a stage knows [`frame::Frame`], never its neighbour. `worker` and
//! `pipeline` are the only places that name all the stages.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod bpf;
pub mod capfile;
pub mod classify;
pub mod control;
pub mod dedup;
pub mod frame;
pub mod net;
pub mod rpcap;
pub mod sensor;
pub mod session;
pub mod shared;
pub mod source;
pub mod stats;
pub mod sys;
pub mod wire;
