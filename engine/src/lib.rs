//! podtap: a packet tap for Kubernetes nodes.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod frame;
pub mod rpcap;
