//! What truly was sent, as the wire would carry it: a capture that knows the sizes.
//!
//! ```text
//! AF_PACKET with vnet headers -> [gso size, checksum state][frame] -> segments -> a pcap file
//! ```
//!
//! `tcpdump` shows a super-frame without the size that it is to be cut to, and checksums that are
//! not computed yet. Here both are known, so the file has wire segments with right checksums: it
//! is compared without [`crate::compare::Comparison::by_segments`], whatever the MTU.

use super::{
    Side,
    capture::Captured,
    super_frame::{Offload, segments},
    watch::until_quiet,
};
use crate::{
    compare::Packet,
    lab::{Host, Lab, LabError},
    sys::{PacketSocket, VNET_BYTES},
};
use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// No frame for this long means that none comes: as for [`super::Capture`].
const QUIET: Duration = Duration::from_millis(500);

/// Decides which packets are kept.
type Wanted = fn(&Packet) -> bool;

/// Captures at several points at once; the counterpart of [`super::Truth`].
#[derive(Debug)]
pub struct WireTruth {
    directory: PathBuf,
    wanted: Wanted,
    captures: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    what: String,
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<(u64, u64)>>>,
}

impl WireTruth {
    /// No capture yet; files will go to `directory`, which exists.
    #[must_use]
    pub fn new(directory: &Path, wanted: Wanted) -> Self {
        Self { directory: directory.to_owned(), wanted, captures: Vec::new() }
    }

    /// What every pod of the lab sends.
    ///
    /// # Errors
    ///
    /// When a packet socket cannot be had.
    pub fn of_pods(lab: &Lab, directory: &Path, wanted: Wanted) -> Result<Self, LabError> {
        let mut truth = Self::new(directory, wanted);
        lab.pods().try_for_each(|pod| truth.add(pod, "eth0", Side::Sent))?;
        Ok(truth)
    }

    /// Adds a point; it captures when this returns. Direction is the kernel's word: what the host
    /// sends, whatever MAC address is on it.
    ///
    /// # Errors
    ///
    /// When there is no such interface, or the file cannot be written.
    pub fn add(&mut self, host: &Host, interface: &str, side: Side) -> Result<(), LabError> {
        let what = format!("{} {interface}", host.name());
        let socket = host
            .enter(|| PacketSocket::open_with_vnet_headers(interface))?
            .map_err(|error| LabError::call(format!("capturing {what}"), error))?;
        let number = self.captures.len();
        let path =
            self.directory.join(format!("wire-{number:02}-{}-{interface}.pcap", host.name()));
        let file = File::create(&path).map_err(|error| LabError::file(&path, error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, wanted) = (Arc::clone(&stop), self.wanted);
        let thread = thread::spawn(move || {
            let mut file = Pcap::begin(file)?;
            capture(&socket, side, wanted, &mut file, &stopped)
        });
        self.captures.push(Running { what, path, stop, thread: Some(thread) });
        Ok(())
    }

    /// Waits until nothing new comes at any point, and ends all captures; `packets` counts wire
    /// segments.
    ///
    /// # Errors
    ///
    /// When a file cannot be written, or a frame cannot be cut.
    pub fn stop(mut self) -> Result<Vec<Captured>, LabError> {
        for capture in &self.captures {
            capture.stop.store(true, Ordering::Relaxed);
        }
        self.captures.iter_mut().map(Running::finish).collect()
    }
}

impl Running {
    fn finish(&mut self) -> Result<Captured, LabError> {
        let thread = self.thread.take().expect("only here it is taken, and only once");
        let (packets, lost) = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map_err(|error| LabError::call(format!("capturing {}", self.what), error))?;
        Ok(Captured {
            what: self.what.clone(),
            path: self.path.clone(),
            packets,
            lost,
            dropped: lost,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn capture(
    socket: &PacketSocket,
    side: Side,
    wanted: Wanted,
    file: &mut Pcap,
    stop: &AtomicBool,
) -> io::Result<(u64, u64)> {
    let mut packets = 0;
    let lost = until_quiet(socket, stop, QUIET, |frame, data| {
        let of_side = match side {
            Side::Sent => frame.is_outgoing,
            Side::Received => !frame.is_outgoing,
            Side::Both => true,
        };
        if of_side && frame.length > VNET_BYTES + 14 {
            packets += keep(data, wanted, file)?;
        }
        Ok(())
    })?;
    file.file.flush()?;
    Ok((packets, lost))
}

/// Writes one frame's segments; says how many.
fn keep(frame: &mut [u8], wanted: Wanted, file: &mut Pcap) -> io::Result<u64> {
    let (vnet, frame) = frame.split_at_mut(VNET_BYTES);
    let offload = Offload::read(vnet);
    let (link, network) = frame.split_at(14);
    let ethertype = u16::from_be_bytes([link[12], link[13]]);
    let mut count = 0;
    for segment in segments(network, offload).map_err(io::Error::other)? {
        let mut packet = Packet::parse(ethertype, segment, false);
        if !wanted(&packet) {
            continue;
        }
        if offload.needs_checksum {
            packet.complete_checksums();
        }
        file.write(link, packet.data())?;
        count += 1;
    }
    Ok(count)
}

/// A pcap file of Ethernet frames, without times: nothing is matched by them.
struct Pcap {
    file: BufWriter<File>,
}

impl Pcap {
    fn begin(file: File) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
            file.write_all(&word.to_le_bytes())?;
        }
        Ok(Self { file })
    }

    fn write(&mut self, link: &[u8], network: &[u8]) -> io::Result<()> {
        let length = u32::try_from(link.len() + network.len()).map_err(io::Error::other)?;
        for word in [0, 0, length, length] {
            self.file.write_all(&word.to_le_bytes())?;
        }
        self.file.write_all(link)?;
        self.file.write_all(network)
    }
}
