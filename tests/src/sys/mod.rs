//! The system calls that no crate wraps safely: packet sockets and TAPs.
//!
//! ```text
//! PacketSocket: frames of one interface, with VLAN tag, direction and offloads beside them
//! Tap: the far side of a TAP device
//! ```

mod packet;
mod tap;

pub(crate) use packet::{Frame, PacketSocket, Tci, VNET_BYTES};
pub(crate) use tap::Tap;
