//! What the kernel here lacks, moved by hand: frames between devices that the lab has, and devices
//! that stand for those that it has not.
//!
//! ```text
//! RelaySpec: Trunk (VLAN devices) | Tunnel (Geneve, IPIP) -- opened in its namespace --> Moving
//! Relay: a thread that polls it until dropped;  RelaySpec::run: the same as a process
//! ```

use super::{
    error::LabError,
    namespace,
    trunk::{Trunk, TrunkPorts},
    tunnel::{Tunnel, TunnelPorts},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt, io,
    io::ErrorKind,
    os::fd::{AsFd as _, BorrowedFd},
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
};

/// Largest frame: no offloads on a TAP. Room for outer headers.
const FRAME_BYTES: usize = 65_700;
/// Frames moved from one side before the others are looked at.
pub(crate) const BATCH: usize = 64;

/// What to relay, and in which namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelaySpec {
    /// A trunk and its VLANs.
    Trunk(Trunk),
    /// A tunnel to the other nodes.
    Tunnel(Tunnel),
}

impl RelaySpec {
    /// The namespace that its devices are in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self {
            Self::Trunk(trunk) => &trunk.namespace,
            Self::Tunnel(tunnel) => &tunnel.namespace,
        }
    }

    /// Relays in the namespace of the calling thread, until the process is ended. `begun` is
    /// called when all is open.
    ///
    /// # Errors
    ///
    /// When an interface is missing or goes away.
    pub fn run(&self, begun: impl FnOnce()) -> Result<(), LabError> {
        let relay = || {
            let (_open, stopped) = UnixStream::pair()?;
            let ports = self.open()?;
            begun();
            move_frames(&*ports, &stopped)
        };
        relay().map_err(|error| self.failed(error))
    }

    fn open(&self) -> io::Result<Box<dyn Moving>> {
        Ok(match self {
            Self::Trunk(trunk) => Box::new(TrunkPorts::open(trunk)?),
            Self::Tunnel(tunnel) => Box::new(TunnelPorts::open(tunnel)?),
        })
    }

    fn failed(&self, error: io::Error) -> LabError {
        LabError::call(format!("relaying in {}", self.namespace()), error)
    }
}

/// Something between whose sides frames are moved.
pub(crate) trait Moving: Send + fmt::Debug {
    /// What to wait for.
    fn waits(&self) -> Vec<BorrowedFd<'_>>;

    /// Moves some of what is there, from each side.
    fn turn(&self, buffer: &mut [u8]) -> io::Result<()>;
}

/// A relay that runs on a thread of ours; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Relay {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Opens the devices, which get their carriers by that, and starts.
    pub(crate) fn start(spec: &RelaySpec) -> Result<Self, LabError> {
        let (stop, stopped) = UnixStream::pair().map_err(|error| LabError::call("pair", error))?;
        let ports =
            namespace::enter(spec.namespace(), || spec.open())?.map_err(|e| spec.failed(e))?;
        let thread = thread::spawn(move || {
            if let Err(error) = move_frames(&*ports, &stopped) {
                eprintln!("relay: {error}");
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

fn move_frames(ports: &dyn Moving, stopped: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let mut waits = vec![PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        waits.extend(ports.waits().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_ready) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if waits[0].any() != Some(false) {
            return Ok(());
        }
        ports.turn(&mut buffer)?;
    }
}

/// `None` when there is nothing to read now, or the interface is down for the moment.
pub(crate) fn nothing_yet<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_passing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A frame that cannot be delivered now is lost, as on a wire.
pub(crate) fn deliver(result: io::Result<()>) -> io::Result<()> {
    nothing_yet(result).map(drop)
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        || matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::ENETDOWN | Errno::ENOBUFS | Errno::EMSGSIZE | Errno::EIO | Errno::EINVAL)
        )
}
