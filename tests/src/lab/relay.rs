//! VLAN devices without 802.1Q in the kernel: TAPs, and what moves frames between them and the
//! trunk.
//!
//! ```text
//! vlan.eth.m (TAP) -- read, tag pushed --> AF_PACKET on the trunk --> out, tagged
//! vlan.eth.m (TAP) <- write, tag popped -- AF_PACKET on the trunk <-- in, tagged m
//! ```
//!
//! A capture at the trunk sees tagged frames both ways and one at the TAP untagged ones, as with
//! the real thing. The kernel itself drops what arrives tagged: nothing is delivered twice.

use super::{error::LabError, namespace};
use crate::sys::{PacketSocket, Tap, Tci};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    io::{self, ErrorKind},
    os::fd::AsFd as _,
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
};

/// Largest frame: no offloads on a TAP.
const FRAME_BYTES: usize = 65_600;
/// Frames moved from one side before the others are looked at.
const BATCH: usize = 64;

/// A trunk and the TAPs of its VLANs, all on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trunk {
    /// Namespace that they are in.
    pub namespace: String,
    /// The interface that carries tagged frames.
    pub interface: String,
    /// VLAN and the TAP that stands for its device.
    pub vlans: Vec<(u16, String)>,
}

/// A relay that runs on a thread of ours; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Relay {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Opens the trunk and the TAPs, which get their carriers by that, and starts.
    pub(crate) fn start(trunk: &Trunk) -> Result<Self, LabError> {
        let (stop, stopped) = UnixStream::pair().map_err(|error| LabError::call("pair", error))?;
        let ports = namespace::enter(&trunk.namespace, || Ports::open(trunk))?
            .map_err(|error| LabError::call(format!("relaying {}", trunk.interface), error))?;
        let thread = thread::spawn(move || {
            if let Err(error) = ports.run(&stopped) {
                eprintln!("relay of a trunk: {error}");
            }
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // The other end sees that this one is closed.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Trunk {
    /// Relays in the namespace of the calling thread, until the process is ended.
    ///
    /// # Errors
    ///
    /// When an interface is missing or goes away.
    pub fn relay(&self) -> io::Result<()> {
        let (_open, stopped) = UnixStream::pair()?;
        Ports::open(self)?.run(&stopped)
    }
}

#[derive(Debug)]
struct Ports {
    trunk: PacketSocket,
    vlans: Vec<(u16, Tap)>,
}

impl Ports {
    fn open(trunk: &Trunk) -> io::Result<Self> {
        let socket = PacketSocket::open(&trunk.interface)?;
        socket.ignore_own_sending()?;
        let vlans = trunk
            .vlans
            .iter()
            .map(|(vlan, tap)| Ok((*vlan, Tap::open(tap)?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { trunk: socket, vlans })
    }

    fn run(&self, stopped: &UnixStream) -> io::Result<()> {
        let mut buffer = vec![0; FRAME_BYTES];
        loop {
            let mut waits = vec![
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.trunk.as_fd(), PollFlags::POLLIN),
            ];
            waits.extend(
                self.vlans.iter().map(|(_vlan, tap)| PollFd::new(tap.as_fd(), PollFlags::POLLIN)),
            );
            match poll(&mut waits, PollTimeout::NONE) {
                Ok(_ready) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if waits[0].any() != Some(false) {
                return Ok(());
            }
            self.from_trunk(&mut buffer)?;
            for (vlan, tap) in &self.vlans {
                self.from_tap(*vlan, tap, &mut buffer)?;
            }
        }
    }

    /// Tagged frames go to the TAP of their VLAN, without the tag.
    fn from_trunk(&self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some(frame) = nothing_yet(self.trunk.receive(buffer))? else { return Ok(()) };
            let Some(Tci(tci)) = frame.tci else { continue };
            if let Some((_vlan, tap)) = self.vlans.iter().find(|(vlan, _tap)| *vlan == tci & 0xfff)
            {
                deliver(tap.write(&buffer[..frame.length]))?;
            }
        }
        Ok(())
    }

    /// Frames of a TAP go out of the trunk, with the tag.
    fn from_tap(&self, vlan: u16, tap: &Tap, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some(length) = nothing_yet(tap.read(&mut buffer[4..]))? else { return Ok(()) };
            if length < 14 {
                continue;
            }
            // MAC addresses move to the front, the tag comes between them and the type.
            buffer.copy_within(4..16, 0);
            buffer[12..14].copy_from_slice(&[0x81, 0]);
            buffer[14..16].copy_from_slice(&vlan.to_be_bytes());
            deliver(self.trunk.send(&buffer[..length + 4]))?;
        }
        Ok(())
    }
}

/// `None` when there is nothing to read now, or the interface is down for the moment.
fn nothing_yet<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_passing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A frame that cannot be delivered now is lost, as on a wire.
fn deliver(result: io::Result<()>) -> io::Result<()> {
    nothing_yet(result).map(drop)
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        || matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::ENETDOWN | Errno::ENOBUFS | Errno::EMSGSIZE | Errno::EIO | Errno::EINVAL)
        )
}
