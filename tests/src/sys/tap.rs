//! The far side of a TAP device: what the host sends by it is read, what is written comes in.
#![expect(unsafe_code, reason = "attaching to a TAP is an ioctl")]

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    os::unix::fs::OpenOptionsExt as _,
};

/// Bytes of `struct ifreq`: a name and a union.
const IFREQ_BYTES: usize = 40;

/// An attached TAP, non-blocking.
#[derive(Debug)]
pub(crate) struct Tap(File);

impl Tap {
    /// Attaches to a device of the calling thread's namespace that is there already.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        Self::attach(name, libc::IFF_TAP)
    }

    /// The same for a TUN: packets without a link header.
    pub(crate) fn open_tun(name: &str) -> io::Result<Self> {
        Self::attach(name, libc::IFF_TUN)
    }

    fn attach(name: &str, kind: libc::c_int) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = [0_u8; IFREQ_BYTES];
        let bytes = name.as_bytes();
        if bytes.len() >= libc::IFNAMSIZ {
            return Err(io::Error::other(format!("{name:?} is too long for an interface")));
        }
        request[..bytes.len()].copy_from_slice(bytes);
        let flags = kind | libc::IFF_NO_PI;
        let flags = u16::try_from(flags).map_err(io::Error::other)?;
        request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes one struct ifreq, which the array is as long as.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        if result == 0 { Ok(Self(file)) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    pub(crate) fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write(frame).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
