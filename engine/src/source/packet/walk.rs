//! The frames inside a block, as safe code over its bytes.
//!
//! ```text
//! | BlockHeader | FrameHeader LinkAddress .. VnetHeader frame | FrameHeader ..
//!                |<-------------- tp_next_offset ------------->|
//!                |<------------- tp_mac ------------>|
//! ```
//!
//! The kernel is trusted to write what it documents; a length is checked all the same, once, when
//! it is turned into a slice. An entry that contradicts itself is skipped and counted; when it is
//! the way to the next entry that is lost, so are the entries after it.

use std::cell::Cell;

use crate::frame::{Direction, Frame, Offload, Point, VlanTag};
use crate::sys::packet::{
    BlockHeader, FrameHeader, LINK_ADDRESS_OFFSET, LinkAddress, VNET_GSO_ECN, VNET_NEEDS_CSUM,
    VnetHeader,
};

/// Tag protocol of a frame whose status has no `TP_STATUS_VLAN_TPID_VALID` (kernels before 3.14).
const ETHERTYPE_VLAN: u16 = 0x8100;
/// Bytes of an entry that no frame can begin in.
const LEAST_MAC: usize = LINK_ADDRESS_OFFSET + size_of::<LinkAddress>() + size_of::<VnetHeader>();

/// Walks a block.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    /// The block's bytes from the next entry on.
    rest: &'a [u8],
    /// Entries still to come, as the block says.
    left: u32,
    /// Entries passed.
    index: u32,
    malformed: &'a Cell<u64>,
    /// Entries below this index were counted by an earlier walk.
    counted: &'a Cell<u32>,
}

/// What an entry turned out to be.
enum Entry<'a> {
    Frame(Frame<'a>),
    /// Claimed by the kernel and then given up: `tpacket_rcv` cannot describe the GSO type to
    /// `PACKET_VNET_HDR` (UFO or SCTP, say), so it counts a drop, but leaves the entry in the block
    /// with what an older frame wrote there. Only its status tells: no `TP_STATUS_USER`.
    GivenUp,
    Malformed,
}

impl<'a> Frames<'a> {
    /// The frames of `block`, a whole block; see [`Block`](super::block::Block) for the counters.
    #[inline]
    pub(super) fn new(block: &'a [u8], malformed: &'a Cell<u64>, counted: &'a Cell<u32>) -> Self {
        let mut frames = Frames { rest: &[], left: 0, index: 0, malformed, counted };
        let Some(header) = read::<BlockHeader>(block, 0) else { return frames };
        let used = to_usize(header.blk_len).min(block.len());
        frames.left = header.num_pkts;
        if let Some(rest) = block[..used].get(to_usize(header.offset_to_first_pkt)..) {
            frames.rest = rest;
        }
        frames
    }

    /// Counts `entries` from the current one on.
    #[cold]
    #[inline(never)]
    fn count_malformed(&mut self, entries: u32) {
        let end = self.index.saturating_add(entries);
        let fresh = end.saturating_sub(self.index.max(self.counted.get()));
        self.malformed.set(self.malformed.get().wrapping_add(u64::from(fresh)));
        self.counted.set(self.counted.get().max(end));
    }

    /// The rest of the block cannot be found: counts it and ends the walk. A block of this size
    /// cannot hold more entries than are counted here, whatever its header says.
    #[cold]
    #[inline(never)]
    fn lose_rest(&mut self) {
        let room = u32::try_from(self.rest.len() / LEAST_MAC).unwrap_or(u32::MAX).max(1);
        self.count_malformed(self.left.min(room));
        self.left = 0;
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    #[inline]
    fn next(&mut self) -> Option<Frame<'a>> {
        while self.left > 0 {
            let rest = self.rest;
            let Some(header) = read::<FrameHeader>(rest, 0) else {
                self.lose_rest();
                return None;
            };
            let is_last = self.left == 1;
            // The last entry's offset is 0: it may extend to the end of what is used.
            let len = if is_last { rest.len() } else { to_usize(header.tp_next_offset) };
            let Some((entry, after)) = rest.split_at_checked(len).filter(|_| len >= LEAST_MAC)
            else {
                self.lose_rest();
                return None;
            };
            let found = entry_of(entry, &header);
            if matches!(found, Entry::Malformed) {
                self.count_malformed(1);
            }
            self.rest = after;
            self.left -= 1;
            self.index = self.index.saturating_add(1);
            if let Entry::Frame(frame) = found {
                return Some(frame);
            }
        }
        None
    }
}

