//! The currency of the data path: one captured frame, and where it was seen.
//!
//! ```text
//! source --Frame--> classify --Frame--> dedup --Frame--> encode
//! ```
//!
//! A [`Frame`] borrows the memory that a source lends (a ring block, a file buffer). Nothing here
//! allocates. What the NIC or the kernel took out of the frame on its way to us - the VLAN tag, a
//! checksum left for the hardware - is carried beside the bytes and put back by [`Frame::wire`].

/// Which way a frame crosses an interface, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The frame enters the host's stack (`sll_pkttype` is anything but `PACKET_OUTGOING`).
    In,
    /// The host sends the frame there.
    Out,
}

/// An observation point: an interface and a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Point {
    /// Kernel interface index; 0 where a source knows none.
    pub ifindex: u32,
    /// Direction at that interface.
    pub direction: Direction,
}

/// An 802.1Q or 802.1ad tag that the kernel moved out of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Tag protocol, 0x8100 or 0x88a8.
    pub tpid: u16,
    /// Priority, drop eligibility and VLAN id.
    pub tci: u16,
}

/// What `PACKET_VNET_HDR` says of a frame: the work that was left to the hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The L4 checksum holds only the pseudo-header's sum; `(start, offset)` as in
    /// `virtio_net_hdr`: sum from `start` (bytes from the frame's first) to the end, store at
    /// `start + offset`.
    pub partial_checksum: Option<(u16, u16)>,
    /// Payload bytes of each wire segment of a super-frame; 0 for an ordinary frame.
    pub gso_size: u16,
    /// `gso_type` of `virtio_net_hdr`.
    pub gso_type: u8,
}

/// One captured frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Captured bytes, from the link header on, without the tag in `vlan`.
    pub data: &'a [u8],
    /// Length before any cut, bytes, counted like `data` (without the tag in `vlan`).
    pub wire_len: u32,
    /// Kernel timestamp, nanoseconds since the epoch.
    pub timestamp_ns: u64,
    /// Where it was seen.
    pub point: Point,
    /// The tag to put back after the two MAC addresses.
    pub vlan: Option<VlanTag>,
    /// Work left to the hardware.
    pub offload: Offload,
}

/// A frame as it is on the wire: at most five pieces to be copied one after the other.
#[derive(Clone, Copy, Debug)]
pub struct WireFrame<'a> {
    frame: Frame<'a>,
    tag: [u8; 4],
    checksum: Option<(usize, [u8; 2])>,
    caplen: usize,
}

/// Bytes of the two MAC addresses, after which a VLAN tag stands.
const MACS: usize = 12;

impl<'a> Frame<'a> {
    /// The frame with tag and checksum in place, cut to `snaplen` bytes.
    #[must_use]
    pub fn wire(&self, snaplen: usize) -> WireFrame<'a> {
        let vlan = self.vlan.filter(|_| self.data.len() >= MACS);
        let [t0, t1] = vlan.map_or(0, |tag| tag.tpid).to_be_bytes();
        let [c0, c1] = vlan.map_or(0, |tag| tag.tci).to_be_bytes();
        let tag_len = if vlan.is_some() { 4 } else { 0 };
        let frame = Frame { vlan, ..*self };
        WireFrame {
            frame,
            tag: [t0, t1, c0, c1],
            checksum: self.completed_checksum(),
            caplen: (self.data.len() + tag_len).min(snaplen),
        }
    }

    /// Where the L4 checksum stands and what it must be, if it was left to the hardware and every
    /// byte it covers was captured.
    fn completed_checksum(&self) -> Option<(usize, [u8; 2])> {
        let (start, offset) = self.offload.partial_checksum?;
        if self.offload.gso_size != 0 || self.wire_len as usize != self.data.len() {
            return None;
        }
        let at = usize::from(start) + usize::from(offset);
        let covered = self.data.get(usize::from(start)..)?;
        self.data.get(at..at + 2)?;
        let sum = internet_checksum(covered);
        // UDP over IPv4 reserves 0 for "no checksum": RFC 768 sends all ones instead. For TCP the
        // two are the same number.
        let sum = if sum == 0 { 0xffff } else { sum };
        Some((at, sum.to_be_bytes()))
    }
}

