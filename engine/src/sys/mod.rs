//! The kernel's edges: each foreign call or constant in one thin, safe wrapper.

mod buffer;
pub(crate) mod udp;
pub(crate) mod mmap;
pub(crate) mod packet;
pub(crate) mod socket;
mod waker;

pub(crate) use buffer::{Buffer, force_buffer};
pub use waker::Waker;
