//! Measurements with a kernel: everything in network namespaces without a name, which end with the process.
//!
//! ```text
//! generator (core 0) --gen0=tap0--> node: a tap (core 1) --up0=snk0--> sink: sensor, datagrams counted and dropped
//! ```

pub mod capture;
pub mod forward;
pub mod generator;
pub mod harm;
pub mod latency;
pub mod libpcap;
pub mod loops;
pub mod namespace;
pub mod rig;
pub mod tap;
