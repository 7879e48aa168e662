//! pcap files with nanoseconds.
//!
//! ```text
//! | magic a1b23c4d, 2.4, 0, 0, snaplen 262144, link type 1 |  once, 24 bytes
//! | seconds | nanoseconds | caplen | wire_len | bytes ...  |  per frame, 16 bytes + caplen
//! ```
//!
//! Little-endian on every machine. Each frame is several small writes: hand in a `BufWriter`.

use std::io::{self, Write};

use crate::frame::WireFrame;
use crate::rpcap::MAX_SNAPLEN;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// Writes Ethernet frames to a pcap file.
#[derive(Debug)]
pub struct PcapWriter<W> {
    out: W,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file's header.
    ///
    /// # Errors
    ///
    /// What `out` answers.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
        out.write_all(&[2, 0, 4, 0])?; // version
        out.write_all(&[0; 8])?; // offset from UTC, accuracy: nobody uses them
        out.write_all(&MAX_SNAPLEN.to_le_bytes())?;
        out.write_all(&LINKTYPE_ETHERNET.to_le_bytes())?;
        Ok(Self { out })
    }

    /// Appends a frame, tag and checksum in place.
    ///
    /// # Errors
    ///
    /// What `out` answers; `InvalidInput`, with nothing written, for more than 262144 bytes, which
    /// no reader takes, and for a time after 2106, which the format cannot hold.
    pub fn write(&mut self, frame: &WireFrame<'_>) -> io::Result<()> {
        self.write_header(frame.timestamp_ns(), frame.caplen(), frame.wire_len())?;
        let mut result = Ok(());
        frame.for_each_piece(|piece| {
            if result.is_ok() {
                result = self.out.write_all(piece);
            }
        });
        result
    }

    /// Appends a frame whose bytes are at hand.
    ///
    /// # Errors
    ///
    /// What `out` answers; `InvalidInput`, with nothing written, for more than 262144 bytes, which
    /// no reader takes, and for a time after 2106, which the format cannot hold.
    pub fn write_bytes(&mut self, timestamp_ns: u64, wire_len: u32, data: &[u8]) -> io::Result<()> {
        self.write_header(timestamp_ns, data.len(), wire_len)?;
        self.out.write_all(data)
    }

    /// Begins a record; the caller owes it `caplen` bytes.
    fn write_header(&mut self, timestamp_ns: u64, caplen: usize, wire_len: u32) -> io::Result<()> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let Some(caplen) = u32::try_from(caplen).ok().filter(|caplen| *caplen <= MAX_SNAPLEN)
        else {
            return Err(invalid("frame longer than 262144 bytes"));
        };
        let Ok(seconds) = u32::try_from(timestamp_ns / NS_PER_SECOND) else {
            return Err(invalid("timestamp after the year 2106"));
        };
        let nanoseconds = timestamp_ns % NS_PER_SECOND;
        let nanoseconds = u32::try_from(nanoseconds).expect("a remainder below 10^9");
        let mut header = [0; 16];
        let fields = [seconds, nanoseconds, caplen, wire_len];
        for (at, field) in header.chunks_exact_mut(4).zip(fields) {
            at.copy_from_slice(&field.to_le_bytes());
        }
        self.out.write_all(&header)
    }

    /// Hands what was written on to the file.
    ///
    /// # Errors
    ///
    /// What `out` answers.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Flushes and gives the writer back.
    ///
    /// # Errors
    ///
    /// What `out` answers.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::frame::{Direction, Frame, Offload, Point, VlanTag};
    use crate::source::file::{FileSource, Input};
    use crate::source::{Batch, Source};

    const POINT: Point = Point { ifindex: 0, direction: Direction::In };

    fn frame(data: &[u8], timestamp_ns: u64) -> Frame<'_> {
        Frame {
            data,
            wire_len: 1500,
            timestamp_ns,
            point: POINT,
            vlan: None,
            offload: Offload::default(),
        }
    }

    #[test]
    fn the_bytes_are_the_format_s() {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        writer.write(&frame(&[7; 3], 2_000_000_005).wire(2)).unwrap();
        let file = writer.finish().unwrap();
        let header = [
            [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0],
        ];
        assert_eq!(file[..24], header.concat());
        assert_eq!(file[24..], [2, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 0xdc, 5, 0, 0, 7, 7]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let data: Vec<u8> = (0..200).collect();
        let tag = Some(VlanTag { tpid: 0x8100, tci: 5 });
        let plain = frame(&data, 1_700_000_000_123_456_789);
        let tagged = Frame { vlan: tag, timestamp_ns: 1_700_000_001_999_999_999, ..plain };
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        writer.write(&plain.wire(usize::MAX)).unwrap();
        writer.write(&tagged.wire(100)).unwrap();
        writer.write_bytes(u64::from(u32::MAX) * NS_PER_SECOND, 0, &[]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcap");
        fs::write(&path, writer.finish().unwrap()).unwrap();
        let mut source = FileSource::open(&[Input { path, point: POINT }]).unwrap();
        let batch = source.next_batch().unwrap();
        let frames: Vec<_> = batch
            .frames()
            .map(|frame| (frame.data.to_vec(), frame.wire_len, frame.timestamp_ns))
            .collect();
        let want = [
            (data.clone(), 1500, plain.timestamp_ns),
            (tagged.wire(100).to_vec(), 1504, tagged.timestamp_ns),
            (vec![], 0, u64::from(u32::MAX) * NS_PER_SECOND),
        ];
        assert_eq!(frames, want);
    }

    #[test]
    fn what_the_format_cannot_hold_leaves_the_file_as_it_was() {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for (timestamp_ns, length) in [(0, 262_145), (1 << 32 | u64::MAX << 62, 60)] {
            let error = writer.write_bytes(timestamp_ns, 60, &vec![0; length]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(writer.finish().unwrap().len(), 24);
    }

    #[test]
    fn a_full_disk_is_an_error_at_any_piece() {
        let data = [1; 60];
        let tagged = Frame { vlan: Some(VlanTag { tpid: 0x8100, tci: 5 }), ..frame(&data, 0) };
        for room in 24..24 + 16 + 64 {
            let mut disk = vec![0; room];
            let mut writer = PcapWriter::new(disk.as_mut_slice()).unwrap();
            let error = writer.write(&tagged.wire(usize::MAX)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WriteZero, "{room}");
        }
    }
}
