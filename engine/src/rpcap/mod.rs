//! RPCAP on the wire, as the tap and the sensor both speak it.
//!
//! ```text
//! header.rs    the 8 bytes before every control message and every datagram
//! message.rs   payloads of the control messages, read and written
//! error.rs     the codes of ERROR messages
//! ```
//!
//! Integers are big-endian, nothing is padded. Reading never trusts a length: a payload that is
//! shorter than what it announces is a [`Malformed`], and what follows a payload's last known
//! field is ignored, as every peer does. No I/O and no state: sessions live in `control` (the tap)
//! and `sensor` (the receiver).

mod error;
mod header;
mod link_layer;
mod message;

pub use error::ErrorCode;
pub use header::{HEADER_BYTES, Header, MessageType};
pub use link_layer::LinkLayer;
pub use message::{
    Address, Auth, BpfInsn, Filter, Interface, Malformed, OpenReply, PACKET_HEADER_BYTES,
    PacketHeader, STREAM_HEADER_BYTES, STREAM_NO_PACKET, Sampling, StartCapture, StartCaptureReply,
    Stats, StreamHeader, read_auth_reply,
};

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
