//! Packets of a capture file, pcap or pcapng.

use super::packet::Packet;
use pcap_parser::{
    Block, Linktype, PcapBlockOwned, PcapError, create_reader, traits::PcapNGPacketBlock as _,
};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// Room for the largest block: a packet of 256 KiB and its options.
const BUFFER_BYTES: usize = 1 << 20;

/// Why a capture could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No such file, or no permission.
    #[error("cannot open {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a capture, or cut off.
    #[error("{path:?}, after {packets} packets: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// How far it was good.
        packets: usize,
        /// What is wrong.
        what: String,
    },
}

/// A packet with what the capture knew of its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The packet, from its network header on.
    pub packet: Packet,
    /// Who sent the frame on this link; `None` without an Ethernet header.
    pub source_mac: Option<[u8; 6]>,
    /// Whom the frame is for on this link; `None` without an Ethernet header.
    pub destination_mac: Option<[u8; 6]>,
    /// When it was captured, microseconds since 1970.
    pub time_us: u64,
}

/// Reads all packets of a file.
///
/// # Errors
///
/// When the file is missing, no capture, incomplete, or of a link type that we cannot strip.
pub fn read(path: &Path) -> Result<Vec<Packet>, ReadError> {
    Ok(read_frames(path)?.into_iter().map(|frame| frame.packet).collect())
}

/// Reads all packets of a file, with what is known of their frames.
///
/// # Errors
///
/// As [`read`].
pub fn read_frames(path: &Path) -> Result<Vec<Frame>, ReadError> {
    let mut frames = Vec::new();
    for_each_frame(path, &mut |frame| frames.push(frame))?;
    Ok(frames)
}

/// Hands out the packets of a file one by one: for more of them than memory has room for.
///
/// # Errors
///
/// As [`read`].
pub fn for_each_frame(path: &Path, each: &mut dyn FnMut(Frame)) -> Result<(), ReadError> {
    let file =
        File::open(path).map_err(|source| ReadError::Open { path: path.to_owned(), source })?;
    let mut packets = 0;
    let counted = &mut |frame| {
        packets += 1;
        each(frame);
    };
    read_blocks(file, counted).map_err(|what| ReadError::Format {
        path: path.to_owned(),
        packets,
        what,
    })
}

fn read_blocks(file: File, each: &mut dyn FnMut(Frame)) -> Result<(), String> {
    let mut reader = create_reader(BUFFER_BYTES, file).map_err(|error| error.to_string())?;
    // Of each interface of the section; a pcap file has one.
    let mut links: Vec<Link> = Vec::new();
    loop {
        let consumed = match reader.next() {
            Ok((consumed, block)) => {
                take(block, &mut links, each)?;
                Some(consumed)
            }
            Err(PcapError::Eof) => return Ok(()),
            Err(PcapError::Incomplete(_)) => None,
            Err(error) => return Err(error.to_string()),
        };
        match consumed {
            Some(consumed) => reader.consume(consumed),
            None if reader.reader_exhausted() => {
                return Err("the file ends inside a block".to_owned());
            }
            None => reader.refill().map_err(|error| error.to_string())?,
        }
    }
}

/// An interface of the file.
#[derive(Clone, Copy)]
struct Link {
    kind: Linktype,
    /// Ticks of its time stamps.
    per_second: u64,
}

fn take(
    block: PcapBlockOwned<'_>,
    links: &mut Vec<Link>,
    each: &mut dyn FnMut(Frame),
) -> Result<(), String> {
    let (mut time_us, mut ticks) = (0, 0);
    let (interface, data, whole) = match &block {
        PcapBlockOwned::LegacyHeader(header) => {
            links.push(Link { kind: header.network, per_second: 1_000_000 });
            return Ok(());
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            links.clear();
            return Ok(());
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            // The upper bit would say powers of two, which nobody writes.
            let per_second = 10_u64.saturating_pow(u32::from(interface.if_tsresol & 0x7f));
            links.push(Link { kind: interface.linktype, per_second });
            return Ok(());
        }
        PcapBlockOwned::Legacy(packet) => {
            time_us = u64::from(packet.ts_sec) * 1_000_000 + u64::from(packet.ts_usec);
            (0, packet.data, packet.origlen)
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
            (packet.if_id, packet.packet_data(), packet.origlen)
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            (0, packet.packet_data(), packet.origlen)
        }
        PcapBlockOwned::NG(_) => return Ok(()),
    };
    let link = usize::try_from(interface)
        .ok()
        .and_then(|index| links.get(index))
        .ok_or_else(|| format!("a packet of interface {interface}, which is not described"))?;
    let cut_short = usize::try_from(whole).is_ok_and(|whole| data.len() < whole);
    let (ethertype, network) = strip(link.kind, data)?;
    if ticks > 0 {
        let micros = u128::from(ticks) * 1_000_000 / u128::from(link.per_second.max(1));
        time_us = u64::try_from(micros).unwrap_or(u64::MAX);
    }
    let mac = |at: usize| match link.kind {
        Linktype::ETHERNET => data.get(at..at + 6).and_then(|mac| mac.try_into().ok()),
        _ => None,
    };
    let (destination_mac, source_mac) = (mac(0), mac(6));
    let packet = Packet::parse(ethertype, network.to_vec(), cut_short);
    each(Frame { packet, source_mac, destination_mac, time_us });
    Ok(())
}

