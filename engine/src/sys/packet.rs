//! `AF_PACKET` sockets and the layout of a `TPACKET_V3` block.
//!
//! ```text
//! block:  BlockHeader | entry | entry | ...      offsets are from the block's first byte
//! entry:  FrameHeader | LinkAddress | .. | VnetHeader | frame      tp_mac is where `frame` starts
//! ```
//!
//! The structs are those of `linux/if_packet.h` and `linux/virtio_net.h`, as plain old data;
//! below each, what we assume of it is checked against `libc`.
#![expect(unsafe_code, reason = "bind takes an untyped address, a program a pointer")]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bytemuck::{NoUninit, Pod, Zeroable};
use socket2::{Domain, SockFilter, SockRef, Socket, Type};

use super::socket::{option, set_option};
use crate::rpcap::BpfInsn;

/// `tpacket_block_desc` with `tpacket_hdr_v1`, the one variant of its union.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockHeader {
    pub(crate) version: u32,
    pub(crate) offset_to_priv: u32,
    /// Written by both sides: see `source::packet::block`.
    pub(crate) block_status: u32,
    pub(crate) num_pkts: u32,
    pub(crate) offset_to_first_pkt: u32,
    /// Bytes in use, this header included.
    pub(crate) blk_len: u32,
    pub(crate) seq_num: u64,
    pub(crate) ts_first_pkt: [u32; 2],
    pub(crate) ts_last_pkt: [u32; 2],
}

const HV1: usize = offset_of!(libc::tpacket_block_desc, hdr);
const _: () = {
    assert!(size_of::<BlockHeader>() == size_of::<libc::tpacket_block_desc>());
    assert!(
        offset_of!(BlockHeader, block_status)
            == HV1 + offset_of!(libc::tpacket_hdr_v1, block_status)
    );
    assert!(offset_of!(BlockHeader, num_pkts) == HV1 + offset_of!(libc::tpacket_hdr_v1, num_pkts));
    assert!(
        offset_of!(BlockHeader, offset_to_first_pkt)
            == HV1 + offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt)
    );
    assert!(offset_of!(BlockHeader, blk_len) == HV1 + offset_of!(libc::tpacket_hdr_v1, blk_len));
};

/// `tpacket3_hdr`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct FrameHeader {
    /// From this header to the next one; 0 in the block's last.
    pub(crate) tp_next_offset: u32,
    pub(crate) tp_sec: u32,
    pub(crate) tp_nsec: u32,
    pub(crate) tp_snaplen: u32,
    pub(crate) tp_len: u32,
    pub(crate) tp_status: u32,
    pub(crate) tp_mac: u16,
    pub(crate) tp_net: u16,
    pub(crate) tp_rxhash: u32,
    pub(crate) tp_vlan_tci: u32,
    pub(crate) tp_vlan_tpid: u16,
    pub(crate) padding: [u8; 10],
}

const VARIANT: usize = offset_of!(libc::tpacket3_hdr, hv1);
const _: () = {
    assert!(size_of::<FrameHeader>() == size_of::<libc::tpacket3_hdr>());
    assert!(
        offset_of!(FrameHeader, tp_snaplen) == offset_of!(libc::tpacket3_hdr, tp_snaplen)
            && offset_of!(FrameHeader, tp_status) == offset_of!(libc::tpacket3_hdr, tp_status)
            && offset_of!(FrameHeader, tp_mac) == offset_of!(libc::tpacket3_hdr, tp_mac)
    );
    assert!(
        offset_of!(FrameHeader, tp_vlan_tci)
            == VARIANT + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tci)
    );
    assert!(
        offset_of!(FrameHeader, tp_vlan_tpid)
            == VARIANT + offset_of!(libc::tpacket_hdr_variant1, tp_vlan_tpid)
    );
};

/// `sockaddr_ll`, at [`LINK_ADDRESS_OFFSET`] of an entry, and as the address of `bind`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct LinkAddress {
    pub(crate) sll_family: u16,
    /// Big-endian.
    pub(crate) sll_protocol: u16,
    pub(crate) sll_ifindex: u32,
    pub(crate) sll_hatype: u16,
    pub(crate) sll_pkttype: u8,
    pub(crate) sll_halen: u8,
    pub(crate) sll_addr: [u8; 8],
}

const _: () = {
    assert!(size_of::<LinkAddress>() == size_of::<libc::sockaddr_ll>());
    assert!(offset_of!(LinkAddress, sll_ifindex) == offset_of!(libc::sockaddr_ll, sll_ifindex));
    assert!(offset_of!(LinkAddress, sll_pkttype) == offset_of!(libc::sockaddr_ll, sll_pkttype));
};

/// `virtio_net_hdr` in the host's byte order (a packet socket speaks the legacy form), right
/// before the frame.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct VnetHeader {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    pub(crate) hdr_len: u16,
    pub(crate) gso_size: u16,
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
}

