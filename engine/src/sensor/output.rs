//! Where packets go: a pcapng file or pipe, or nowhere but the counters.
//!
//! ```text
//! open -> interface (one per tap) -> packet ... -> flush (timer) ... -> finish
//! ```
//!
//! Only whole blocks are handed to the file, so what is there is readable at any moment, whatever
//! becomes of us. The first error ends the writing and is kept for the loop, which looks after each
//! turn. A reader that has gone away (`EPIPE`) is an end, not an error. One that does not read is
//! waited for (the taps' sockets fill, and count what they lose) until we are told to stop.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::capfile::pcapng::{InterfaceId, Writer};
use crate::rpcap::PacketHeader;

/// Bytes collected before they are written, between flushes.
const BUFFER_BYTES: usize = 256 * 1024;

const LINKTYPE_ETHERNET: u16 = 1;
/// How long a reader may read nothing once we have been told to stop.
const LAST_WAIT: Duration = Duration::from_secs(1);

pub(super) struct Output {
    /// What was written since the last flush; `None` when nothing more is to be.
    writer: Option<Writer<Vec<u8>>>,
    file: Option<File>,
    /// Readable when the run is to end.
    stop: Option<UnixStream>,
    /// The run is to end, whoever reads.
    is_told_to_stop: bool,
    has_interface: bool,
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
            stop: None,
            is_told_to_stop: false,
            has_interface: false,
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
        let file = unblocked(file);
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

    /// Lets `stop`, when it becomes readable, end the wait for a reader.
    pub(super) fn watch(&mut self, stop: UnixStream) {
        self.stop = Some(stop);
    }

    /// The run is to end: a reader that does not read is not waited for any more.
    pub(super) fn told_to_stop(&mut self) {
        self.is_told_to_stop = true;
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
        self.has_interface = true;
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
        let Some(mut writer) = self.writer.take() else { return };
        let written = self.write(writer.get_mut());
        writer.get_mut().clear();
        match written {
            Ok(()) => self.writer = Some(writer),
            Err(error) => self.fail(error),
        }
    }

    fn write(&mut self, mut blocks: &[u8]) -> io::Result<()> {
        while let Some(file) = &mut self.file
            && !blocks.is_empty()
        {
            match file.write(blocks) {
                Ok(len) => blocks = &blocks[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns when the pipe has room, or no reader.
    fn wait(&mut self) -> io::Result<()> {
        let (Some(file), Some(stop)) = (&self.file, &self.stop) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let pipe = PollFd::new(file.as_fd(), PollFlags::POLLOUT);
        let mut watched = [pipe, PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        let (watched, timeout) = match self.is_told_to_stop {
            true => (&mut watched[..1], PollTimeout::try_from(LAST_WAIT)),
            false => (&mut watched[..], Ok(PollTimeout::NONE)),
        };
        match poll(watched, timeout.unwrap_or(PollTimeout::ZERO)) {
            Ok(0) => {
                let nobody = "nobody reads what is written; the last packets are lost";
                Err(io::Error::new(io::ErrorKind::TimedOut, nobody))
            }
            Ok(_) => {
                // The event loop takes the byte and ends the captures.
                let stop = watched.get(1).and_then(|stop| stop.any());
                self.is_told_to_stop |= stop == Some(true);
                Ok(())
            }
            Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Flushes; what went wrong, if anything did.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if !self.has_interface {
            // tcpdump refuses a file that describes none.
            self.interface("no tap", LINKTYPE_ETHERNET, 0);
        }
        self.flush();
        self.error.take().map_or(Ok(()), Err)
    }
}

/// A pipe opened anew so that writing to it never blocks; whoever else has it is not affected, as
/// they would be by a flag on the descriptor that we were given.
fn unblocked(file: File) -> File {
    let is_pipe = file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    let anew = || {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)
    };
    if is_pipe && let Ok(anew) = anew() { anew } else { file }
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

    #[test]
    fn a_reader_that_does_not_read_does_not_hold_up_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Read and write: nobody has to be waited for, and nobody ever reads.
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut output = Output::open(&path, None).unwrap();
        let (stop, mut stopper) = UnixStream::pair().unwrap();
        output.watch(stop);
        stopper.write_all(b"x").unwrap();
        let block = output.interface("tap eth0", 1, 65_535);
        let (header, data) = packet(1, 9_000);
        let taken = (0..1_000).take_while(|_| output.packet(block, &header, &data)).count();
        assert!((7..100).contains(&taken), "{taken}");
        assert_eq!(output.finish().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
