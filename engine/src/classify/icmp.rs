//! ICMP errors about the tap's own datagrams: answers to its probes, and routers that cannot
//! forward what it sends. They are its own traffic as much as what they quote.
//!
//! ```text
//! ICMP error | the first bytes of the packet that it is about: IP header, UDP header, RPCAP data
//! ```

use crate::wire::{Address, Headers, Network, PrefixSet, protocol};

use super::is_rpcap_data;
use super::own::OwnFlows;

/// ICMP: destination unreachable, fragmentation needed among them.
const UNREACHABLE: u8 = 3;
/// ICMPv6: destination unreachable, packet too big.
const V6_ERRORS: [u8; 2] = [1, 2];
const ICMP_HEADER: usize = 8;
const UDP_HEADER: usize = 8;

/// True if an ICMP packet is an error about RPCAP data to a sensor, or about a datagram of one of
/// the flows, which come from `own` addresses. One that quotes too little to tell is not.
pub(super) fn is_about_our_data(
    data: &[u8],
    headers: &Headers,
    sensors: &PrefixSet,
    flows: &OwnFlows,
    own: &PrefixSet,
) -> bool {
    let Some(message) = data.get(headers.l4..) else { return false };
    let Some((&[kind, ..], quoted)) = message.split_first_chunk::<ICMP_HEADER>() else {
        return false;
    };
    let udp = match headers.network {
        Network::V4 if kind == UNREACHABLE => quoted_v4(quoted),
        Network::V6 if V6_ERRORS.contains(&kind) => quoted_v6(quoted),
        _ => None,
    };
    let Some(Quoted { source, destination, udp }) = udp else { return false };
    let Some((header, payload)) = udp.split_first_chunk::<UDP_HEADER>() else { return false };
    let port = u16::from_be_bytes([header[2], header[3]]);
    (sensors.contains(destination) && is_rpcap_data(payload))
        || (own.contains(source) && flows.take(destination, port, payload))
}

/// The beginning of a UDP packet.
struct Quoted<'a> {
    source: Address,
    destination: Address,
    /// What follows the IP header.
    udp: &'a [u8],
}

fn quoted_v4(packet: &[u8]) -> Option<Quoted<'_>> {
    let header = packet.first_chunk::<20>()?;
    let len = usize::from(header[0] & 15) * 4;
    let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let is_udp = header[0] >> 4 == 4 && header[9] == protocol::UDP && is_first;
    let address =
        |at: usize| Address::from_v4([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    is_udp.then_some(Quoted {
        source: address(12),
        destination: address(16),
        udp: packet.get(len.max(20)..)?,
    })
}

/// The same of IPv6, without extension headers: we send none.
fn quoted_v6(packet: &[u8]) -> Option<Quoted<'_>> {
    let (header, udp) = packet.split_first_chunk::<40>()?;
    let (rest, destination) = header.split_last_chunk::<16>()?;
    let (_, source) = rest.split_last_chunk::<16>()?;
    (header[0] >> 4 == 6 && header[6] == protocol::UDP).then_some(Quoted {
        source: Address::from_v6(*source),
        destination: Address::from_v6(*destination),
        udp,
    })
}
