//! Live capture: one `AF_PACKET` socket with a `TPACKET_V3` ring per worker.
//!
//! ```text
//! kernel --filter--> fanout (spread.rs) --> ring --Block--> Frame      one socket per worker
//!                                            |
//!            ring.rs: which block    block.rs: whose it is    walk.rs: what is in it
//! ```
//!
//! A socket is bound to every interface of the network namespace (ifindex 0), so it follows
//! interfaces as they come and go, and one that goes down is no error. It is passive: no
//! promiscuous mode, no offload is changed. Timestamps are the kernel's software stamps.
//!
//! [`PacketSource::open`] is silent: a filter that rejects everything. Start in three steps: open
//! all, [`join_fanout`](PacketSource::join_fanout) all, then `set_filter` on all. No frame is
//! reported twice that way; one that is hashed to a member not yet told is not captured at all, as
//! if the capture had begun a moment later.
//!
//! Which bytes of a frame are captured is the filter's to say: its return value is the snaplen.

mod block;
#[cfg(test)]
mod fanout_tests;
mod geometry;
mod ring;
mod spread;
#[cfg(test)]
pub(crate) mod testnet;
#[cfg(test)]
mod tests;
mod walk;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use socket2::SockRef;

pub use self::block::Block;
pub use self::geometry::{Geometry, MIN_BLOCK_BYTES, MIN_BLOCKS, RingTooSmall};
use self::ring::Ring;
use super::{Source, SourceStats};
use crate::rpcap::BpfInsn;
use crate::sys::Waker;
use crate::sys::packet::{self, RingRequest};

/// `BPF_RET | BPF_K`: ends a program with the constant `k`, the most bytes to capture.
const BPF_RET_K: u16 = 0x06;
const REJECT_ALL: [BpfInsn; 1] = [BpfInsn { code: BPF_RET_K, jt: 0, jf: 0, k: 0 }];
const ACCEPT_ALL: [BpfInsn; 1] = [BpfInsn { code: BPF_RET_K, jt: 0, jf: 0, k: u32::MAX }];
/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 3;
/// The least time between two lines about errors of the socket.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// How to open a [`PacketSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// Shape of the ring.
    pub geometry: Geometry,
    /// When the kernel hands over a block that is not full, milliseconds; at least 1.
    pub retire_timeout_ms: u32,
}

/// A fanout group of this network namespace, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FanoutGroup(u16);

