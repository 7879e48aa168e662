//! The kernel's edges: each foreign call or constant in one thin, safe wrapper.

mod buffer;
pub mod libpcap;
pub(crate) mod mmap;
pub(crate) mod packet;
mod receive;
mod segment;
pub(crate) mod socket;
pub(crate) mod tcp;
pub(crate) mod udp;
mod waker;

pub(crate) use buffer::force_send_buffer;
pub use receive::{Batch, Receiver, socket_drops};
pub use waker::Waker;
