//! Real traffic with known counts, and captures of what truly left a host.
//!
//! ```text
//! Http, Dns, Bulk, Datagrams --run_on(host)--> sockets in the host's namespace --> Server
//! ping, iperf3, tcpreplay    --tools---------> the same, by other people's programs
//! craft, Raw                 --frames by hand-> AF_PACKET on the host's interface
//! Truth: tcpdump on the pods' own eth0 --> what was sent, or that it does not know
//! WireTruth: the same, cut as the kernel would cut it    Points: at which interfaces it was seen
//! ```
//!
//! Everything ends by itself: counts are bounded and every wait has a limit. Sizes and contents
//! follow from a seed, so a run can be repeated.

mod bulk;
mod capture;
pub mod craft;
mod datagrams;
mod dns;
mod http;
mod points;
mod random;
mod raw;
mod server;
mod socket;
mod super_frame;
mod tools;
mod watch;
mod wire;

pub use bulk::Bulk;
pub use capture::{Capture, Captured, Side, Truth};
pub use datagrams::Datagrams;
pub use dns::Dns;
pub use http::Http;
pub use points::{Points, Sighting};
pub use raw::{Raw, SuperDatagrams};
pub use server::{Serve, Server};
pub use tools::{Replayed, iperf3, ping, tcpreplay};
pub use wire::WireTruth;

use serde::Serialize;

/// What a client did, as it counted itself. Packets are not known here; captures know them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Which kind of traffic.
    pub what: &'static str,
    /// Connections opened, or sockets used.
    pub connections: u32,
    /// Requests, queries, datagrams or echo requests sent.
    pub requests: u64,
    /// Answers that came and were right.
    pub responses: u64,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
}
