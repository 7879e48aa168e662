//! The kernel's edges: each foreign call or constant in one thin, safe wrapper.

pub mod libpcap;
mod receive;
mod waker;

pub use receive::{Batch, Receiver, socket_drops};
pub use waker::Waker;