/// Reads an entry; every offset and length in it is checked here and nowhere else.
#[inline]
fn entry_of<'a>(entry: &'a [u8], header: &FrameHeader) -> Entry<'a> {
    if header.tp_status & libc::TP_STATUS_USER == 0 {
        return Entry::GivenUp;
    }
    let mac = usize::from(header.tp_mac);
    let (Some(address), Some(end)) = (
        read::<LinkAddress>(entry, LINK_ADDRESS_OFFSET),
        mac.checked_add(to_usize(header.tp_snaplen)),
    ) else {
        return Entry::Malformed;
    };
    let Some(data) = entry.get(mac..end).filter(|_| mac >= LEAST_MAC) else {
        return Entry::Malformed;
    };
    let Some(vnet) = read::<VnetHeader>(entry, mac - size_of::<VnetHeader>()) else {
        return Entry::Malformed;
    };
    if header.tp_len < header.tp_snaplen {
        return Entry::Malformed;
    }
    let outgoing = address.sll_pkttype == libc::PACKET_OUTGOING;
    let direction = if outgoing { Direction::Out } else { Direction::In };
    Entry::Frame(Frame {
        data,
        wire_len: header.tp_len,
        timestamp_ns: u64::from(header.tp_sec) * 1_000_000_000 + u64::from(header.tp_nsec),
        point: Point { ifindex: address.sll_ifindex, direction },
        vlan: vlan_of(header),
        offload: offload_of(&vnet),
    })
}

#[inline]
fn vlan_of(header: &FrameHeader) -> Option<VlanTag> {
    if header.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let has_tpid = header.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let tpid = if has_tpid { header.tp_vlan_tpid } else { ETHERTYPE_VLAN };
    // The field has 32 bits, a tag 16.
    let tci = u16::try_from(header.tp_vlan_tci & 0xffff).expect("masked to 16 bits");
    Some(VlanTag { tpid, tci })
}

/// `csum_start` counts from the frame's first byte *without* the tag that is in `vlan`, as
/// [`Offload`] does: `tpacket_rcv` calls `virtio_net_hdr_from_skb` with `vlan_hlen` 0 (tun and
/// macvtap, which write the tag into the frame, pass `VLAN_HLEN`). A test looks whether it still
/// does.
#[inline]
fn offload_of(vnet: &VnetHeader) -> Offload {
    let is_partial = vnet.flags & VNET_NEEDS_CSUM != 0;
    Offload {
        partial_checksum: is_partial.then_some((vnet.csum_start, vnet.csum_offset)),
        gso_size: vnet.gso_size,
        gso_type: vnet.gso_type & !VNET_GSO_ECN,
    }
}

/// The `T` at `offset` of `bytes`, if all of it is there.
#[inline]
fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8], offset: usize) -> Option<T> {
    let end = offset.checked_add(size_of::<T>())?;
    bytes.get(offset..end).map(bytemuck::pod_read_unaligned)
}

