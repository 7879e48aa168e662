//! Capture files as a source: pcap and pcapng, one or several, merged by time.
//!
//! ```text
//! file --reader--> head (one packet)  \
//! file --reader--> head                > the earliest --link: to Ethernet--> batch --> Frame<'_>
//! file --reader--> head               /
//! ```
//!
//! Memory is one batch, one block per file and a read buffer per file, whatever the files' size.
//!
//! - Read are both byte orders, microseconds and nanoseconds, and in pcapng `if_tsresol`,
//!   `if_tsoffset`, several sections and interfaces.
//! - Ethernet frames are handed out as they are; raw IP, NULL, LOOP, SLL and SLL2 with an Ethernet
//!   header of zero addresses in place of theirs. A frame whose link header makes no sense is
//!   skipped and counted as [`SourceStats::malformed`].
//! - The point of a frame is its file's ([`Input::point`]); where the file tells the packet's own
//!   direction (`epb_flags`, SLL, SLL2), that direction counts. All interfaces of one file are one
//!   interface to what comes after: name several points by several files.
//! - Within a file the order is the file's, between files it is that of the timestamps, and at
//!   equal timestamps that of the command line.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod link;
mod reader;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::link::{ETHERNET_HEADER, Link};
use self::reader::{Head, Reader};
use super::{Batch, Source, SourceStats};
use crate::frame::{Direction, Frame, Offload, Point};
use crate::rpcap::BpfInsn;

/// Frames per batch, as many as a ring's block commonly holds.
const BATCH_FRAMES: usize = 64;
/// A batch that has this many bytes is not filled further: it bounds memory with jumbo frames.
const BATCH_BYTES: usize = 1 << 20;

/// A file to read, and where its frames were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The file; it is read once from start to end, so a pipe will do.
    pub path: PathBuf,
    /// Where its frames were captured.
    pub point: Point,
}

/// Why a file cannot be read, or not to its end. One line, the path in it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses to open it, or to read on.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Not one byte.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Starts with no magic number that is known.
    #[error("{} is not a capture file (pcap or pcapng)", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// Frames of a kind that cannot be turned into Ethernet.
    #[error(
        "{} has link type {number}; supported are Ethernet (1), raw IP (12, 101, 228, 229), \
         NULL (0), LOOP (108), Linux SLL (113) and SLL2 (276)",
        path.display()
    )]
    LinkType {
        /// The file.
        path: PathBuf,
        /// `LINKTYPE_*` number.
        number: u32,
    },
    /// Ends in the middle of a record; all before it was handed out.
    #[error("{} is cut short in record {record}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its record (pcap) or block (pcapng), counted from 1; 0 is the file's header.
        record: u64,
    },
    /// A record that cannot be; all before it was handed out.
    #[error("{} is damaged at record {record}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its record (pcap) or block (pcapng), counted from 1.
        record: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It has fewer frames than that.
    #[error("{} has {count} frames, so none of number {number}", path.display())]
    Past {
        /// The file.
        path: PathBuf,
        /// The frame that was asked for.
        number: u64,
        /// Its frames.
        count: u64,
    },
}

impl FileError {
    /// True if the file merely ends too early, as when a capture was killed.
    #[must_use]
    pub fn is_truncation(&self) -> bool {
        matches!(self, Self::Truncated { .. })
    }
}

/// Frames of capture files.
#[derive(Debug)]
pub struct FileSource {
    feeds: Vec<Feed>,
    /// The next packet's time of each feed that has one, and the feed's index.
    next: BinaryHeap<Reverse<(u64, usize)>>,
    bytes: Vec<u8>,
    frames: Vec<Meta>,
    stats: SourceStats,
    error: Option<FileError>,
}

/// A file that holds packets, and the one that comes next.
#[derive(Debug)]
struct Feed {
    point: Point,
    reader: Reader<File>,
    head: Head,
}

/// A frame of the batch.
#[derive(Clone, Debug)]
struct Meta {
    range: Range<usize>,
    wire_len: u32,
    timestamp_ns: u64,
    point: Point,
}

