//! A mapping of a descriptor, owned: unmapped on drop.
#![expect(unsafe_code, reason = "maps memory that the kernel writes")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

/// Memory shared with the kernel. Only addresses are handed out: whoever makes references of them
/// must know when the kernel does not write.
#[derive(Debug)]
pub(crate) struct Mmap {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; nothing in `Mmap` is bound to the
// thread that made it.
unsafe impl Send for Mmap {}

impl Mmap {
    /// Maps the first `len` bytes of `fd`, readable and writable, shared with the kernel.
    pub(crate) fn shared(fd: impl AsFd, len: usize) -> io::Result<Self> {
        let fd = fd.as_fd().as_raw_fd();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self { base, len })
    }

    /// The `len` bytes from `offset`, or `None` when they are not all mapped. Valid while `self`
    /// is.
    pub(crate) fn range(&self, offset: usize, len: usize) -> Option<NonNull<[u8]>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset` is within the mapping (checked above), which is one allocation.
        let start = unsafe { self.base.add(offset) };
        Some(NonNull::slice_from_raw_parts(start, len))
    }
}

impl Drop for Mmap {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are of the mapping made in `shared`, which nobody else unmaps.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