#[inline]
fn to_usize(value: u32) -> usize {
    usize::try_from(value).expect("the targets of TPACKET have at least 32-bit addresses")
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable, bytes_of};
    use proptest::prelude::*;

    use super::*;

    const FIRST: usize = size_of::<BlockHeader>();
    const MAC: usize = LEAST_MAC;

    /// A block as the kernel writes it: one entry of `data` for each, one after the other.
    fn block(frames: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; FIRST];
        for (at, data) in frames.iter().enumerate() {
            let len = (MAC + data.len()).next_multiple_of(8);
            let header = FrameHeader {
                tp_next_offset: if at + 1 == frames.len() { 0 } else { len.try_into().unwrap() },
                tp_sec: 1,
                tp_nsec: 2,
                tp_snaplen: data.len().try_into().unwrap(),
                tp_len: data.len().try_into().unwrap(),
                tp_status: libc::TP_STATUS_USER,
                tp_mac: MAC.try_into().unwrap(),
                ..FrameHeader::zeroed()
            };
            let start = bytes.len();
            bytes.extend(bytes_of(&header));
            bytes.resize(start + MAC, 0);
            bytes.extend(*data);
            bytes.resize(start + len, 0);
        }
        let header = BlockHeader {
            num_pkts: frames.len().try_into().unwrap(),
            offset_to_first_pkt: FIRST.try_into().unwrap(),
            blk_len: bytes.len().try_into().unwrap(),
            ..BlockHeader::zeroed()
        };
        bytes[..FIRST].copy_from_slice(bytes_of(&header));
        bytes
    }

    /// Changes the frame header at `at`.
    fn patch(block: &mut [u8], at: usize, change: impl FnOnce(&mut FrameHeader)) {
        let place = at..at + size_of::<FrameHeader>();
        let mut header: FrameHeader = bytemuck::pod_read_unaligned(&block[place.clone()]);
        change(&mut header);
        block[place].copy_from_slice(bytes_of(&header));
    }

    /// First bytes of the frames, and how many entries were malformed.
    fn walk(block: &[u8]) -> (Vec<u8>, u64) {
        let (malformed, counted) = (Cell::new(0), Cell::new(0));
        let once: Vec<_> = Frames::new(block, &malformed, &counted).map(|f| f.data[0]).collect();
        let of_once = malformed.get();
        let twice: Vec<_> = Frames::new(block, &malformed, &counted).map(|f| f.data[0]).collect();
        assert_eq!(once, twice);
        assert_eq!(malformed.get(), of_once, "a second walk counts nothing again");
        (once, of_once)
    }

    fn three() -> (Vec<u8>, usize) {
        (block(&[&[1; 60], &[2; 60], &[3; 60]]), FIRST + (MAC + 60).next_multiple_of(8))
    }

    #[test]
    fn frames_come_in_order() {
        assert_eq!(walk(&three().0), (vec![1, 2, 3], 0));
        assert_eq!(walk(&block(&[])), (vec![], 0));
    }

    #[test]
    fn a_frame_that_leaves_its_entry_is_skipped_and_counted() {
        for change in [
            |header: &mut FrameHeader| header.tp_snaplen = 100_000,
            |header: &mut FrameHeader| header.tp_snaplen = u32::MAX,
            |header: &mut FrameHeader| header.tp_mac = u16::MAX,
            |header: &mut FrameHeader| header.tp_mac = 0,
            |header: &mut FrameHeader| header.tp_len = 59,
        ] {
            let (mut bytes, second) = three();
            patch(&mut bytes, second, change);
            assert_eq!(walk(&bytes), (vec![1, 3], 1));
        }
    }

    #[test]
    fn a_lost_way_loses_the_rest_of_the_block() {
        for offset in [0, 8, 1 << 20, u32::MAX] {
            let (mut bytes, second) = three();
            patch(&mut bytes, second, |header| header.tp_next_offset = offset);
            assert_eq!(walk(&bytes), (vec![1], 2));
        }
    }

    #[test]
    fn an_entry_that_the_kernel_gave_up_is_no_frame_and_no_error() {
        let (mut bytes, second) = three();
        patch(&mut bytes, second, |header| header.tp_status = 0);
        assert_eq!(walk(&bytes), (vec![1, 3], 0));
    }

    #[test]
    fn a_count_that_cannot_be_is_bounded() {
        let (mut bytes, _) = three();
        let mut header: BlockHeader = bytemuck::pod_read_unaligned(&bytes[..FIRST]);
        header.num_pkts = u32::MAX;
        bytes[..FIRST].copy_from_slice(bytes_of(&header));
        let (frames, malformed) = walk(&bytes);
        assert_eq!(frames, [1, 2]);
        assert_eq!(malformed, 1);
    }

    #[test]
    fn beside_the_bytes_stand_tag_point_stamp_and_offload() {
        let mut bytes = block(&[&[9; 60]]);
        patch(&mut bytes, FIRST, |header| {
            header.tp_status |= libc::TP_STATUS_VLAN_VALID;
            header.tp_vlan_tci = 0x2064;
            header.tp_len = 1000;
        });
        let address = LinkAddress {
            sll_ifindex: 77,
            sll_pkttype: libc::PACKET_OUTGOING,
            ..LinkAddress::zeroed()
        };
        let at = FIRST + LINK_ADDRESS_OFFSET;
        bytes[at..at + size_of::<LinkAddress>()].copy_from_slice(bytes_of(&address));
        let vnet = VnetHeader {
            flags: VNET_NEEDS_CSUM,
            gso_type: 1 | VNET_GSO_ECN,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            ..VnetHeader::default()
        };
        let at = FIRST + MAC - size_of::<VnetHeader>();
        bytes[at..FIRST + MAC].copy_from_slice(bytes_of(&vnet));
        let (malformed, counted) = (Cell::new(0), Cell::new(0));
        let frame = Frames::new(&bytes, &malformed, &counted).next().unwrap();
        assert_eq!(frame.point, Point { ifindex: 77, direction: Direction::Out });
        assert_eq!(frame.vlan, Some(VlanTag { tpid: 0x8100, tci: 0x2064 }));
        assert_eq!(
            (frame.timestamp_ns, frame.wire_len, frame.data.len()),
            (1_000_000_002, 1000, 60)
        );
        let offload = Offload { partial_checksum: Some((34, 16)), gso_size: 1448, gso_type: 1 };
        assert_eq!(frame.offload, offload);
    }

    proptest! {
        /// A slice outside the block would panic; the walk must also end.
        #[test]
        fn random_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..2048),
                                   first in 0u32..64, sane in any::<bool>()) {
            if sane && bytes.len() >= FIRST {
                let header = BlockHeader { num_pkts: 50, offset_to_first_pkt: first,
                    blk_len: u32::MAX, ..BlockHeader::zeroed() };
                bytes[..FIRST].copy_from_slice(bytes_of(&header));
            }
            walk_hostile(&bytes)?;
        }

        /// Mostly right blocks with a few words overwritten reach deeper than noise does.
        #[test]
        fn a_few_wrong_words_do_no_harm(
            hits in prop::collection::vec((0usize..160, prop_oneof![
                any::<u32>(), 0u32..256, Just(u32::MAX), Just(0)]), 1..8),
        ) {
            let (mut bytes, _) = three();
            for (word, value) in hits {
                if let Some(place) = bytes.get_mut(word * 4..word * 4 + 4) {
                    place.copy_from_slice(&value.to_ne_bytes());
                }
            }
            walk_hostile(&bytes)?;
        }
    }

    fn walk_hostile(bytes: &[u8]) -> Result<(), TestCaseError> {
        let (malformed, counted) = (Cell::new(0), Cell::new(0));
        let most = bytes.len() / LEAST_MAC + 1;
        let bounds = bytes.as_ptr_range();
        let mut frames = 0;
        for frame in Frames::new(bytes, &malformed, &counted) {
            frames += 1;
            let data = frame.data.as_ptr_range();
            prop_assert!(bounds.start <= data.start && data.end <= bounds.end);
            prop_assert!(frame.wire_len as usize >= frame.data.len());
            let _bytes = frame.wire(usize::MAX).to_vec();
        }
        prop_assert!(frames <= most);
        prop_assert!(malformed.get() <= most as u64);
        Ok(())
    }
}
