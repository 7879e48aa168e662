//! Writes pcapng, so that Wireshark and its kin read it while it grows.
//!
//! ```text
//! new        -> section header block      once
//! interface  -> interface description     one per place where frames come from, at any time
//! packet     -> enhanced packet block
//! ```
//!
//! Little-endian and with nothing of the machine or the hour in it: the same calls give the same
//! bytes. Timestamps are in nanoseconds. A block is written in few calls: put a buffer below.

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

const OPTION_END: u16 = 0;
/// `shb_userappl`.
const OPTION_APPLICATION: u16 = 4;
/// `if_name`.
const OPTION_NAME: u16 = 2;
/// `if_tsresol`.
const OPTION_RESOLUTION: u16 = 9;

/// Bytes of a block's type and the two copies of its length.
const FRAMING: usize = 12;
/// Bytes of an enhanced packet block before the frame.
const PACKET_FIXED: usize = 28;

/// An interface description block, as [`Writer::packet`] refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceId(u32);

/// A section that is being written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    interfaces: u32,
}

impl<W: Write> Writer<W> {
    /// Begins the section.
    ///
    /// # Errors
    ///
    /// What writing answers.
    pub fn new(mut out: W) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        body.extend([1, 0, 0, 0]); // version 1.0
        body.extend((-1i64).to_le_bytes()); // section length: not known while it grows
        push_option(&mut body, OPTION_APPLICATION, b"podtap");
        push_option(&mut body, OPTION_END, b"");
        write_block(&mut out, SECTION_HEADER, &body)?;
        Ok(Self { out, interfaces: 0 })
    }

    /// Describes one more interface. `linktype` is a `LINKTYPE_` value, `snaplen` 0 means no limit.
    ///
    /// # Errors
    ///
    /// What writing answers.
    pub fn interface(
        &mut self,
        name: &str,
        linktype: u16,
        snaplen: u32,
    ) -> io::Result<InterfaceId> {
        let id = InterfaceId(self.interfaces);
        let mut body = Vec::new();
        body.extend(linktype.to_le_bytes());
        body.extend([0, 0]);
        body.extend(snaplen.to_le_bytes());
        push_option(&mut body, OPTION_NAME, name.as_bytes());
        push_option(&mut body, OPTION_RESOLUTION, &[9]); // 10^-9 s
        push_option(&mut body, OPTION_END, b"");
        write_block(&mut self.out, INTERFACE_DESCRIPTION, &body)?;
        self.interfaces += 1;
        Ok(id)
    }

    /// Writes a frame: `data` is what was captured, `wire_len` its length before any cut.
    ///
    /// # Errors
    ///
    /// What writing answers; `InvalidInput` for a frame of 4 GiB.
    pub fn packet(
        &mut self,
        interface: InterfaceId,
        timestamp_ns: u64,
        wire_len: u32,
        data: &[u8],
    ) -> io::Result<()> {
        let padding = padding(data.len());
        let too_long = || io::Error::from(io::ErrorKind::InvalidInput);
        let caplen = u32::try_from(data.len()).map_err(|_larger| too_long())?;
        let total = u32::try_from(PACKET_FIXED + data.len() + padding.len() + 4)
            .map_err(|_larger| too_long())?
            .to_le_bytes();
        let [t0, t1, t2, t3, t4, t5, t6, t7] = timestamp_ns.to_le_bytes();
        let mut head = [0; PACKET_FIXED];
        let fields = [
            ENHANCED_PACKET.to_le_bytes(),
            total,
            interface.0.to_le_bytes(),
            [t4, t5, t6, t7], // the upper half comes first
            [t0, t1, t2, t3],
            caplen.to_le_bytes(),
            wire_len.to_le_bytes(),
        ];
        for (slot, field) in head.chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(&field);
        }
        self.out.write_all(&head)?;
        self.out.write_all(data)?;
        self.out.write_all(padding)?;
        self.out.write_all(&total)
    }

    /// What is written to. Between two calls of the others it holds whole blocks only.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// What is written to.
    #[must_use]
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// The zero bytes that bring `len` to a multiple of four.
fn padding(len: usize) -> &'static [u8] {
    &[0; 3][..len.wrapping_neg() % 4]
}

/// Appends an option; a value longer than an option can be is cut.
fn push_option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    body.extend(value);
    body.extend(padding(value.len()));
}

fn write_block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let total = u32::try_from(FRAMING + body.len())
        .map_err(|_larger| io::Error::from(io::ErrorKind::InvalidInput))?
        .to_le_bytes();
    let mut block = Vec::with_capacity(FRAMING + body.len());
    block.extend(kind.to_le_bytes());
    block.extend(total);
    block.extend(body);
    block.extend(total);
    out.write_all(&block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_these_bytes() {
        let mut writer = Writer::new(Vec::new()).unwrap();
        let eth = writer.interface("a/b", 1, 96).unwrap();
        writer.packet(eth, 0x0102_0304_0506_0708, 60, &[0xaa; 5]).unwrap();
        let expected = [
            &[0x0a, 0x0d, 0x0d, 0x0a, 44, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0][..],
            &[0xff; 8],
            &[4, 0, 6, 0, b'p', b'o', b'd', b't', b'a', b'p', 0, 0, 0, 0, 0, 0, 44, 0, 0, 0],
            &[1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 96, 0, 0, 0],
            &[2, 0, 3, 0, b'a', b'/', b'b', 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0],
            &[6, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 5, 0, 0, 0, 60, 0, 0, 0],
            &[0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0, 40, 0, 0, 0],
        ]
        .concat();
        assert_eq!(writer.into_inner(), expected);
    }

    #[test]
    fn a_reader_of_others_finds_every_frame() {
        use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
        use pcap_parser::{Block, PcapBlockOwned, PcapNGReader};
        let mut writer = Writer::new(Vec::new()).unwrap();
        let frames: Vec<Vec<u8>> = (0..70).map(|len| vec![7; len]).collect();
        let ids = [writer.interface("x", 1, 0).unwrap(), writer.interface("y", 113, 0).unwrap()];
        for (at, frame) in frames.iter().enumerate() {
            writer.packet(ids[at % 2], 1_000_000_000, 9_000, frame).unwrap();
        }
        let bytes = writer.into_inner();
        let mut reader = PcapNGReader::new(65_536, &bytes[..]).unwrap();
        let mut found = Vec::new();
        while let Ok((used, block)) = reader.next() {
            if let PcapBlockOwned::NG(Block::EnhancedPacket(packet)) = block {
                assert_eq!((packet.if_id as usize, packet.origlen), (found.len() % 2, 9_000));
                found.push(packet.packet_data().to_vec());
            }
            reader.consume(used);
        }
        assert_eq!(found, frames);
    }
}
