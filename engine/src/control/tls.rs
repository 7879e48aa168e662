//! TLS on a connection where it is not expected.
//!
//! A TLS client waits for the answer to its handshake, in silence if it must. So it gets the alert
//! that says no in its own protocol, in its own version.

/// A TLS record's type of a handshake: no version of RPCAP, but what a TLS client says first.
const HANDSHAKE: u8 = 0x16;
/// Bytes of a record up to its version's end.
const VERSION_END: usize = 3;
/// Bytes of an alert.
const ALERT_BYTES: usize = 7;

/// The first bytes of a connection, while they may be a TLS client's.
#[derive(Debug, Default)]
pub(super) struct FirstBytes {
    seen: Vec<u8>,
    /// They are not.
    is_over: bool,
}

impl FirstBytes {
    /// What a TLS client is to be told, after which nothing follows; `Some(None)` for every other
    /// peer, and `None` until that can be told.
    pub(super) fn alert(&mut self, input: &mut &[u8]) -> Option<Option<[u8; ALERT_BYTES]>> {
        if self.is_over {
            return Some(None);
        }
        if self.seen.is_empty() && *input.first()? != HANDSHAKE {
            self.is_over = true;
            return Some(None);
        }
        let (head, rest) = input.split_at((VERSION_END - self.seen.len()).min(input.len()));
        self.seen.extend_from_slice(head);
        *input = rest;
        let [_, major, minor] = self.seen[..] else { return None };
        // Type alert, version, two bytes: fatal, handshake_failure.
        Some(Some([0x15, major, minor, 0, 2, 2, 40]))
    }
}
