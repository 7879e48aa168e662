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
pub mod cli;
pub mod config;
pub mod control;
pub mod dedup;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod net;
pub mod pipeline;
pub mod replay;
pub mod rpcap;
pub mod rpcapd;
pub mod segment;
pub mod sensor;
pub mod session;
pub mod settle;
pub mod shared;
pub mod source;
pub mod stats;
pub mod supervisor;
pub mod sys;
pub mod wire;
pub mod worker;

/// An error with everything that caused it, on one line; causes that the text names already are
/// not repeated.
#[must_use]
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
