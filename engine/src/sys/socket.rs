//! Socket options that no crate wraps: plain data in, plain data out.
#![expect(unsafe_code, reason = "setsockopt and getsockopt take untyped memory")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use bytemuck::{NoUninit, Pod};

/// `setsockopt` with the bytes of `value`.
pub(crate) fn set_option<T: NoUninit>(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let bytes = bytemuck::bytes_of(value);
    let len = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `bytes` is `len` initialised bytes that live until the call returns, and the kernel
    // only reads them.
    let answer = unsafe { libc::setsockopt(fd, level, name, bytes.as_ptr().cast(), len) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `getsockopt` into a `T`; what the kernel does not fill stays zero.
pub(crate) fn option<T: Pod>(
    socket: impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<T> {
    let mut value = T::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut value);
    let mut len = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `bytes` is `len` writable bytes, any content of which is a `T` (it is `Pod`), and
    // the kernel writes no more than `len`.
    let answer =
        unsafe { libc::getsockopt(fd, level, name, bytes.as_mut_ptr().cast(), &raw mut len) };
    if answer == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
