//! The records of one pcap or pcapng file, one after the other.
//!
//! ```text
//! file --BufReader--> length field, checked --> record (one reused buffer) --pcap-parser--> Head
//! ```
//!
//! A length is checked before a byte of what it announces is read, so the buffer never grows past
//! [`MAX_BLOCK`], whatever the file says. Blocks that hold no packets are skipped unread.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use pcap_parser::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, OptionCode, PcapHeader, parse_block_be,
    parse_block_le, parse_pcap_header,
};

use super::FileError;
use super::link::Link;
use crate::frame::Direction;

/// The most captured bytes of one frame; libpcap's own limit.
pub(super) const MAX_CAPLEN: u32 = 262_144;
/// The longest pcapng block that is read into memory: a frame and its options.
const MAX_BLOCK: u32 = MAX_CAPLEN + 262_144;
/// The most interfaces of one pcapng section.
const MAX_INTERFACES: usize = 65_536;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// One packet; its bytes are [`Reader::bytes`] until the next [`Reader::advance`].
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) timestamp_ns: u64,
    pub(super) wire_len: u32,
    pub(super) link: Link,
    pub(super) direction: Option<Direction>,
    range: Range<usize>,
}

/// A file being read.
#[derive(Debug)]
pub(super) struct Reader<R> {
    path: PathBuf,
    input: BufReader<Chain<Cursor<[u8; 4]>, R>>,
    format: Format,
    record: Vec<u8>,
    /// Records (pcap) or blocks (pcapng) begun, for messages.
    begun: u64,
    /// What a packet without a timestamp gets, to keep its place among the others.
    last_ns: u64,
}

#[derive(Debug)]
enum Format {
    Pcap(Dialect),
    PcapNg { big_endian: bool, interfaces: Vec<Interface> },
}

/// What a pcap file's header says of its records.
#[derive(Clone, Copy, Debug)]
struct Dialect {
    big_endian: bool,
    /// Minor version: the two lengths changed places in 2.3.
    minor: u16,
    header_bytes: usize,
    ns_per_unit: u64,
    link: Link,
}

#[derive(Debug)]
struct Interface {
    link: u32,
    snaplen: u32,
    units_per_second: u128,
    offset_seconds: i64,
}

impl<R: Read> Reader<R> {
    /// Reads the file's header.
    pub(super) fn open(path: &Path, mut file: R) -> Result<Self, FileError> {
        let mut magic = Vec::with_capacity(4);
        if let Err(cause) = file.by_ref().take(4).read_to_end(&mut magic) {
            return Err(FileError::Read { path: path.into(), cause });
        }
        let Ok(magic) = <[u8; 4]>::try_from(magic.as_slice()) else {
            let path = path.into();
            let empty = magic.is_empty();
            return Err(if empty {
                FileError::Empty { path }
            } else {
                FileError::Unknown { path }
            });
        };
        let mut reader = Self {
            path: path.into(),
            input: BufReader::with_capacity(64 * 1024, Cursor::new(magic).chain(file)),
            format: Format::PcapNg { big_endian: false, interfaces: Vec::new() },
            record: Vec::new(),
            begun: 0,
            last_ns: 0,
        };
        if u32::from_le_bytes(magic) != SECTION_HEADER {
            reader.read(24)?;
            let Ok((_, header)) = parse_pcap_header(&reader.record[..24]) else {
                return Err(FileError::Unknown { path: reader.path });
            };
            reader.format = Format::Pcap(reader.dialect(&header)?);
        }
        Ok(reader)
    }

    fn dialect(&self, header: &PcapHeader) -> Result<Dialect, FileError> {
        Ok(Dialect {
            big_endian: header.is_bigendian(),
            minor: header.version_minor,
            header_bytes: if header.is_modified_format() { 24 } else { 16 },
            ns_per_unit: if header.is_nanosecond_precision() { 1 } else { 1000 },
            // The upper bits tell of a frame check sequence.
            link: self.link(header.network.0.cast_unsigned() & 0x03ff_ffff)?,
        })
    }

    fn link(&self, number: u32) -> Result<Link, FileError> {
        Link::from_number(number)
            .ok_or_else(|| FileError::LinkType { path: self.path.clone(), number })
    }

    fn malformed(&self, what: &'static str) -> FileError {
        FileError::Malformed { path: self.path.clone(), record: self.begun, what }
    }