impl FileSource {
    /// Opens the files and reads up to the first packet of each.
    ///
    /// # Errors
    ///
    /// The first file that is no capture, or whose first packet cannot be read; one that is merely
    /// cut short there counts as a file without packets, and [`error`](Self::error) tells.
    pub fn open(inputs: &[Input]) -> Result<Self, FileError> {
        let mut source = Self {
            feeds: Vec::with_capacity(inputs.len()),
            next: BinaryHeap::with_capacity(inputs.len()),
            bytes: Vec::new(),
            frames: Vec::with_capacity(BATCH_FRAMES),
            stats: SourceStats::default(),
            error: None,
        };
        for Input { path, point } in inputs {
            let file =
                File::open(path).map_err(|cause| FileError::Read { path: path.clone(), cause })?;
            let mut reader = Reader::open(path, file)?;
            match reader.advance() {
                Ok(Some(head)) => {
                    source.next.push(Reverse((head.timestamp_ns, source.feeds.len())));
                    source.feeds.push(Feed { point: *point, reader, head });
                }
                Ok(None) => {}
                Err(error) if error.is_truncation() => {
                    source.error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(source)
    }

    /// Why a file was not read to its end, the first such file's reason; the others were read on.
    /// Final once the source [is exhausted](Source::is_exhausted).
    #[must_use]
    pub fn error(&self) -> Option<&FileError> {
        self.error.as_ref()
    }

    fn fill(&mut self) {
        self.bytes.clear();
        self.frames.clear();
        for _ in 0..BATCH_FRAMES {
            if self.bytes.len() >= BATCH_BYTES {
                break;
            }
            let Some(Reverse((_, at))) = self.next.pop() else { break };
            let Feed { point, reader, head } = &mut self.feeds[at];
            self.stats.seen += 1;
            match append(&mut self.bytes, head, reader.bytes(head), *point) {
                Some(meta) => self.frames.push(meta),
                None => self.stats.malformed += 1,
            }
            match reader.advance() {
                Ok(Some(next)) => {
                    self.next.push(Reverse((next.timestamp_ns, at)));
                    *head = next;
                }
                Ok(None) => {}
                Err(error) => {
                    self.error.get_or_insert(error);
                }
            }
        }
    }
}

/// One frame out of a file, for who looks at that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picked {
    /// Its bytes, as Ethernet; none if they cannot be made that.
    pub data: Option<Vec<u8>>,
    /// Length before any cut.
    pub wire_len: u32,
    /// Nanoseconds since the epoch.
    pub timestamp_ns: u64,
    /// If the file tells.
    pub direction: Option<Direction>,
}

/// The frame of that number, counted from 1 as other tools do.
///
/// # Errors
///
/// The file cannot be read that far; [`FileError::Past`] if it has fewer frames.
pub fn pick(path: &Path, number: u64) -> Result<Picked, FileError> {
    let file = File::open(path).map_err(|cause| FileError::Read { path: path.into(), cause })?;
    let mut reader = Reader::open(path, file)?;
    let mut count = 0;
    while let Some(head) = reader.advance()? {
        count += 1;
        if count < number {
            continue;
        }
        // Two guesses: a direction that does not follow them is the file's own.
        let guessed = |direction| {
            let mut bytes = Vec::new();
            let point = Point { ifindex: 0, direction };
            let meta = append(&mut bytes, &head, reader.bytes(&head), point)?;
            Some((bytes, meta))
        };
        let (Some((data, meta)), Some((_, other))) =
            (guessed(Direction::In), guessed(Direction::Out))
        else {
            let Head { wire_len, timestamp_ns, direction, .. } = head;
            return Ok(Picked { data: None, wire_len, timestamp_ns, direction });
        };
        let Meta { wire_len, timestamp_ns, point, .. } = meta;
        let direction = (point == other.point).then_some(point.direction);
        return Ok(Picked { data: Some(data), wire_len, timestamp_ns, direction });
    }
    Err(FileError::Past { path: path.into(), number, count })
}

/// Puts the packet, as Ethernet, behind `bytes`; `None` if it cannot be made Ethernet.
fn append(bytes: &mut Vec<u8>, head: &Head, data: &[u8], point: Point) -> Option<Meta> {
    let start = bytes.len();
    let (mut wire_len, mut direction) = (head.wire_len, None);
    if head.link == Link::Ethernet {
        bytes.extend_from_slice(data);
    } else {
        let replacement = head.link.to_ethernet(data)?;
        bytes.extend_from_slice(&replacement.header);
        bytes.extend_from_slice(&data[replacement.skip..]);
        let header = u32::try_from(ETHERNET_HEADER).expect("14");
        let skip = u32::try_from(replacement.skip).expect("20 at most");
        // Not below zero: `skip` bytes were captured.
        wire_len = (wire_len - skip).saturating_add(header);
        direction = replacement.direction;
    }
    let direction = head.direction.or(direction).unwrap_or(point.direction);
    Some(Meta {
        range: start..bytes.len(),
        wire_len,
        timestamp_ns: head.timestamp_ns,
        point: Point { direction, ..point },
    })
}

/// Up to 64 frames of a [`FileSource`], in its buffer.
#[derive(Debug)]
pub struct FileBatch<'a> {
    bytes: &'a [u8],
    frames: &'a [Meta],
}

impl Batch for FileBatch<'_> {
    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.frames.iter().map(|meta| Frame {
            data: &self.bytes[meta.range.clone()],
            wire_len: meta.wire_len,
            timestamp_ns: meta.timestamp_ns,
            point: meta.point,
            vlan: None,
            offload: Offload::default(),
        })
    }
}

impl Source for FileSource {
    type Batch<'a> = FileBatch<'a>;

    fn next_batch(&mut self) -> Option<FileBatch<'_>> {
        self.fill();
        // A round in which every packet was skipped is an empty batch, not the end.
        (!self.frames.is_empty() || !self.next.is_empty())
            .then_some(FileBatch { bytes: &self.bytes, frames: &self.frames })
    }

    /// Returns at once: a file is always ready.
    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn stats(&mut self) -> io::Result<SourceStats> {
        Ok(self.stats)
    }

    fn set_filter(&mut self, _program: &[BpfInsn]) -> io::Result<()> {
        Ok(())
    }

    fn is_exhausted(&self) -> bool {
        self.next.is_empty()
    }
}

#[cfg(test)]
mod tests;
