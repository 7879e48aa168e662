//! A whole conversation from bytes that a fuzzer makes.
//!
//! ```text
//! bytes --as they are----> Conversation + a driver that answers --> output \
//!       --in small pieces--> the same                           --> output / equal, and in step
//! ```

use super::protocol::{Action, Answer, Conversation, OUTPUT_HIGH_WATER};
use crate::rpcap::{Address, Auth, DLT_EN10MB, Interface, StartCaptureReply, Stats};

/// More than the largest payload that is kept, with room for the allocator's doubling.
const MOST_KEPT: usize = 2 * (8 + 2 * 65_535);

/// The first byte says how pieces are cut and whether requests are refused, the others are what a
/// client sends.
///
/// # Panics
///
/// When what is said depends on the pieces, or is no sequence of whole messages.
pub fn conversation(data: &[u8]) {
    let Some((how, said)) = data.split_first() else { return };
    let refuses = how & 0x80 != 0;
    let whole = talk(said, said.len().max(1), refuses);
    let pieces = talk(said, usize::from(how & 0x7f) + 1, refuses);
    assert_eq!(whole, pieces, "how the bytes are cut must not matter");
    if said.first() != Some(&0x16) {
        check(&whole);
    }
}

fn talk(said: &[u8], piece: usize, refuses: bool) -> Vec<u8> {
    let mut conversation = Conversation::new(None);
    let mut output = Vec::new();
    for piece in said.chunks(piece) {
        let mut rest = piece;
        // As long as there is something left to take, or to be said without input.
        loop {
            let before = rest.len();
            let action = conversation.advance(&mut rest);
            assert!(conversation.output().len() <= OUTPUT_HIGH_WATER + 4096);
            output.append(conversation.output());
            match action {
                None if rest.is_empty() || rest.len() == before => break,
                None => {}
                Some(Action::Close(_)) => return output,
                Some(action) => conversation.answer(answer(&action, refuses)),
            }
        }
        assert!(conversation.kept_bytes() <= MOST_KEPT);
    }
    // A capture that fails by itself: told unless a request is pending, and never inside a reply.
    conversation.capture_failed("The interface disappeared");
    output.append(conversation.output());
    output
}

fn answer(action: &Action, refuses: bool) -> Result<Answer, String> {
    if refuses && !matches!(action, Action::Authenticate(_) | Action::Open(_)) {
        return Err("Refused by a test".to_owned());
    }
    Ok(match action {
        Action::Authenticate(auth) => Answer::Authenticated(*auth == Auth::Null),
        Action::List => Answer::Interfaces(vec![Interface {
            name: "eth0".to_owned(),
            addresses: vec![Address { address: [10, 0, 0, 1].into(), netmask: None }],
            ..Interface::default()
        }]),
        Action::Open(_) => Answer::Opened(DLT_EN10MB),
        Action::Start(_) => Answer::Started(StartCaptureReply { buffer_bytes: 1, port: 0 }),
        Action::UpdateFilter(_) => Answer::FilterReplaced,
        Action::Stats => Answer::Counted(Stats::default()),
        Action::End | Action::Close(_) => Answer::Ended,
    })
}

/// Whole messages of types that a daemon sends; only the last may be of another version.
fn check(mut output: &[u8]) {
    while !output.is_empty() {
        let (header, rest) = output.split_at(8);
        let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let (payload, rest) = rest.split_at(len);
        match header[1] {
            1 => assert!(len <= 256 && str::from_utf8(payload).is_ok()),
            0x82..=0x85 | 0x88..=0x8b => assert_eq!(header[0], 0),
            other => panic!("type {other}"),
        }
        assert!(header[0] == 0 || rest.is_empty());
        output = rest;
    }
}
