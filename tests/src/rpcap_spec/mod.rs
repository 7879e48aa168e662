//! RPCAP as the specification describes it, for tests: written without the engine's code.
//!
//! ```text
//! script text --script--> steps --peer--> TCP <--> podtap      bytes expected == bytes got
//!                                  data --> UDP, TCP <-- podtap   frames sent == frames decoded
//! stage: namespace, veth, processes
//! ```
//!
//! What judges podtap's protocol must not share its mistakes: nothing here, and nothing that uses
//! this module, may name `engine::rpcap`. Sections in comments are those of the specification.

mod data;
mod encode;
mod peer;
mod script;
mod stage;

pub use data::{Packet, StreamDecoder, TcpDecoder, read_plain};
pub use encode::{
    Instruction, OfferedInterface, RET_ALL, filter, message, packet, read_interfaces,
};
pub use peer::Peer;
pub use stage::{SensorRun, Tap, Wire, datagrams, frames_of, in_namespace};

use std::time::Duration;

/// How long anything may take before a test fails. Generous: cores are shared by many.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Message types (1.2); a reply's has bit 7 set.
pub mod kind {
    /// ERROR.
    pub const ERROR: u8 = 1;
    /// FINDALLIF.
    pub const FINDALLIF: u8 = 2;
    /// OPEN.
    pub const OPEN: u8 = 3;
    /// STARTCAP.
    pub const STARTCAP: u8 = 4;
    /// UPDATEFILTER.
    pub const UPDATEFILTER: u8 = 5;
    /// PACKET, on the data channel only.
    pub const PACKET: u8 = 7;
    /// UDPSTR, on the data channel only.
    pub const UDPSTR: u8 = 110;
    /// Set in the type of a reply.
    pub const REPLY: u8 = 0x80;
}
