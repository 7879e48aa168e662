//! Wakes a worker that sleeps in `ppoll`: an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// A handle that any thread may wake a worker with; the worker polls its descriptor.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// A new, quiet one.
    ///
    /// # Errors
    ///
    /// What `eventfd` answers (`EMFILE`).
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self(Arc::new(EventFd::from_value_and_flags(0, flags)?)))
    }

    /// Makes the descriptor readable.
    pub fn wake(&self) {
        // EAGAIN means the counter is full: the worker has been woken and has not looked yet.
        let _already_awake = self.0.write(1);
    }

    /// Makes the descriptor quiet again; true if somebody had woken it.
    pub fn clear(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
