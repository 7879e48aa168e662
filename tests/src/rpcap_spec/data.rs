//! The data channel (2.): datagrams of both forms and TCP, as strictly as a client takes them.
//!
//! ```text
//! datagram, type 7 ----read_plain----> one Packet
//! datagrams, type 110 --StreamDecoder--> Packets        TCP bytes --TcpDecoder--> Packets
//! ```

use super::kind;

/// A packet as it was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Time: seconds.
    pub seconds: u32,
    /// Time: microseconds.
    pub micros: u32,
    /// Length on the wire.
    pub len: u32,
    /// npkt.
    pub number: u32,
    /// caplen bytes.
    pub data: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Takes a packet header and its frame off the front, if both are there whole.
fn take_packet(bytes: &[u8]) -> Option<(Packet, &[u8])> {
    let (head, rest) = bytes.split_at_checked(20)?;
    let caplen = usize::try_from(word(head, 8)).expect("32 bits");
    let (data, rest) = rest.split_at_checked(caplen)?;
    let packet = Packet {
        seconds: word(head, 0),
        micros: word(head, 4),
        len: word(head, 12),
        number: word(head, 16),
        data: data.to_vec(),
    };
    assert!(packet.micros < 1_000_000, "{packet:?}");
    assert!(caplen <= usize::try_from(packet.len).expect("32 bits"), "{packet:?}");
    Some((packet, rest))
}

/// Reads a datagram of the plain form (2.2): exactly one message, nothing behind it, and never
/// more than a client's buffer of 28 + snaplen bytes.
///
/// # Panics
///
/// When it is anything else: it would end a client's capture.
#[must_use]
pub fn read_plain(datagram: &[u8], snaplen: usize) -> Packet {
    assert!(datagram.len() >= 28, "{datagram:02x?}");
    assert!(datagram.len() <= 28 + snaplen, "{} bytes for snaplen {snaplen}", datagram.len());
    assert_eq!(datagram[..4], [0, kind::PACKET, 0, 0], "version, type, value");
    let plen = usize::try_from(word(datagram, 4)).expect("32 bits");
    assert_eq!(datagram.len(), 8 + plen, "plen");
    let (packet, rest) = take_packet(&datagram[8..]).expect("caplen within plen");
    assert!(rest.is_empty(), "{} bytes behind the frame", rest.len());
    packet
}

/// Puts the stream form (2.4) together. Takes every datagram, in order, or panics.
#[derive(Debug)]
pub struct StreamDecoder {
    mtu: usize,
    sequence: u32,
    stream: Vec<u8>,
}

impl StreamDecoder {
    /// For the datagrams of one STARTCAP, none longer than `mtu`.
    #[must_use]
    pub fn new(mtu: usize) -> Self {
        Self { mtu, sequence: 0, stream: Vec::new() }
    }

    /// Takes the next datagram; the packets that it completes.
    ///
    /// # Panics
    ///
    /// When it is not the next datagram, or not as the specification says.
    pub fn take(&mut self, datagram: &[u8]) -> Vec<Packet> {
        assert!(datagram.len() > 8 && datagram.len() <= self.mtu, "{} bytes", datagram.len());
        assert_eq!(datagram[..2], [0, kind::UDPSTR], "version, type");
        assert_eq!(word(datagram, 4), self.sequence, "seqno: from 0, one more each");
        self.sequence += 1;
        let unfinished = self.unfinished();
        let first = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
        let rest = datagram.len() - 8;
        let expected = if unfinished < rest { 8 + unfinished } else { 0xffff };
        assert_eq!(first, expected, "firsthdridx; {unfinished} of {rest} bytes continue a packet");
        self.stream.extend(&datagram[8..]);
        let mut packets = Vec::new();
        let mut rest = &self.stream[..];
        while let Some((packet, tail)) = take_packet(rest) {
            packets.push(packet);
            rest = tail;
        }
        assert!(rest.is_empty() || rest.len() >= 20, "a packet header is never split");
        self.stream = rest.to_vec();
        packets
    }

    /// Bytes that are missing from the packet begun last; 0 at a packet's edge.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        match self.stream.len() {
            0 => 0,
            len => 20 + usize::try_from(word(&self.stream, 8)).expect("32 bits") - len,
        }
    }
}

/// Cuts a TCP data connection (2.3) into packets.
#[derive(Debug, Default)]
pub struct TcpDecoder {
    held: Vec<u8>,
}

impl TcpDecoder {
    /// Takes the next bytes; the packets that they complete.
    ///
    /// # Panics
    ///
    /// When the stream is not PACKET messages back to back.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Packet> {
        self.held.extend(bytes);
        let mut packets = Vec::new();
        loop {
            let Some((head, rest)) = self.held.split_at_checked(8) else { return packets };
            assert_eq!(head[..4], [0, kind::PACKET, 0, 0], "version, type, value");
            let plen = usize::try_from(word(head, 4)).expect("32 bits");
            let Some((payload, rest)) = rest.split_at_checked(plen) else { return packets };
            let (packet, behind) = take_packet(payload).expect("caplen within plen");
            assert!(behind.is_empty(), "{} bytes behind the frame", behind.len());
            packets.push(packet);
            self.held = rest.to_vec();
        }
    }

    /// True at a message's edge.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpcap_spec::packet;

    #[test]
    fn a_packet_reads_back() {
        let datagram = packet(7, 1_700_000_000, 5, &[9; 60], 40);
        let read = read_plain(&datagram, 40);
        assert_eq!((read.number, read.len, &read.data[..]), (7, 60, &[9; 40][..]));
        let mut decoder = TcpDecoder::default();
        let twice = [&datagram[..], &datagram].concat();
        let read: Vec<_> = twice.chunks(7).flat_map(|piece| decoder.take(piece)).collect();
        assert!(read.len() == 2 && decoder.is_between_messages());
    }

    #[test]
    fn a_stream_is_put_together() {
        let stream = [&packet(1, 5, 6, &[1; 40], 40)[8..], &packet(2, 5, 6, &[2; 10], 10)[8..]];
        let stream = stream.concat();
        let mut decoder = StreamDecoder::new(60);
        let datagram = |head: [u8; 8], bytes: &[u8]| [&head[..], bytes].concat();
        assert_eq!(decoder.take(&datagram([0, 110, 0, 8, 0, 0, 0, 0], &stream[..52])), []);
        assert_eq!(decoder.unfinished(), 8);
        let packets = decoder.take(&datagram([0, 110, 0, 16, 0, 0, 0, 1], &stream[52..]));
        let read: Vec<_> =
            packets.iter().map(|packet| (packet.number, packet.data.len())).collect();
        assert_eq!(read, [(1, 40), (2, 10)]);
        assert_eq!(decoder.unfinished(), 0);
    }
}