/// Why a source could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `socket` answered `EPERM`.
    #[error("opening a packet socket needs the capability CAP_NET_RAW, to see the node's traffic")]
    NoCapability(#[source] io::Error),
    /// The kernel has no memory for the ring.
    #[error(
        "no memory for a ring of {bytes} bytes ({blocks} blocks of {block_bytes}) per worker: \
         lower --ring-memory or --workers"
    )]
    NoMemory {
        /// Bytes of the ring.
        bytes: u64,
        /// Blocks in it.
        blocks: u32,
        /// Bytes of a block.
        block_bytes: u32,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Another call failed.
    #[error("packet socket: {call} failed")]
    Syscall {
        /// The call or option.
        call: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

/// Names the call that failed.
fn failed(call: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Syscall { call, source }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// A socket and its ring. The kernel frees both when the process ends, however it ends.
#[derive(Debug)]
pub struct PacketSource {
    // Before `socket`: fields are dropped in this order, and the mapping goes first. (The kernel
    // would keep the ring for a mapping that outlives its socket, but not free it.)
    ring: Ring,
    socket: OwnedFd,
    waker: Waker,
    /// What `PACKET_STATISTICS` has told so far; `malformed` is the ring's.
    sums: SourceStats,
    last_log: Option<Instant>,
}

impl PacketSource {
    /// Opens a silent source; `waker` is what ends [`Source::wait`] early.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(options: &PacketOptions, waker: Waker) -> Result<Self, OpenError> {
        let socket = packet::socket().map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => OpenError::NoCapability(error),
            _ => failed("socket(AF_PACKET)")(error),
        })?;
        packet::set_version_3(&socket).map_err(failed("PACKET_VERSION"))?;
        packet::enable_vnet_header(&socket).map_err(failed("PACKET_VNET_HDR"))?;
        let geometry = options.geometry;
        let no_memory = |source| OpenError::NoMemory {
            bytes: geometry.ring_bytes(),
            blocks: geometry.blocks(),
            block_bytes: geometry.block_bytes(),
            source,
        };
        let request = RingRequest {
            tp_block_size: geometry.block_bytes(),
            tp_block_nr: geometry.blocks(),
            // TPACKET_V3 packs frames of any size into a block, but insists on a fixed size that
            // divides it: one to a block cannot overflow the count.
            tp_frame_size: geometry.block_bytes(),
            tp_frame_nr: geometry.blocks(),
            // 0 would have the kernel guess from a link's speed.
            tp_retire_blk_tov: options.retire_timeout_ms.max(1),
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        packet::set_rx_ring(&socket, &request).map_err(|error| {
            if is(&error, Errno::ENOMEM) {
                no_memory(error)
            } else {
                failed("PACKET_RX_RING")(error)
            }
        })?;
        let ring = Ring::map(&socket, geometry).map_err(|error| {
            if is(&error, Errno::ENOMEM) { no_memory(error) } else { failed("mmap")(error) }
        })?;
        // Before `bind`, which is what makes frames come: so not one can have got in, and there is
        // nothing to drain when the real filter replaces this one.
        packet::attach_filter(&socket, &REJECT_ALL).map_err(failed("SO_ATTACH_FILTER"))?;
        packet::bind(&socket, EVERY_PROTOCOL, 0).map_err(failed("bind"))?;
        Ok(Self { ring, socket, waker, sums: SourceStats::default(), last_log: None })
    }

    /// Shares the frames with the other members of `group`, or of a new group that this answers:
    /// each frame goes to one member, by its flow, the same for both directions and for all
    /// fragments of a datagram (see `spread`). New groups never clash with those of other processes.
    ///
    /// # Errors
    ///
    /// What `PACKET_FANOUT` and `PACKET_FANOUT_DATA` answer.
    pub fn join_fanout(&mut self, group: Option<FanoutGroup>) -> Result<FanoutGroup, OpenError> {
        let id = packet::join_fanout(&self.socket, group.map(|FanoutGroup(id)| id))
            .map_err(failed("PACKET_FANOUT"))?;
        if group.is_none() {
            let program = spread::program().map_err(io::Error::other);
            program
                .and_then(|program| packet::spread_by(&self.socket, program.instructions()))
                .map_err(failed("PACKET_FANOUT_DATA"))?;
        }
        Ok(FanoutGroup(id))
    }

    /// An error of a packet socket is an event (`ENETDOWN`, say), never the end of the capture:
    /// reading it clears it, and the socket goes on.
    #[cold]
    #[inline(never)]
    fn report_socket_error(&mut self) {
        let error = match SockRef::from(&self.socket).take_error() {
            Ok(None) => return,
            Ok(Some(error)) | Err(error) => error,
        };
        if self.last_log.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            self.last_log = Some(Instant::now());
            tracing::warn!(%error, "packet socket reports an error; capture goes on");
        }
    }
}

impl Source for PacketSource {
    type Batch<'a> = Block<'a>;

    #[inline]
    fn next_batch(&mut self) -> Option<Block<'_>> {
        self.ring.next_block()
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let mut fds = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.waker.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [socket, waker] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if waker.contains(PollFlags::POLLIN) {
            self.waker.clear();
        }
        if socket.contains(PollFlags::POLLERR) {
            self.report_socket_error();
        }
        Ok(())
    }

    fn stats(&mut self) -> io::Result<SourceStats> {
        let since = packet::take_statistics(&self.socket)?;
        self.sums.seen += u64::from(since.tp_packets);
        self.sums.ring_dropped += u64::from(since.tp_drops);
        self.sums.ring_freezes += u64::from(since.tp_freeze_q_cnt);
        Ok(SourceStats { malformed: self.ring.malformed(), ..self.sums })
    }

    /// An empty program accepts everything. The program's return value is the snaplen.
    fn set_filter(&mut self, program: &[BpfInsn]) -> io::Result<()> {
        let program = if program.is_empty() { &ACCEPT_ALL } else { program };
        packet::attach_filter(&self.socket, program)
    }
}
