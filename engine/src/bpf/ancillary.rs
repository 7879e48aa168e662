//! What a program may ask about a frame beside its bytes (`SKF_AD_*`).
//!
//! ```text
//! Frame.point -> pkttype, ifindex      Frame.vlan -> vlan_tag, vlan_tag_present, vlan_tpid
//! Frame.data  -> protocol, pkttype, pay_offset
//! ```
//!
//! Frames are Ethernet. What a [`Frame`] does not carry - mark, queue, flow hash - is 0.

use std::cell::Cell;

use super::op::Ancillary;
use crate::frame::{Direction, Frame};

/// Bytes of the link header: the network header stands behind them.
pub(super) const ETHERNET_HEADER: u32 = 14;

/// `ARPHRD_ETHER`.
const HATYPE_ETHERNET: u32 = 1;

/// The new A; `a` and `x` are the registers before.
pub(super) fn load(fact: Ancillary, frame: &Frame<'_>, a: u32, x: u32) -> u32 {
    match fact {
        Ancillary::Protocol => u32::from(protocol(frame.data)),
        Ancillary::PktType => pkttype(frame),
        Ancillary::IfIndex => frame.point.ifindex,
        Ancillary::HaType => HATYPE_ETHERNET,
        Ancillary::Cpu => cpu(),
        Ancillary::AluXorX => a ^ x,
        Ancillary::VlanTag => frame.vlan.map_or(0, |tag| u32::from(tag.tci)),
        Ancillary::VlanTagPresent => u32::from(frame.vlan.is_some()),
        Ancillary::VlanTpid => frame.vlan.map_or(0, |tag| u32::from(tag.tpid)),
        Ancillary::PayOffset => payload_offset(frame.data),
        Ancillary::Random => random(),
        // "No such attribute" is 0, and a network interface's frames have none.
        Ancillary::NlAttr | Ancillary::NlAttrNest => 0,
        Ancillary::Mark | Ancillary::Queue | Ancillary::RxHash => 0,
    }
}

fn half(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// `skb->protocol` as `eth_type_trans` sets it: an `EtherType`, or for a length field one of the
/// numbers that Linux gives to the two 802.3 forms.
fn protocol(data: &[u8]) -> u16 {
    const ETH_P_802_3: u16 = 0x0001;
    const ETH_P_802_2: u16 = 0x0004;
    match half(data, 12) {
        Some(ethertype @ 0x0600..) => ethertype,
        Some(_) if half(data, 14) == Some(0xffff) => ETH_P_802_3,
        Some(_) => ETH_P_802_2,
        None => 0,
    }
}

/// `skb->pkt_type`. Which unicast address is the interface's own a frame does not tell:
/// `PACKET_OTHERHOST` reads as `PACKET_HOST`.
fn pkttype(frame: &Frame<'_>) -> u32 {
    const HOST: u32 = 0;
    const BROADCAST: u32 = 1;
    const MULTICAST: u32 = 2;
    const OUTGOING: u32 = 4;
    if frame.point.direction == Direction::Out {
        return OUTGOING;
    }
    match frame.data.first_chunk::<6>() {
        Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => BROADCAST,
        Some([first, ..]) if first & 1 != 0 => MULTICAST,
        _ => HOST,
    }
}

fn cpu() -> u32 {
    nix::sched::sched_getcpu().ok().and_then(|cpu| u32::try_from(cpu).ok()).unwrap_or(0)
}

/// The next of a thread's random numbers (splitmix64): good enough to sample frames with.
fn random() -> u32 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(getrandom::u64().unwrap_or(0));
    }
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let [.., a, b, c, d] = (mixed ^ (mixed >> 31)).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// `skb_get_poff`: where the transport header's payload begins, for the protocols that matter to a
/// capture (no tunnels, no MPLS). Of a fragment other than the first it is where the IP header ends,
/// and 0 where the headers are unknown or were not captured.
fn payload_offset(data: &[u8]) -> u32 {
    transport(data).and_then(|(protocol, at)| behind_transport(data, protocol, at)).unwrap_or(0)
}

/// Tags and extension headers that are followed in one frame, at most.
const MAX_HEADERS: usize = 15;

/// The transport protocol, if there is a header of it, and the offset where it stands.
fn transport(data: &[u8]) -> Option<(Option<u8>, usize)> {
    let mut ethertype = protocol(data);
    let mut at = ETHERNET_HEADER as usize;
    for _ in 0..MAX_HEADERS {
        match ethertype {
            0x8100 | 0x88a8 => {
                ethertype = half(data, at + 2)?;
                at += 4;
            }
            0x0800 => {
                let header: &[u8; 20] = data.get(at..)?.first_chunk()?;
                let header_len = usize::from(header[0] & 0xf) * 4;
                let is_first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
                let protocol = is_first.then_some(header[9]);
                return (header_len >= header.len()).then_some((protocol, at + header_len));
            }
            0x86dd => {
                let header: &[u8; 40] = data.get(at..)?.first_chunk()?;
                return skip_extensions(data, header[6], at + header.len());
            }
            0x0806 => return Some((None, at)),
            _ => return None,
        }
    }
    None
}

fn skip_extensions(data: &[u8], mut next: u8, mut at: usize) -> Option<(Option<u8>, usize)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    for _ in 0..MAX_HEADERS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let header: &[u8; 2] = data.get(at..)?.first_chunk()?;
                next = header[0];
                at += (usize::from(header[1]) + 1) * 8;
            }
            FRAGMENT => {
                let header: &[u8; 8] = data.get(at..)?.first_chunk()?;
                let is_first = u16::from_be_bytes([header[2], header[3]]) & 0xfff8 == 0;
                return Some((is_first.then_some(header[0]), at + header.len()));
            }
            _ => return Some((Some(next), at)),
        }
    }
    None
}

fn behind_transport(data: &[u8], protocol: Option<u8>, at: usize) -> Option<u32> {
    let header_len = match protocol {
        Some(6) => usize::from(*data.get(at + 12)? >> 4).max(5) * 4, // TCP
        Some(17 | 136 | 1 | 58 | 2) => 8, // UDP(-Lite), ICMP, ICMPv6, IGMP
        Some(33 | 132) => 12,             // DCCP, SCTP
        _ => 0,
    };
    u32::try_from(at + header_len).ok()
}
