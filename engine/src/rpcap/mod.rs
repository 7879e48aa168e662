//! RPCAP on the wire, as the tap and the sensor both speak it.
//!
//! ```text
//! header.rs      the 8 bytes before every control message and every datagram
//! control.rs     payloads of the control messages, read and written
//! interfaces.rs  the payload of one of them: the interface list; link_layer.rs: its MAC addresses
//! data.rs        the headers on the data channel
//! error.rs       the codes of ERROR messages
//! ```
//!
//! Integers are big-endian, nothing is padded. Reading never trusts a length: a payload that is
//! shorter than what it announces is a [`Malformed`], and what follows a payload's last known
//! field is ignored, as every peer does. No I/O and no state: sessions live in `control` (the tap)
//! and `sensor` (the receiver).

mod control;
mod data;
mod error;
mod header;
mod interfaces;
mod link_layer;
mod read;

pub use control::{
    Auth, BpfInsn, Filter, OpenReply, Sampling, StartCapture, StartCaptureReply, Stats,
    auth_reply_is_swapped, read_auth_reply,
};
pub use data::{
    PACKET_HEADER_BYTES, PacketHeader, STREAM_HEADER_BYTES, STREAM_NO_PACKET, StreamHeader,
};
pub use error::ErrorCode;
pub use header::{HEADER_BYTES, Header, MessageType};
pub use interfaces::{Address, Interface};
pub use link_layer::LinkLayer;
pub use read::Malformed;

/// The port that a sensor listens on for taps in active mode.
pub const ACTIVE_PORT: u16 = 2003;
/// The port that a tap listens on in passive mode.
pub const PASSIVE_PORT: u16 = 2002;
/// `DLT_EN10MB`: what OPEN announces, since every frame we send starts with an Ethernet header.
pub const DLT_EN10MB: i32 = 1;
/// The most bytes of a frame that can be asked for; 0 or more than this in STARTCAP means this.
pub const MAX_SNAPLEN: u32 = 262_144;
/// The pseudo-interface that stands for every Ethernet interface of the node.
pub const ANY_ETH: &str = "any-eth";
/// The most bytes of UDP payload over IPv4.
pub const MAX_UDP_PAYLOAD: usize = 65_507;
/// UDP port where the tap probes for what the path takes: traceroute's, where nobody listens.
pub const PROBE_PORT: u16 = 33_434;
