//! Tunnels of overlays that this kernel has no devices for.
//!
//! ```text
//! geneve.1 (TAP) -- frame --> [Geneve] UDP 6081 to the node that the destination MAC names
//! tunl.1 (TUN)  -- packet --> IP protocol 4 to the node that the destination address names
//! ```
//!
//! Sockets of the node itself send and receive the outer packets: at the uplink they are what the
//! real thing sends.

use super::relay::{BATCH, Moving, deliver, nothing_yet};
use crate::sys::Tap;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
};

/// Geneve's UDP port.
const GENEVE_PORT: u16 = 6081;
/// Version 0, no options, Ethernet inside, VNI 1.
const GENEVE_HEADER: [u8; 8] = [0, 0, 0x65, 0x58, 0, 0, 1, 0];
/// An outer IPv4 header, which a raw socket does not take off.
const IPV4_BYTES: usize = 20;

/// How packets are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wrapping {
    /// Ethernet in Geneve.
    Geneve,
    /// IPv4 in IPv4.
    Ipip,
}

/// A node's end of an overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// Namespace of the node.
    pub namespace: String,
    /// The TAP or TUN.
    pub device: String,
    /// How packets are wrapped.
    pub wrapping: Wrapping,
    /// The node's address.
    pub local: Ipv4Addr,
    /// The other nodes: number and address.
    pub peers: Vec<(u8, Ipv4Addr)>,
}

#[derive(Debug)]
pub(crate) struct TunnelPorts {
    wrapping: Wrapping,
    device: Tap,
    socket: Socket,
    peers: Vec<(u8, Ipv4Addr)>,
}

impl TunnelPorts {
    pub(crate) fn open(tunnel: &Tunnel) -> io::Result<Self> {
        let (device, socket, port) = match tunnel.wrapping {
            Wrapping::Geneve => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
                (Tap::open(&tunnel.device)?, socket, GENEVE_PORT)
            }
            Wrapping::Ipip => {
                let socket =
                    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_IPIP)))?;
                (Tap::open_tun(&tunnel.device)?, socket, 0)
            }
        };
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((tunnel.local, port)).into())?;
        Ok(Self { wrapping: tunnel.wrapping, device, socket, peers: tunnel.peers.clone() })
    }

    fn wrap(&self, buffer: &mut [u8]) -> io::Result<()> {
        let (room, port, names_at) = match self.wrapping {
            // Fifth byte of the destination's MAC address, third of its IPv4 address.
            Wrapping::Geneve => (GENEVE_HEADER.len(), GENEVE_PORT, 4),
            Wrapping::Ipip => (0, 0, 18),
        };
        for _ in 0..BATCH {
            let Some(length) = nothing_yet(self.device.read(&mut buffer[room..]))? else {
                return Ok(());
            };
            buffer[..room].copy_from_slice(&GENEVE_HEADER[..room]);
            let packet = &buffer[..room + length];
            let number = packet.get(room + names_at);
            let peer = self.peers.iter().find(|(peer, _address)| Some(peer) == number);
            if let Some((_number, address)) = peer {
                let to = SocketAddr::from((*address, port));
                deliver(self.socket.send_to(packet, &to.into()).map(drop))?;
            }
        }
        Ok(())
    }

    fn unwrap(&self, buffer: &mut [u8]) -> io::Result<()> {
        let outer = match self.wrapping {
            Wrapping::Geneve => GENEVE_HEADER.len(),
            Wrapping::Ipip => IPV4_BYTES,
        };
        for _ in 0..BATCH {
            let Some(length) = nothing_yet((&self.socket).read(buffer))? else { return Ok(()) };
            if length > outer {
                deliver(self.device.write(&buffer[outer..length]))?;
            }
        }
        Ok(())
    }
}

impl Moving for TunnelPorts {
    fn waits(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.device.as_fd(), self.socket.as_fd()]
    }

    fn turn(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.wrap(buffer)?;
        self.unwrap(buffer)
    }
}
