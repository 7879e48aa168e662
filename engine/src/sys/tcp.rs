//! What the kernel knows of a TCP connection (`TCP_INFO`).

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use bytemuck::{Pod, Zeroable};

use super::socket::option;

/// The beginning of `struct tcp_info`, the same since Linux 2.6:
/// <https://github.com/torvalds/linux/blob/v6.6/include/uapi/linux/tcp.h#L214-L252>.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TcpInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    wscale: u8,
    flags: u8,
    rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    fackets: u32,
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
}

/// What a peer owes us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerInfo {
    /// How long nothing came from it, data or acknowledgement.
    pub silent_for: Duration,
    /// Keepalive probes or retransmissions that it has not answered.
    pub unanswered: u8,
}

/// Asks the kernel about the peer of a connected socket.
pub(crate) fn peer_info(socket: impl AsFd) -> io::Result<PeerInfo> {
    let info: TcpInfo = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok(PeerInfo {
        silent_for: Duration::from_millis(info.last_ack_recv.min(info.last_data_recv).into()),
        unanswered: info.probes.max(info.retransmits),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_peer_that_just_spoke_owes_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        theirs.write_all(b"x").unwrap();
        ours.read_exact(&mut [0]).unwrap();
        let info = peer_info(&ours).unwrap();
        assert_eq!(info.unanswered, 0);
        assert!(info.silent_for < Duration::from_secs(30), "{info:?}");
    }
}
