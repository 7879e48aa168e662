//! Where a host sees packets: every frame of every interface, with its direction and VLAN.
//!
//! ```text
//! AF_PACKET on all interfaces -> Sighting { interface, is_outgoing, vlan, packet }, in order
//! ```
//!
//! What a tap on all interfaces could see, without the tap: for tests that show that the lab has
//! the points that a row of spec/exactly-once.md speaks of.

use super::watch::until_quiet;
use crate::{
    compare::Packet,
    lab::{Host, LabError},
    sys::{Frame, PacketSocket},
};
use nix::{errno::Errno, net::if_::if_nameindex};
use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// No frame for this long means that none comes.
const QUIET: Duration = Duration::from_millis(400);

/// One frame at one point.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// The interface.
    pub interface: String,
    /// The host sends it there; otherwise it comes in.
    pub is_outgoing: bool,
    /// Its VLAN, tagged in the frame or beside it.
    pub vlan: Option<u16>,
    /// From the network header on.
    pub packet: Packet,
}

impl Sighting {
    /// Interface, VLAN and direction, such as `eth1.2 in`.
    #[must_use]
    pub fn point(&self) -> String {
        let vlan = self.vlan.map(|vlan| format!(".{vlan}")).unwrap_or_default();
        let direction = if self.is_outgoing { "out" } else { "in" };
        format!("{}{vlan} {direction}", self.interface)
    }
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.point(), self.packet)
    }
}

/// A watch over all interfaces of a host. Dropping it ends it.
#[derive(Debug)]
pub struct Points {
    host: Host,
    names: HashMap<u32, String>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Vec<Seen>>>>,
}

#[derive(Debug)]
struct Seen {
    frame: Frame,
    data: Vec<u8>,
}

impl Points {
    /// Starts watching; what happens after this has returned is seen.
    ///
    /// # Errors
    ///
    /// When there is no such namespace, or we are not root.
    pub fn start(host: &Host) -> Result<Self, LabError> {
        let socket = host
            .enter(PacketSocket::open_all)?
            .map_err(|error| LabError::call(format!("watching {}", host.name()), error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || watch(&socket, &stopped));
        Ok(Self { host: host.clone(), names: names_on(host)?, stop, thread: Some(thread) })
    }

    /// Waits until nothing new comes, and returns what is wanted of what was seen, in order.
    ///
    /// # Errors
    ///
    /// When frames were lost: then nothing can be said.
    pub fn stop(mut self, wanted: impl Fn(&Packet) -> bool) -> Result<Vec<Sighting>, LabError> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("only here it is taken, and only once");
        let seen = thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map_err(|error| LabError::call(format!("watching {}", self.host.name()), error))?;
        let mut names = std::mem::take(&mut self.names);
        names.extend(names_on(&self.host)?);
        let sightings = seen.into_iter().map(|seen| seen.into_sighting(&names));
        Ok(sightings.filter(|sighting| wanted(&sighting.packet)).collect())
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn into_sighting(self, names: &HashMap<u32, String>) -> Sighting {
        let Self { frame, mut data } = self;
        let mut vlan = frame.tci.map(|tci| tci.0 & 0xfff);
        let word = |data: &[u8], at: usize| match data.get(at..at + 2) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            _ => 0,
        };
        let mut header = 14;
        let mut ethertype = word(&data, 12);
        // Sent by a packet socket, the tag is still in the frame.
        if !frame.is_bare && ethertype == 0x8100 {
            vlan = Some(word(&data, 14) & 0xfff);
            (ethertype, header) = (word(&data, 16), 18);
        }
        if frame.is_bare {
            header = 0;
            ethertype =
                if data.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
        }
        let network = data.split_off(header.min(data.len()));
        Sighting {
            // One that came and went in between has no name.
            interface: names.get(&frame.interface).cloned().unwrap_or_default(),
            is_outgoing: frame.is_outgoing,
            vlan,
            packet: Packet::parse(ethertype, network, false),
        }
    }
}

/// Names of the interfaces that are there now.
fn names_on(host: &Host) -> Result<HashMap<u32, String>, LabError> {
    let names = || {
        let interfaces = if_nameindex()?;
        let name = |interface: &nix::net::if_::Interface| {
            (interface.index(), interface.name().to_string_lossy().into_owned())
        };
        Ok(interfaces.iter().map(name).collect())
    };
    host.enter(names)?.map_err(|error: Errno| LabError::call("if_nameindex", error))
}

fn watch(socket: &PacketSocket, stop: &AtomicBool) -> io::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    let lost = until_quiet(socket, stop, QUIET, |frame, data| {
        seen.push(Seen { frame, data: data.to_vec() });
        Ok(())
    })?;
    match lost {
        0 => Ok(seen),
        lost => Err(io::Error::other(format!("{lost} frames were lost"))),
    }
}
