//! A packet as frames: whole super-frames, wire segments or groups of them, fragments; checksums
//! left to the hardware; inside of another packet.

use crate::compare::checksum;

use super::identity::Identity;
use super::packet::{
    Body, End, Ends, Look, Packet, addresses, ethernet, flag, fragments, low16, low32,
};
use super::topology::Topology;
use super::way::{Hop, View};

/// How bulk is cut at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Each segment a frame.
    Wire,
    /// So many segments in a frame, at most.
    Groups(usize),
}

impl Form {
    /// One of four.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Groups(usize::MAX),
            1 => Self::Wire,
            2 => Self::Groups(2),
            _ => Self::Groups(3),
        }
    }
}

/// What becomes of a packet on a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// One frame.
    Not,
    /// Segments of so many bytes.
    Segments(usize),
    /// Fragments of so many bytes.
    Fragments(usize),
}

/// A frame, and what was left to the hardware.
#[derive(Clone, Debug)]
pub struct Piece {
    /// From the link header on.
    pub data: Vec<u8>,
    /// As in `virtio_net_hdr`.
    pub gso_size: u16,
    /// As in `virtio_net_hdr`.
    pub gso_type: u8,
    /// As in `virtio_net_hdr`.
    pub partial: Option<(u16, u16)>,
}

impl Piece {
    fn plain(ip: &[u8]) -> Self {
        Self { data: ethernet(ip, 0), gso_size: 0, gso_type: 0, partial: None }
    }

    /// Leaves the transport checksum to the hardware.
    fn leave_checksum(&mut self) {
        let Some(layout) = Identity::layout(&self.data).filter(|it| !it.is_fragment) else {
            return;
        };
        let offset = match layout.protocol {
            6 => 16,
            17 => 6,
            _ => return,
        };
        let is_v4 = self.data[layout.l3] >> 4 == 4;
        let octets = layout.l3 + if is_v4 { 12 } else { 8 };
        let octets = octets..octets + if is_v4 { 8 } else { 32 };
        let mut pseudo = self.data[octets].to_vec();
        pseudo.extend([0, layout.protocol]);
        pseudo.extend(low32(layout.end - layout.l4).to_be_bytes());
        // Without a pseudo-header of its own, and not inverted.
        let [high, low] = checksum::l4(&[], 1, &pseudo);
        let at = layout.l4 + offset;
        self.data[at..at + 2].copy_from_slice(&[!high, !low]);
        self.partial = Some((low16(layout.l4), low16(offset)));
    }
}

/// The frames of a packet at a point.
#[must_use]
pub fn pieces(packet: &Packet, look: &Look, cut: Cut, form: Form, leave: bool) -> Vec<Piece> {
    let mut pieces = match cut {
        Cut::Not => vec![Piece::plain(&packet.ip(look))],
        Cut::Fragments(size) => {
            fragments(&packet.ip(look), size).iter().map(|ip| Piece::plain(ip)).collect()
        }
        Cut::Segments(size) => segments(packet, look, size, form),
    };
    if leave {
        pieces.iter_mut().for_each(Piece::leave_checksum);
    }
    pieces
}

fn segments(packet: &Packet, look: &Look, size: usize, form: Form) -> Vec<Piece> {
    let count = packet.payload.len().div_ceil(size);
    let group = match form {
        Form::Wire => 1,
        Form::Groups(group) => group.min(count),
    };
    let mut pieces = Vec::new();
    for (at, payload) in packet.payload.chunks(size * group).enumerate() {
        let first = at * group;
        let is_last = first + group >= count;
        let body = match &packet.body {
            Body::Tcp { sequence, flags, timestamp } => {
                let mut flags = *flags;
                if first != 0 {
                    flags &= !flag::CWR;
                }
                if !is_last {
                    flags &= !(flag::PSH | flag::FIN);
                }
                let sequence = sequence.wrapping_add(low32(first * size));
                Body::Tcp { sequence, flags, timestamp: *timestamp }
            }
            other => other.clone(),
        };
        let id = packet.id.wrapping_add(low16(first));
        let frame = Packet { body, id, payload: payload.to_vec(), ..packet.clone() };
        let mut piece = Piece::plain(&frame.ip(look));
        if payload.len() > size {
            piece.gso_size = low16(size);
            let is_v6 = look.ends.source.address.is_ipv6();
            piece.gso_type = match (&frame.body, is_v6) {
                (Body::Tcp { .. }, false) => 1,
                (Body::Tcp { .. }, true) => 4,
                _ => 5,
            };
            piece.leave_checksum();
        }
        pieces.push(piece);
    }
    pieces
}

/// A frame inside of a datagram between the two nodes of a tunnel.
#[must_use]
pub fn encapsulated(piece: &Piece, v6: bool, _: &Topology, hops: &[Hop], number: usize) -> Piece {
    let mut nodes: Vec<usize> =
        hops.iter().filter(|hop| hop.view == View::Outer).map(|hop| hop.node).collect();
    nodes.dedup();
    let last = hops.last().map_or(0, |hop| hop.node);
    let (from, to) = match nodes[..] {
        [from, to] => (from, to),
        // Lost on the way: to wherever.
        [from] => (from, if from == last { from + 1 } else { last }),
        _ => (0, 1),
    };
    let end = |node, port| End { address: Topology::own(node, false, v6), port };
    let ends = Ends { source: end(from, 5555), destination: end(to, 4789) };
    let payload = [&[8, 0, 0, 0, 0, 0, 1, 0], &piece.data[..]].concat();
    let outer = Packet { dscp: 0, id: low16(number), has_option: false, body: Body::Udp, payload };
    debug_assert!(!addresses(&ends).is_empty());
    Piece::plain(&outer.ip(&Look { ends, about: None, ttl: 64, is_marked: false }))
}
