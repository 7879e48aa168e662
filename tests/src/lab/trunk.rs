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

use super::relay::{BATCH, Moving, deliver, nothing_yet};
use crate::sys::{PacketSocket, Tap, Tci};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

/// A trunk and the TAPs of its VLANs, all on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trunk {
    /// Namespace that they are in.
    pub namespace: String,
    /// The interface that carries tagged frames.
    pub interface: String,
    /// VLAN and the TAP that stands for its device.
    pub vlans: Vec<(u16, String)>,
}

#[derive(Debug)]
pub(crate) struct TrunkPorts {
    trunk: PacketSocket,
    vlans: Vec<(u16, Tap)>,
}

impl TrunkPorts {
    pub(crate) fn open(trunk: &Trunk) -> io::Result<Self> {
        let socket = PacketSocket::open(&trunk.interface)?;
        socket.ignore_own_sending()?;
        let vlans = trunk
            .vlans
            .iter()
            .map(|(vlan, tap)| Ok((*vlan, Tap::open(tap)?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { trunk: socket, vlans })
    }
    /// Tagged frames go to the TAP of their VLAN, without the tag.
    fn untag(&self, buffer: &mut [u8]) -> io::Result<()> {
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
    fn tag(&self, vlan: u16, tap: &Tap, buffer: &mut [u8]) -> io::Result<()> {
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

impl Moving for TrunkPorts {
    fn waits(&self) -> Vec<BorrowedFd<'_>> {
        let vlans = self.vlans.iter().map(|(_vlan, tap)| tap.as_fd());
        std::iter::once(self.trunk.as_fd()).chain(vlans).collect()
    }

    fn turn(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.untag(buffer)?;
        self.vlans.iter().try_for_each(|(vlan, tap)| self.tag(*vlan, tap, buffer))
    }
}
