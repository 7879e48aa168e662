//! Where packets go: a pcapng file or pipe, or nowhere but the counters.
//!
//! ```text
//! open -> interface (one per tap) -> packet ... -> flush (timer) ... -> finish
//! ```
//!
//! Only whole blocks are handed to the file, so what is there is readable at any moment, whatever
//! becomes of us. The first error ends the writing and is kept for the loop, which looks after each
//! turn. A reader that has gone away (`EPIPE`) is an end, not an error.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::capfile::pcapng::{InterfaceId, Writer};
use crate::rpcap::PacketHeader;

/// Bytes collected before they are written, between flushes.
const BUFFER_BYTES: usize = 256 * 1024;

pub(super) struct Output {
    /// What was written since the last flush; `None` when nothing more is to be.
    writer: Option<Writer<Vec<u8>>>,
    file: Option<File>,
    error: Option<io::Error>,
    reader_gone: bool,
    packets: u64,
    limit: u64,
}

impl Output {
    /// Counts only, up to `limit` packets.
    pub(super) fn nowhere(limit: Option<u64>) -> Self {
        Self {
            writer: None,
            file: None,
            error: None,
            reader_gone: false,
            packets: 0,
            limit: limit.unwrap_or(u64::MAX),
        }
    }

    /// Writes to a new file, or to standard output if the path is `-`.
    pub(super) fn open(path: &Path, limit: Option<u64>) -> io::Result<Self> {
        let file = if path == Path::new("-") {
            File::from(io::stdout().as_fd().try_clone_to_owned()?)
        } else {
            File::create(path)?
        };
        let mut output = Self { file: Some(file), ..Self::nowhere(limit) };
        match Writer::new(Vec::with_capacity(2 * BUFFER_BYTES)) {
            Ok(writer) => output.writer = Some(writer),
            Err(error) => output.fail(error),
        }
        output.flush();
        Ok(output)
    }

    /// The file, if there is one.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Packets taken so far.
    pub(super) fn packets(&self) -> u64 {
        self.packets
    }

    /// True when nothing more will be taken: all that was wished for is there, the reader has gone,
    /// or writing failed.
    pub(super) fn is_done(&self) -> bool {
        self.packets >= self.limit || self.reader_gone || self.error.is_some()
    }

    pub(super) fn reader_has_gone(&mut self) {
        self.reader_gone = true;
        self.writer = None;
    }

    fn fail(&mut self, error: io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            self.reader_gone = true;
        } else {
            self.error.get_or_insert(error);
        }
        self.writer = None;
    }

    /// Describes a tap; `None` where nothing is written.
    pub(super) fn interface(
        &mut self,
        name: &str,
        linktype: u16,
        snaplen: u32,
    ) -> Option<InterfaceId> {
        let written = self.writer.as_mut()?.interface(name, linktype, snaplen);
        written.map_err(|error| self.fail(error)).ok()
    }

    /// Takes a packet; false if there were enough already.
    pub(super) fn packet(
        &mut self,
        interface: Option<InterfaceId>,
        header: &PacketHeader,
        data: &[u8],
    ) -> bool {
        if self.is_done() {
            return false;
        }
        self.packets += 1;
        if let (Some(writer), Some(interface)) = (&mut self.writer, interface) {
            let seconds = u64::from(header.seconds) * 1_000_000_000;
            let timestamp_ns = seconds + u64::from(header.micros) * 1_000;
            match writer.packet(interface, timestamp_ns, header.wire_len, data) {
                Err(error) => self.fail(error),
                Ok(()) if writer.get_mut().len() >= BUFFER_BYTES => self.flush(),
                Ok(()) => {}
            }
        }
        true
    }

    pub(super) fn flush(&mut self) {
        let (Some(writer), Some(file)) = (&mut self.writer, &mut self.file) else { return };
        let blocks = writer.get_mut();
        let written = file.write_all(blocks);
        blocks.clear();
        if let Err(error) = written {
            self.fail(error);
        }
    }

    /// Flushes; what went wrong, if anything did.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush();
        self.error.take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::packet;
    use super::*;

    /// Follows the blocks' lengths; how many packets, if the last block is whole.
    fn packets_of(file: &[u8]) -> u32 {
        let (mut at, mut packets) = (0, 0);
        while at < file.len() {
            let field = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
            packets += u32::from(field(at) == 6);
            let len = field(at + 4) as usize;
            assert_eq!(field(at + len - 4) as usize, len, "both lengths of a block agree");
            at += len;
        }
        assert_eq!(at, file.len(), "the last block is whole");
        packets
    }

    #[test]
    fn what_is_in_the_file_is_whole_at_any_moment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.pcapng");
        let mut output = Output::open(&path, None).unwrap();
        let block = output.interface("tap eth0", 1, 65_535);
        let mut seen = 0;
        for number in 0..2_000 {
            let (header, data) = packet(number, 1 + number as usize * 7 % 1_500);
            assert!(output.packet(block, &header, &data));
            // As who reads it after a kill -9 here.
            let now = packets_of(&std::fs::read(&path).unwrap());
            assert!(now >= seen && now <= number + 1);
            seen = now;
        }
        assert!(seen > 1_500, "a quarter of a mebibyte is written without being told to");
        output.flush();
        assert_eq!(packets_of(&std::fs::read(&path).unwrap()), 2_000);
        output.finish().unwrap();
    }

    #[test]
    fn a_full_disk_is_an_error_that_is_kept() {
        let mut output = Output::open(Path::new("/dev/full"), None).unwrap();
        assert!(output.is_done(), "nothing more is taken");
        let (header, data) = packet(1, 60);
        assert!(!output.packet(None, &header, &data));
        assert_eq!(output.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
