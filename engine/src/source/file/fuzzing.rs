//! A capture file that a fuzzer makes.

use std::path::Path;

use super::append;
use super::reader::{MAX_CAPLEN, Reader};
use crate::frame::{Direction, Point};

/// Reads a file to its end, and makes every packet Ethernet.
///
/// # Panics
///
/// When a frame is longer than frames may be, or than the file.
pub fn file(data: &[u8]) {
    let point = Point { ifindex: 1, direction: Direction::In };
    let Ok(mut reader) = Reader::open(Path::new("fuzz"), data) else { return };
    let mut records = 0;
    while let Ok(Some(head)) = reader.advance() {
        records += 1;
        assert!(records <= data.len(), "no record is empty");
        let captured = reader.bytes(&head);
        assert!(captured.len() <= data.len() && captured.len() <= MAX_CAPLEN as usize);
        let mut frame = Vec::new();
        if let Some(meta) = append(&mut frame, &head, captured, point) {
            assert_eq!(meta.range, 0..frame.len());
            // The link header becomes one of Ethernet.
            assert!(frame.len() <= captured.len() + 14);
        }
    }
}