/// Takes off the link header and VLAN tags: type of the network header, and what begins there.
fn strip(link: Linktype, data: &[u8]) -> Result<(u16, &[u8]), String> {
    let (type_at, mut at) = match link {
        Linktype::ETHERNET => (12, 14),
        Linktype::LINUX_SLL => (14, 16),
        Linktype(276) => (0, 20), // LINUX_SLL2
        Linktype::RAW => {
            let ethertype =
                if data.first().is_some_and(|byte| byte >> 4 == 6) { 0x86dd } else { 0x0800 };
            return Ok((ethertype, data));
        }
        other => return Err(format!("link type {} cannot be compared", other.0)),
    };
    let word = |at: usize| match data.get(at..at + 2) {
        Some(&[high, low]) => Some(u16::from_be_bytes([high, low])),
        _ => None,
    };
    // A runt is compared as the bytes that it is.
    let Some(mut ethertype) = word(type_at).filter(|_type| data.len() >= at) else {
        return Ok((0, data));
    };
    while let (0x8100 | 0x88a8, Some(inner)) = (ethertype, word(at + 2)) {
        ethertype = inner;
        at += 4;
    }
    Ok((ethertype, data.get(at..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{super::packet::samples, *};
    use std::io::Write as _;

    fn pcap(link: u32, frames: &[(Vec<u8>, usize)]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut words = |words: &[u32]| {
            for word in words {
                file.write_all(&word.to_le_bytes()).unwrap();
            }
        };
        words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, link]);
        for (frame, whole) in frames {
            let length = u32::try_from(frame.len()).unwrap();
            let mut header = Vec::new();
            for word in [1, 2, length, u32::try_from(*whole).unwrap()] {
                header.extend(word.to_le_bytes());
            }
            file.write_all(&header).unwrap();
            file.write_all(frame).unwrap();
        }
        file
    }

    fn ethernet(tags: &[u8], packet: &Packet) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(tags);
        frame.extend([8, 0]);
        frame.extend(packet.data());
        frame
    }

    #[test]
    fn link_headers_and_tags_go() {
        let packet = samples::tcp(1, b"x");
        let tags = [0x88, 0xa8, 0, 1, 0x81, 0, 0, 2];
        let frames = [ethernet(&[], &packet), ethernet(&tags, &packet)]
            .map(|frame| (frame.clone(), frame.len()));
        let file = pcap(1, &frames);
        assert_eq!(read(file.path()).unwrap(), [packet.clone(), packet]);
    }

    #[test]
    fn a_snapped_packet_is_known_as_one() {
        let frame = ethernet(&[], &samples::tcp(1, b"x"));
        let file = pcap(1, &[(frame, 1500)]);
        assert!(read(file.path()).unwrap()[0].is_cut_short());
    }

    #[test]
    fn an_incomplete_file_is_an_error() {
        let frame = ethernet(&[], &samples::tcp(1, b"x"));
        let file = pcap(1, &[(frame.clone(), frame.len())]);
        let length = file.as_file().metadata().unwrap().len();
        file.as_file().set_len(length - 3).unwrap();
        let error = read(file.path()).unwrap_err();
        assert!(matches!(error, ReadError::Format { packets: 0, .. }), "{error}");
    }

    #[test]
    fn an_unknown_link_type_is_an_error() {
        let file = pcap(105, &[(vec![0; 40], 40)]);
        assert!(read(file.path()).unwrap_err().to_string().contains("link type 105"));
    }

    #[test]
    fn a_runt_is_kept_as_it_is() {
        let file = pcap(1, &[(vec![1, 2, 3], 3)]);
        assert_eq!(read(file.path()).unwrap()[0].data(), [1, 2, 3]);
    }
}