    /// Reads `len` bytes into `record`, in place of what was there.
    fn read(&mut self, len: usize) -> Result<(), FileError> {
        self.record.resize(len, 0);
        self.read_from(0)
    }

    /// Fills `record` from `at` to its end.
    fn read_from(&mut self, at: usize) -> Result<(), FileError> {
        self.input.read_exact(&mut self.record[at..]).map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: io::Error) -> FileError {
        let path = self.path.clone();
        if cause.kind() == io::ErrorKind::UnexpectedEof {
            FileError::Truncated { path, record: self.begun }
        } else {
            FileError::Read { path, cause }
        }
    }

    fn is_at_end(&mut self) -> Result<bool, FileError> {
        loop {
            match self.input.fill_buf() {
                Ok(rest) => return Ok(rest.is_empty()),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(self.failed(cause)),
            }
        }
    }

    /// Goes to the next packet; `None` at the end of the file.
    pub(super) fn advance(&mut self) -> Result<Option<Head>, FileError> {
        while !self.is_at_end()? {
            self.begun += 1;
            let head = match self.format {
                Format::Pcap(dialect) => Some(self.next_record(dialect)?),
                Format::PcapNg { big_endian, .. } => self.next_block(big_endian)?,
            };
            if let Some(head) = head {
                self.last_ns = head.timestamp_ns;
                return Ok(Some(head));
            }
        }
        Ok(None)
    }

    /// The bytes of the packet that [`advance`](Self::advance) returned last.
    pub(super) fn bytes(&self, head: &Head) -> &[u8] {
        &self.record[head.range.clone()]
    }

    fn next_record(&mut self, dialect: Dialect) -> Result<Head, FileError> {
        let Dialect { big_endian, minor, header_bytes, ns_per_unit, link } = dialect;
        self.read(header_bytes)?;
        let seconds = u64::from(u32_at(&self.record, 0, big_endian));
        let units = u64::from(u32_at(&self.record, 4, big_endian));
        let mut caplen = u32_at(&self.record, 8, big_endian);
        let mut orig_len = u32_at(&self.record, 12, big_endian);
        // As libpcap does: 2.3 was written both ways round.
        if minor < 3 || (minor == 3 && caplen > orig_len) {
            (caplen, orig_len) = (orig_len, caplen);
        }
        if caplen > MAX_CAPLEN {
            return Err(self.malformed("more captured bytes than 262144"));
        }
        let end = header_bytes + caplen as usize;
        self.record.resize(end, 0);
        self.read_from(header_bytes)?;
        Ok(Head {
            // At most 2^32 * 10^9 + 2^32 * 10^3: no overflow.
            timestamp_ns: seconds * 1_000_000_000 + units * ns_per_unit,
            wire_len: orig_len.max(caplen),
            link,
            direction: None,
            range: header_bytes..end,
        })
    }

