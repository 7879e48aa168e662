//! Sending frames as they are, and super-datagrams by the kernel's own segmentation.
//!
//! ```text
//! craft -> packet -> Raw: [gateway's MAC][own MAC][type] + packet -> AF_PACKET -> the interface
//! SuperDatagrams: one send of n x size bytes with UDP_SEGMENT -> one UDP_L4 super-frame
//! ```

use super::{Sent, random::Random, socket};
use crate::{
    lab::{Host, LabError},
    sys::PacketSocket,
};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use std::{io, net::SocketAddr};

/// A packet socket to send by one interface of a host.
#[derive(Debug)]
pub struct Raw {
    socket: PacketSocket,
    what: String,
    own: [u8; 6],
    next: [u8; 6],
}

impl Raw {
    /// By a pod's `eth0`, to its gateway.
    ///
    /// # Errors
    ///
    /// When the host has no fixed neighbour, or we are not root.
    pub fn on(host: &Host) -> Result<Self, LabError> {
        let next = host.neighbour_mac().ok_or_else(|| {
            LabError::Invalid(format!("{} has no fixed neighbour: say which", host.name()))
        })?;
        Self::towards(host, "eth0", next)
    }

    /// By any interface, to the neighbour with this MAC address.
    ///
    /// # Errors
    ///
    /// When there is no such interface, or we are not root.
    pub fn towards(host: &Host, interface: &str, next: &str) -> Result<Self, LabError> {
        let what = format!("{} {interface}", host.name());
        let socket = host
            .enter(|| PacketSocket::open(interface))?
            .map_err(|error| LabError::call(format!("packet socket on {what}"), error))?;
        let own = bytes(&host.mac(interface)?)?;
        Ok(Self { socket, what, own, next: bytes(next)? })
    }

    /// The interface's own MAC address.
    #[must_use]
    pub fn own_mac(&self) -> [u8; 6] {
        self.own
    }

    /// The neighbour's MAC address.
    #[must_use]
    pub fn next_mac(&self) -> [u8; 6] {
        self.next
    }

    /// Sends an IP packet to the neighbour.
    ///
    /// # Errors
    ///
    /// When the interface does not take it.
    pub fn packet(&self, packet: &[u8]) -> Result<(), LabError> {
        self.packets(packet, 1)
    }

    /// Sends the same IP packet so many times, back to back.
    ///
    /// # Errors
    ///
    /// When the interface does not take one.
    pub fn packets(&self, packet: &[u8], times: u32) -> Result<(), LabError> {
        let ethertype =
            if packet.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
        let frame = super::craft::frame(self.next, self.own, ethertype, packet);
        (0..times).try_for_each(|_time| self.frame(&frame))
    }

    /// Sends a whole frame.
    ///
    /// # Errors
    ///
    /// When the interface does not take it.
    pub fn frame(&self, frame: &[u8]) -> Result<(), LabError> {
        loop {
            match self.socket.send(frame) {
                // The interface's queue is full for the moment.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        || error.raw_os_error() == Some(libc::ENOBUFS) =>
                {
                    std::thread::yield_now();
                }
                result => {
                    return result.map_err(|error| {
                        LabError::call(format!("sending by {}", self.what), error)
                    });
                }
            }
        }
    }
}

/// Six bytes of `0a:58:..`.
fn bytes(mac: &str) -> Result<[u8; 6], LabError> {
    let parts: Vec<u8> =
        mac.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    parts.try_into().map_err(|_other| LabError::Invalid(format!("{mac:?} is no MAC address")))
}

/// UDP datagrams that leave as super-frames (UDP_SEGMENT).
#[derive(Clone, Debug)]
pub struct SuperDatagrams {
    /// Where a [`super::Serve::Discard`] server listens.
    pub to: SocketAddr,
    /// Super-frames.
    pub count: u32,
    /// Datagrams in each.
    pub segments: usize,
    /// Payload of each datagram, bytes; the last one of each super-frame is shorter by `short`.
    pub payload: u16,
    /// Bytes that the last datagram of each is short of `payload`.
    pub short: usize,
    /// Decides the contents.
    pub seed: u64,
    /// `None`: the kernel's choice.
    pub client_port: Option<u16>,
}

impl SuperDatagrams {
    /// `count` super-frames of `segments` datagrams with `payload` bytes, the last one byte less.
    #[must_use]
    pub fn new(to: SocketAddr, count: u32, segments: usize, payload: u16) -> Self {
        Self { to, count, segments, payload, short: 1, seed: 1, client_port: None }
    }

    /// Runs on a host of the lab.
    ///
    /// # Errors
    ///
    /// When the kernel does not take one.
    pub fn run_on(&self, host: &Host) -> Result<Sent, LabError> {
        host.enter(|| self.run())?.map_err(|error| {
            LabError::call(format!("super-datagrams {} -> {}", host.name(), self.to), error)
        })
    }

    /// Runs in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel does not take one.
    pub fn run(&self) -> io::Result<Sent> {
        let socket = socket::udp(self.to, self.client_port)?;
        setsockopt(&socket, UdpGsoSegment, &i32::from(self.payload))?;
        let mut random = Random::new(self.seed);
        let bytes = (self.segments * usize::from(self.payload)).saturating_sub(self.short);
        let mut payload = vec![0; bytes];
        let mut sent = Sent { what: "super-datagrams", connections: 1, ..Sent::default() };
        for _ in 0..self.count {
            random.fill(&mut payload);
            socket.send_to(&payload, self.to)?;
            sent.requests += u64::try_from(self.segments).unwrap_or(0);
            sent.bytes_sent += u64::try_from(bytes).unwrap_or(0);
        }
        Ok(sent)
    }
}
