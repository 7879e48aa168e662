//! Reading a packet socket until whoever watches is told to stop and nothing comes any more.
//!
//! ```text
//! PacketSocket -> each(frame, bytes) ... stop -> quiet for a while -> how many the kernel lost
//! ```

use crate::sys::{Frame, PacketSocket};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How long waiting for quiet may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Largest super-frame that is read whole.
const FRAME_BYTES: usize = 1 << 18;

/// Hands every frame to `each`, until `stop` is set and none has come for `quiet`; returns how many
/// frames the socket had no room for.
///
/// # Errors
///
/// Of the socket, but for an interface that goes down, and of `each`.
pub(super) fn until_quiet(
    socket: &PacketSocket,
    stop: &AtomicBool,
    quiet: Duration,
    mut each: impl FnMut(Frame, &mut [u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut buffer = vec![0; FRAME_BYTES];
    let mut last = Instant::now();
    let mut stopping: Option<Instant> = None;
    loop {
        match socket.receive(&mut buffer) {
            Ok(frame) => {
                last = Instant::now();
                let length = frame.length;
                each(frame, &mut buffer[..length])?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => return Err(error),
        }
        // Relaxed: one that is late is seen at the next look.
        if stop.load(Ordering::Relaxed) {
            let since = *stopping.get_or_insert_with(Instant::now);
            if last.max(since).elapsed() > quiet || since.elapsed() > LIMIT {
                return socket.lost();
            }
        }
        let mut wait = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut wait, PollTimeout::from(20_u8));
    }
}
