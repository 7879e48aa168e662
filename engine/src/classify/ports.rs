//! `--election ports`: the rule of the reference's start script, bit for bit.
//!
//! ```text
//! PODNET, SVCNET (flags) + main device's subnets (netlink) --Ports::new--> Ports
//! Ports::takes(frame)  = the verdict of the script's filter on it         (user space)
//! filter/ports.rs      = the same as instructions of the socket filter    (kernel)
//! ```
//!
//! The script writes one pcap-filter expression and hands it to the daemon. With `S` the service
//! prefixes, `C` the pods' prefixes and the subnets right behind the device of the default route,
//! it says (spaces and breaks are ours):
//!
//! ```text
//! not ip or (not ip proto 4) and (not ip net S1) and (not ip net S2) ... and (
//!   ( not ( ip src or dst net C1 or ip src or dst net C2 ... ) )
//!   or (inbound  and ( ((ip[6:2] & 0x1fff != 0) or ((not tcp)) and (ip[12:4] >= ip[16:4]))
//!       or (tcp and ((tcp[0:2] < tcp[2:2]) or ((tcp[0:2] = tcp[2:2]) and (ip[12:4] >= ip[16:4])))) ))
//!   or (outbound and ( ((ip[6:2] & 0x1fff != 0) or ((not tcp)) and (ip[12:4] <= ip[16:4]))
//!       or (tcp and ((tcp[0:2] > tcp[2:2]) or ((tcp[0:2] = tcp[2:2]) and (ip[12:4] <= ip[16:4])))) ))
//! )
//! ```
//!
//! What that means is not what it looks like everywhere:
//!
//! - `and` and `or` bind alike, left to right: `not ip or A and B` is `(not ip or A) and B`, which is
//!   harmless, since `A` and `B` speak of `ip` only and hold for all else; ARP and RARP too, whose
//!   addresses a bare `net` would look at. `(fragment) or (not tcp) and (address)` is
//!   `(fragment or not tcp) and (address)`: later fragments go by their addresses.
//! - `tcp[0:2]` holds for the first fragment only, and reads where the header length says, even if
//!   that is less than 20.
//! - A load outside the frame rejects it. So runts and cut TCP headers go to nobody.
//! - `inbound` is all that is not `PACKET_OUTGOING`.
//! - A tag that the kernel took out of a frame is not seen, and the packet behind it is; behind a
//!   tag that is still in it there is no `ip`.
//!
//! Nothing else of this crate's rules applies: no content table, no coverage, no overlays; packets
//! are reported twice or never as the reference does. Two things stay, because they are promises:
//! the tap's own traffic is dropped first, and super-frames are cut into what is on the wire.
//! The reference fixes `C` when it starts; here it follows the network.

use ipnet::IpNet;

use crate::frame::{Direction, Frame};
use crate::wire::{Address, PrefixSet, be16, be32, ethertype, protocol};

/// Where a header's fields are: the reference's link type is Ethernet.
pub(super) mod at {
    pub(in crate::classify) const ETHERTYPE: u32 = 12;
    pub(in crate::classify) const IP: u32 = 14;
    pub(in crate::classify) const FRAGMENT: u32 = IP + 6;
    pub(in crate::classify) const PROTOCOL: u32 = IP + 9;
    pub(in crate::classify) const SOURCE: u32 = IP + 12;
    pub(in crate::classify) const DESTINATION: u32 = IP + 16;
}

/// The part of the fragment field that is not 0 for all but the first.
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Ports {
    pub(super) service: PrefixSet,
    /// `None` for all of IPv4, of which libpcap's optimizer knows that it needs no look.
    pub(super) cluster: Option<Cluster>,
}

/// `C`.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    /// The prefix that stands first in the text. Only a source in it is enough: from the next
    /// prefix on, the destination has been loaded.
    pub(super) first: PrefixSet,
    pub(super) all: PrefixSet,
}

impl Ports {
    /// IPv6 prefixes say nothing here: the rule passes all that is not IPv4.
    pub(super) fn new(
        service: &[IpNet],
        pods: &[IpNet],
        main_subnets: impl IntoIterator<Item = ipnet::Ipv4Net>,
    ) -> Self {
        let v4 = |net: &IpNet| matches!(net, IpNet::V4(_));
        let service = PrefixSet::new(service.iter().copied().filter(v4));
        let main = main_subnets.into_iter().map(IpNet::V4);
        let cluster: Vec<IpNet> = main.chain(pods.iter().copied().filter(v4)).collect();
        let is_all = cluster.iter().any(|net| net.prefix_len() == 0);
        let cluster = (!is_all).then(|| Cluster {
            first: PrefixSet::new(cluster.first().copied()),
            all: PrefixSet::new(cluster),
        });
        Self { service, cluster }
    }

    /// True if the script's filter would accept the frame at this point.
    pub(super) fn takes(&self, frame: &Frame<'_>) -> bool {
        self.verdict(frame.data, frame.point.direction).unwrap_or(false)
    }

    /// `None` for a load outside the frame.
    fn verdict(&self, data: &[u8], direction: Direction) -> Option<bool> {
        let half = |offset: u32| be16(data, offset as usize);
        let address = |offset: u32| be32(data, offset as usize).map(u32::to_be_bytes);
        if half(at::ETHERTYPE)? != ethertype::IPV4 {
            return Some(true);
        }
        let protocol = *data.get(at::PROTOCOL as usize)?;
        if protocol == protocol::IPIP {
            return Some(false);
        }
        // Looked at only where the filter would load them: the ports behind a header that says it is
        // shorter than 20 bytes may be there although an address is not.
        let (source, destination) = (address(at::SOURCE), address(at::DESTINATION));
        let is_in = |set: &PrefixSet, octets| set.contains(Address::from_v4(octets));
        if !self.service.is_empty()
            && (is_in(&self.service, source?) || is_in(&self.service, destination?))
        {
            return Some(false);
        }
        if let Some(cluster) = &self.cluster
            && !is_in(&cluster.first, source?)
            && !is_in(&cluster.all, destination?)
            && !is_in(&cluster.all, source?)
        {
            return Some(true);
        }
        let is_inbound = direction == Direction::In;
        if protocol == protocol::TCP && half(at::FRAGMENT)? & FRAGMENT_OFFSET == 0 {
            let header_len = u32::from(data.get(at::IP as usize)? & 0xf) * 4;
            let (from, to) = (half(at::IP + header_len)?, half(at::IP + header_len + 2)?);
            if from != to {
                return Some((from < to) == is_inbound);
            }
        }
        let (source, destination) = (source?, destination?);
        Some(source == destination || (source > destination) == is_inbound)
    }
}

#[cfg(test)]
pub(super) mod tests;