/// `TPACKET_ALIGN(sizeof(struct tpacket3_hdr))`: where an entry's [`LinkAddress`] stands.
pub(crate) const LINK_ADDRESS_OFFSET: usize =
    size_of::<FrameHeader>().next_multiple_of(libc::TPACKET_ALIGNMENT);
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
pub(crate) const VNET_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`, a flag beside the types of `gso_type`.
pub(crate) const VNET_GSO_ECN: u8 = 0x80;

/// `tpacket_req3`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RingRequest {
    pub(crate) tp_block_size: u32,
    pub(crate) tp_block_nr: u32,
    pub(crate) tp_frame_size: u32,
    pub(crate) tp_frame_nr: u32,
    /// Milliseconds.
    pub(crate) tp_retire_blk_tov: u32,
    pub(crate) tp_sizeof_priv: u32,
    pub(crate) tp_feature_req_word: u32,
}

const _: () = assert!(size_of::<RingRequest>() == size_of::<libc::tpacket_req3>());

/// `tpacket_stats_v3`: sums since they were last read.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Statistics {
    /// Frames that passed the filter; those of `tp_drops` are among them.
    pub(crate) tp_packets: u32,
    pub(crate) tp_drops: u32,
    pub(crate) tp_freeze_q_cnt: u32,
}

const _: () = assert!(size_of::<Statistics>() == size_of::<libc::tpacket_stats_v3>());

/// A raw packet socket of no protocol: it sees no frame until [`bind`].
pub(crate) fn socket() -> io::Result<OwnedFd> {
    Ok(Socket::new(Domain::PACKET, Type::RAW, None)?.into())
}

/// Attaches the socket to frames of `ethertype` at `ifindex`, 0 being every interface of the
/// network namespace, those to come included.
pub(crate) fn bind(socket: impl AsFd, ethertype: u16, ifindex: u32) -> io::Result<()> {
    let address = LinkAddress {
        sll_family: u16::try_from(libc::AF_PACKET).expect("AF_PACKET is 17"),
        sll_protocol: ethertype.to_be(),
        sll_ifindex: ifindex,
        ..LinkAddress::zeroed()
    };
    let len = libc::socklen_t::try_from(size_of::<LinkAddress>()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `address` has the layout of `sockaddr_ll` (asserted above), `len` is its size, and
    // it lives until the call returns.
    let answer = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `packet_mreq`.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct Membership {
    mr_ifindex: u32,
    mr_type: u16,
    mr_alen: u16,
    mr_address: [u8; 8],
}

const _: () = assert!(size_of::<Membership>() == size_of::<libc::packet_mreq>());

/// `PACKET_ADD_MEMBERSHIP` with `PACKET_MR_PROMISC`: until the socket closes.
pub(crate) fn add_promiscuous(socket: impl AsFd, ifindex: u32) -> io::Result<()> {
    let mr_type = u16::try_from(libc::PACKET_MR_PROMISC).map_err(io::Error::other)?;
    let membership = Membership { mr_ifindex: ifindex, mr_type, mr_alen: 0, mr_address: [0; 8] };
    set_option(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// `PACKET_VERSION`: the layout of this file.
pub(crate) fn set_version_3(socket: impl AsFd) -> io::Result<()> {
    let version = libc::tpacket_versions::TPACKET_V3 as u32;
    set_option(socket, libc::SOL_PACKET, libc::PACKET_VERSION, &version)
}

/// `PACKET_VNET_HDR`: a [`VnetHeader`] before each frame. The kernel refuses it once there is a
/// ring.
pub(crate) fn enable_vnet_header(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32)
}

/// `PACKET_RX_RING`: allocates the ring.
pub(crate) fn set_rx_ring(socket: impl AsFd, request: &RingRequest) -> io::Result<()> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, request)
}

/// `PACKET_FANOUT` by a program: makes a new group, or joins the one of that id. Answers the id. Until
/// [`spread_by`], the first member gets all.
///
/// Without `PACKET_FANOUT_FLAG_DEFRAG`: a tap must report fragments as they are.
pub(crate) fn join_fanout(socket: impl AsFd, group: Option<u16>) -> io::Result<u16> {
    let socket = socket.as_fd();
    // The argument: id in the low half, type and flags in the high one.
    let argument = match group {
        Some(id) => u32::from(id) | libc::PACKET_FANOUT_CBPF << 16,
        None => (libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16,
    };
    set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &argument)?;
    let joined: u32 = option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT)?;
    u16::try_from(joined & 0xffff).map_err(io::Error::other)
}

/// `PACKET_FANOUT_DATA`: the program that chooses a frame's member, of the group that the socket is in.
pub(crate) fn spread_by(socket: impl AsFd, program: &[BpfInsn]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|insn| libc::sock_filter { code: insn.code, jt: insn.jt, jf: insn.jf, k: insn.k })
        .collect();
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let fprog = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&fprog)).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads a `sock_fprog` and the `len` instructions it points to; both live until
    // the call returns.
    let answer = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            libc::PACKET_FANOUT_DATA,
            (&raw const fprog).cast(),
            size,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `PACKET_STATISTICS`: reads and clears.
pub(crate) fn take_statistics(socket: impl AsFd) -> io::Result<Statistics> {
    option(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)
}

/// `SO_ATTACH_FILTER`: replaces the filter in one step; on error the old one stays.
pub(crate) fn attach_filter(socket: &impl AsFd, program: &[BpfInsn]) -> io::Result<()> {
    // The kernel takes BPF_MAXINSNS = 4096 and counts in 16 bits: a longer one must not wrap.
    if u16::try_from(program.len()).is_err() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let program: Vec<_> =
        program.iter().map(|insn| SockFilter::new(insn.code, insn.jt, insn.jf, insn.k)).collect();
    SockRef::from(socket).attach_filter(&program)
}