    /// Reads a block; `None` if it holds no packet.
    fn next_block(&mut self, big_endian: bool) -> Result<Option<Head>, FileError> {
        self.read(8)?;
        let mut big_endian = big_endian;
        let kind = u32_at(&self.record, 0, big_endian);
        if kind == SECTION_HEADER {
            self.record.resize(12, 0);
            self.read_from(8)?;
            big_endian = match u32_at(&self.record, 8, false) {
                BYTE_ORDER_MAGIC => false,
                magic if magic.swap_bytes() == BYTE_ORDER_MAGIC => true,
                _ => return Err(self.malformed("no byte-order magic")),
            };
        }
        let length = u32_at(&self.record, 4, big_endian);
        if length < 12 || !length.is_multiple_of(4) {
            return Err(self.malformed("impossible block length"));
        }
        let at = self.record.len();
        match kind {
            SECTION_HEADER | INTERFACE_DESCRIPTION | SIMPLE_PACKET | ENHANCED_PACKET => {
                if length > MAX_BLOCK {
                    return Err(self.malformed("block longer than 524288 bytes"));
                }
                self.record.resize(length as usize, 0);
                self.read_from(at)?;
                self.parse_block(big_endian)
            }
            // Nobody has written these since 2009; to pass over one would be to lose a packet.
            OBSOLETE_PACKET => Err(self.malformed("obsolete Packet Block")),
            _ => {
                let rest = u64::from(length) - 8;
                let skipped = io::copy(&mut self.input.by_ref().take(rest), &mut io::sink())
                    .map_err(|cause| self.failed(cause))?;
                if skipped < rest {
                    return Err(self.failed(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(None)
            }
        }
    }

    fn parse_block(&mut self, big_endian: bool) -> Result<Option<Head>, FileError> {
        let parse = if big_endian { parse_block_be } else { parse_block_le };
        let Ok(([], block)) = parse(&self.record) else {
            return Err(self.malformed("lengths that contradict each other"));
        };
        let Format::PcapNg { big_endian: section_order, interfaces } = &mut self.format else {
            return Ok(None);
        };
        match block {
            Block::SectionHeader(_) => {
                *section_order = big_endian;
                interfaces.clear();
                Ok(None)
            }
            Block::InterfaceDescription(description) => {
                if interfaces.len() == MAX_INTERFACES {
                    return Err(self.malformed("more than 65536 interfaces"));
                }
                interfaces.push(Interface::new(&description, big_endian));
                Ok(None)
            }
            Block::EnhancedPacket(packet) => {
                let Some(interface) = interfaces.get(packet.if_id as usize) else {
                    return Err(self.malformed("packet of an unknown interface"));
                };
                let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let (number, timestamp_ns) = (interface.link, interface.timestamp_ns(units));
                let direction = direction(&packet, big_endian);
                let (caplen, wire_len) = (packet.caplen, packet.origlen.max(packet.caplen));
                self.head(number, timestamp_ns, wire_len, direction, 28, caplen).map(Some)
            }
            Block::SimplePacket(packet) => {
                let Some(interface) = interfaces.first() else {
                    return Err(self.malformed("packet of an unknown interface"));
                };
                let snaplen = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
                let caplen = packet.origlen.min(snaplen);
                let (number, wire_len) = (interface.link, packet.origlen);
                self.head(number, self.last_ns, wire_len, None, 12, caplen).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn head(
        &self,
        link: u32,
        timestamp_ns: u64,
        wire_len: u32,
        direction: Option<Direction>,
        at: usize,
        caplen: u32,
    ) -> Result<Head, FileError> {
        let range = at..at + caplen as usize;
        // The block's own length stands behind the packet.
        if caplen > MAX_CAPLEN || range.end + 4 > self.record.len() {
            return Err(self.malformed("more captured bytes than the block has, or than 262144"));
        }
        Ok(Head { timestamp_ns, wire_len, link: self.link(link)?, direction, range })
    }
}

impl Interface {
    fn new(description: &InterfaceDescriptionBlock<'_>, big_endian: bool) -> Self {
        let value = |code| {
            let option = description.options.iter().find(|option| option.code == code)?;
            option.as_bytes().ok()
        };
        let resolution = value(OptionCode::IfTsresol).and_then(<[u8]>::first).copied();
        let resolution = resolution.unwrap_or(6);
        let units_per_second = if resolution & 0x80 == 0 {
            // Finer than 10^-38 s: no timestamp of 64 bits gets past zero.
            10u128.checked_pow(u32::from(resolution)).unwrap_or(u128::MAX)
        } else {
            1u128 << (resolution & 0x7f)
        };
        let offset = value(OptionCode::IfTsoffset).and_then(|bytes| bytes.try_into().ok());
        let read = if big_endian { i64::from_be_bytes } else { i64::from_le_bytes };
        Self {
            link: description.linktype.0.cast_unsigned(),
            snaplen: description.snaplen,
            units_per_second,
            offset_seconds: offset.map_or(0, read),
        }
    }

    fn timestamp_ns(&self, units: u64) -> u64 {
        let ns = u128::from(units) * 1_000_000_000 / self.units_per_second;
        let offset = i128::from(self.offset_seconds) * 1_000_000_000;
        // Below 2^94 in all, so the sum is exact; what is no time of ours ends up at either end.
        let ns = ns.cast_signed() + offset;
        u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
    }
}

/// The lowest two bits of `epb_flags` (option 2): 1 is inbound, 2 outbound.
fn direction(packet: &EnhancedPacketBlock<'_>, big_endian: bool) -> Option<Direction> {
    const FLAGS: OptionCode = OptionCode(2);
    let option = packet.options.iter().find(|option| option.code == FLAGS)?;
    let flags = option.as_bytes().ok().filter(|bytes| bytes.len() == 4)?;
    match u32_at(flags, 0, big_endian) & 3 {
        1 => Some(Direction::In),
        2 => Some(Direction::Out),
        _ => None,
    }
}

/// The four bytes at `at`, which the caller knows to be there.
fn u32_at(bytes: &[u8], at: usize, big_endian: bool) -> u32 {
    let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}