impl WireFrame<'_> {
    /// Bytes that [`for_each_piece`](Self::for_each_piece) hands out.
    #[must_use]
    pub fn caplen(&self) -> usize {
        self.caplen
    }

    /// Length on the wire, bytes, tag included.
    #[must_use]
    pub fn wire_len(&self) -> u32 {
        self.frame.wire_len + if self.frame.vlan.is_some() { 4 } else { 0 }
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub fn timestamp_ns(&self) -> u64 {
        self.frame.timestamp_ns
    }

    /// Hands the frame's bytes, `caplen()` in all, to `take`, in order and in few pieces.
    pub fn for_each_piece(&self, mut take: impl FnMut(&[u8])) {
        let data = self.frame.data;
        let mut left = self.caplen;
        let mut give = |piece: &[u8]| {
            let piece = &piece[..piece.len().min(left)];
            left -= piece.len();
            if !piece.is_empty() {
                take(piece);
            }
        };
        let mut from = 0;
        if self.frame.vlan.is_some() {
            give(&data[..MACS]);
            give(&self.tag);
            from = MACS;
        }
        if let Some((at, bytes)) = self.checksum.filter(|(at, _)| *at >= from) {
            give(&data[from..at]);
            give(&bytes);
            from = at + 2;
        }
        give(&data[from..]);
    }

    /// The frame's bytes in one vector, for tests and files.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.caplen);
        self.for_each_piece(|piece| bytes.extend_from_slice(piece));
        bytes
    }
}

/// RFC 1071: the one's complement of the one's complement sum, big-endian 16-bit words.
#[must_use]
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0u8; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    sum += u64::from(u32::from_be_bytes(last));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits above")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(data: &[u8]) -> Frame<'_> {
        Frame {
            data,
            wire_len: u32::try_from(data.len()).unwrap(),
            timestamp_ns: 0,
            point: Point { ifindex: 1, direction: Direction::In },
            vlan: None,
            offload: Offload::default(),
        }
    }

    #[test]
    fn a_plain_frame_is_its_bytes() {
        let data: Vec<u8> = (0..60).collect();
        let wire = frame(&data).wire(usize::MAX);
        assert_eq!(wire.to_vec(), data);
        assert_eq!((wire.caplen(), wire.wire_len()), (60, 60));
    }

    #[test]
    fn the_tag_goes_back_after_the_addresses() {
        let data: Vec<u8> = (0..60).collect();
        let tagged = Frame { vlan: Some(VlanTag { tpid: 0x8100, tci: 0x0123 }), ..frame(&data) };
        let wire = tagged.wire(usize::MAX);
        assert_eq!(wire.wire_len(), 64);
        let bytes = wire.to_vec();
        assert_eq!(bytes[..12], data[..12]);
        assert_eq!(bytes[12..16], [0x81, 0x00, 0x01, 0x23]);
        assert_eq!(bytes[16..], data[12..]);
    }

    #[test]
    fn a_cut_in_the_middle_of_the_tag_is_a_cut() {
        let data: Vec<u8> = (0..60).collect();
        let tagged = Frame { vlan: Some(VlanTag { tpid: 0x8100, tci: 0x0123 }), ..frame(&data) };
        for snaplen in 0..64 {
            let cut = tagged.wire(snaplen);
            assert_eq!(cut.to_vec(), tagged.wire(usize::MAX).to_vec()[..snaplen]);
            assert_eq!(cut.caplen(), snaplen);
        }
    }

    #[test]
    fn a_runt_gets_no_tag() {
        let data = [1u8; 7];
        let tagged = Frame { vlan: Some(VlanTag { tpid: 0x8100, tci: 1 }), ..frame(&data) };
        assert_eq!(tagged.wire(100).to_vec(), data);
        assert_eq!(tagged.wire(100).wire_len(), 7);
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        // UDP 10.0.0.1:1000 -> 10.0.0.2:2000, payload "hello": the field holds the pseudo-header's
        // sum, as the kernel leaves it with CHECKSUM_PARTIAL.
        let mut data = vec![0u8; 14];
        let mut ip = vec![0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let pseudo = [10, 0, 0, 1, 10, 0, 0, 2, 0, 17, 0, 13];
        let seed = !internet_checksum(&pseudo);
        data.append(&mut ip);
        data.extend([0x03, 0xe8, 0x07, 0xd0, 0, 13]);
        data.extend(seed.to_be_bytes());
        data.extend(b"hello");
        let partial = Frame {
            offload: Offload { partial_checksum: Some((34, 6)), ..Offload::default() },
            ..frame(&data)
        };
        let bytes = partial.wire(usize::MAX).to_vec();
        let mut covered = pseudo.to_vec();
        covered.extend(&bytes[34..]);
        assert_eq!(internet_checksum(&covered), 0, "a right checksum sums to zero");
        assert_eq!(bytes[..40], data[..40]);
        assert_eq!(bytes[42..], data[42..]);
    }

    #[test]
    fn a_checksum_outside_the_frame_is_left_alone() {
        let data = [0u8; 40];
        for at in [(38, 1), (40, 0), (60, 6), (u16::MAX, u16::MAX)] {
            let odd = Frame {
                offload: Offload { partial_checksum: Some(at), ..Offload::default() },
                ..frame(&data)
            };
            assert_eq!(odd.wire(usize::MAX).to_vec(), data);
        }
    }
}
