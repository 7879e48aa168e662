//! An AF_PACKET socket on one interface, or all, of the calling thread's namespace.
//!
//! ```text
//! receive: [vnet header][frame without tag] + cmsg PACKET_AUXDATA (tag) + sockaddr_ll (direction)
//! ```
#![expect(unsafe_code, reason = "socket options and addresses of packet sockets")]

use nix::net::if_::if_nametoindex;
use socket2::{Domain, MaybeUninitSlice, MsgHdrMut, Protocol, SockAddr, Socket, Type};
use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

/// What the kernel may queue for us, bytes.
const QUEUE_BYTES: libc::c_int = 256 << 20;
/// Bytes of `struct virtio_net_hdr`.
pub(crate) const VNET_BYTES: usize = 10;

/// A VLAN tag's control information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tci(pub(crate) u16);

/// What came with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Bytes in the buffer, the vnet header included where it was asked for.
    pub(crate) length: usize,
    /// The tag that the kernel took off.
    pub(crate) tci: Option<Tci>,
    /// The host sends it (it does not come in).
    pub(crate) is_outgoing: bool,
    /// Index of the interface.
    pub(crate) interface: u32,
    /// It begins with the network header: the interface has no Ethernet.
    pub(crate) is_bare: bool,
}

/// A non-blocking socket that gets all frames of its interface, and sends there.
#[derive(Debug)]
pub(crate) struct PacketSocket(Socket);

impl PacketSocket {
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        Self::bound(if_nametoindex(interface)?, false)
    }

    /// Each frame, received or sent, begins with its vnet header.
    pub(crate) fn open_with_vnet_headers(interface: &str) -> io::Result<Self> {
        Self::bound(if_nametoindex(interface)?, true)
    }

    /// On all interfaces of the namespace, also those to come; to receive only.
    pub(crate) fn open_all() -> io::Result<Self> {
        Self::bound(0, false)
    }

    fn bound(index: u32, with_vnet_headers: bool) -> io::Result<Self> {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
        // Without a protocol, so that it gets nothing before it is bound.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        let socket = Self(socket);
        socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, QUEUE_BYTES)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, i32::from(with_vnet_headers))?;
        socket.0.set_nonblocking(true)?;
        socket.0.bind(&link_address(index, all)?)?;
        Ok(socket)
    }

    /// What other sockets and the kernel send by the interface is not received.
    pub(crate) fn ignore_own_sending(&self) -> io::Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
    }

    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Frame> {
        let mut control = [MaybeUninit::<u8>::uninit(); 64];
        let storage = link_address(0, 0)?;
        let mut source = storage;
        let (length, control_length) = {
            // SAFETY: u8 and MaybeUninit<u8> are laid out alike, and the kernel only writes
            // initialised bytes through it.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(
                    buffer.as_mut_ptr().cast::<MaybeUninit<u8>>(),
                    buffer.len(),
                )
            };
            let mut slices = [MaybeUninitSlice::new(bytes)];
            let mut message = MsgHdrMut::new()
                .with_addr(&mut source)
                .with_buffers(&mut slices)
                .with_control(&mut control);
            let length = self.0.recvmsg(&mut message, libc::MSG_DONTWAIT)?;
            (length, message.control_len())
        };
        // SAFETY: the kernel has written that many bytes of control messages.
        let control =
            unsafe { std::slice::from_raw_parts(control.as_ptr().cast::<u8>(), control_length) };
        // SAFETY: the address is a sockaddr_ll, which is what this socket's family has; it was
        // made as one, and is larger than that.
        let source = unsafe { &*source.as_ptr().cast::<libc::sockaddr_ll>() };
        Ok(Frame {
            length,
            tci: tag(control),
            is_outgoing: source.sll_pkttype == libc::PACKET_OUTGOING,
            interface: u32::try_from(source.sll_ifindex).unwrap_or(0),
            is_bare: !matches!(source.sll_hatype, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK),
        })
    }

    /// Sends one frame, or, with a vnet header before it, one super-frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }

    /// Frames that the queue had no room for, since the last call.
    pub(crate) fn lost(&self) -> io::Result<u64> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = socklen(size_of::<libc::tpacket_stats>());
        // SAFETY: the kernel writes at most `length` bytes, which is what the struct has.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        if result == 0 { Ok(u64::from(stats.tp_drops)) } else { Err(io::Error::last_os_error()) }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the value is an int that lives through the call, and its size is given.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                socklen(size_of::<libc::c_int>()),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn socklen(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).unwrap_or(0)
}

fn link_address(index: u32, protocol: u16) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the storage is larger than a sockaddr_ll, of which every field that the kernel
    // reads is set, and the length is that of a sockaddr_ll.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
            (*link).sll_protocol = protocol;
            (*link).sll_ifindex = index;
            *length = socklen(size_of::<libc::sockaddr_ll>());
            Ok(())
        })
    }?;
    Ok(address)
}

/// The tag in the control messages, if there is one.
fn tag(control: &[u8]) -> Option<Tci> {
    // struct cmsghdr { size_t len; int level; int type; } and struct tpacket_auxdata
    // { u32 status, len, snaplen; u16 mac, net, vlan_tci, vlan_tpid; }
    let int = |at: usize| control.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
    let is_auxdata = int(8)? == libc::SOL_PACKET && int(12)? == libc::PACKET_AUXDATA;
    let status = u32::from_ne_bytes(control.get(16..20)?.try_into().ok()?);
    let tci = u16::from_ne_bytes(control.get(32..34)?.try_into().ok()?);
    (is_auxdata && status & libc::TP_STATUS_VLAN_VALID != 0).then_some(Tci(tci))
}
