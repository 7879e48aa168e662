//! The kernel's edges: each foreign call or constant in one thin, safe wrapper.

pub(crate) mod mmap;
pub(crate) mod packet;
pub(crate) mod socket;
mod waker;

pub use waker::Waker;
