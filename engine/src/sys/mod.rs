//! The kernel's edges: each foreign call or constant in one thin, safe wrapper.

mod waker;

pub use waker::Waker;
