//! A client whose bytes are written out by hand, not by the product's encoder, and a driver that
//! says yes to everything, or no.

use super::*;

pub(super) const RET_ALL: [u8; 8] = [0, 6, 0, 0, 0, 4, 0, 0];

/// A conversation with a driver that says yes to everything, or no.
pub(super) struct Bench {
    pub(super) conversation: Conversation,
    pub(super) refuses: Option<&'static str>,
    pub(super) starts: Vec<StartRequest>,
    pub(super) filters: Vec<Program>,
    pub(super) ending: Option<Ending>,
}

impl Bench {
    pub(super) fn new(preselected: Option<&str>) -> Self {
        Self {
            conversation: Conversation::new(preselected.map(str::to_owned)),
            refuses: None,
            starts: Vec::new(),
            filters: Vec::new(),
            ending: None,
        }
    }

    pub(super) fn authenticated() -> Self {
        let mut bench = Self::new(None);
        bench.says(&message(8, &[0; 8]), &[reply(8)]);
        bench
    }

    pub(super) fn capturing() -> Self {
        let mut bench = Self::authenticated();
        bench.says(&message(3, b"eth0"), &[reply(3)]);
        bench.says(&start(2, 4000, &[RET_ALL]), &[reply(4)]);
        bench
    }

    /// Feeds bytes, answers actions, returns what goes out.
    pub(super) fn talk(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while self.ending.is_none() {
            let action = self.conversation.advance(&mut bytes);
            out.append(self.conversation.output());
            match action {
                Some(action) => self.perform(action),
                None if bytes.is_empty() => break,
                None => {}
            }
        }
        out.append(self.conversation.output());
        out
    }

    fn perform(&mut self, action: Action) {
        let answer = match action {
            Action::Authenticate(auth) => {
                let password = Auth::Password { user: b"u".to_vec(), password: b"p".to_vec() };
                Answer::Authenticated(auth == Auth::Null || auth == password)
            }
            Action::List => Answer::Interfaces(vec![Interface {
                name: "eth0".to_owned(),
                ..Interface::default()
            }]),
            Action::Open(_) => Answer::Opened(1),
            Action::Start(request) => {
                self.starts.push(request);
                Answer::Started(StartCaptureReply { buffer_bytes: 0x40000, port: 0 })
            }
            Action::UpdateFilter(program) => {
                self.filters.push(program);
                Answer::FilterReplaced
            }
            Action::Stats => Answer::Counted(Stats { received: 7, sent: 5, ..Stats::default() }),
            Action::End => Answer::Ended,
            Action::Close(ending) => {
                self.ending = Some(ending);
                return;
            }
        };
        self.conversation.answer(self.refuses.map_or(Ok(answer), |text| Err(text.to_owned())));
    }

    /// Feeds bytes and checks the kinds of what comes back.
    pub(super) fn says(&mut self, bytes: &[u8], expected: &[Reply]) {
        let out = self.talk(bytes);
        assert_eq!(replies(&out), expected);
    }
}

/// What a reply is: its type, and the code if it is an ERROR.
pub(super) type Reply = (u8, u16);

pub(super) fn reply(request: u8) -> Reply {
    (request | 0x80, 0)
}

pub(super) fn error(code: u16) -> Reply {
    (1, code)
}

pub(super) fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0, kind, 0, 0][..], &len, payload].concat()
}

pub(super) fn filter(instructions: &[[u8; 8]]) -> Vec<u8> {
    let count = u32::try_from(instructions.len()).unwrap().to_be_bytes();
    [&[0, 1, 0, 0][..], &count, &instructions.concat()].concat()
}

pub(super) fn start_with_snaplen(
    snaplen: u32,
    flags: u16,
    port: u16,
    instructions: &[[u8; 8]],
) -> Vec<u8> {
    let mut payload = [snaplen.to_be_bytes(), 250u32.to_be_bytes()].concat();
    payload.extend(flags.to_be_bytes());
    payload.extend(port.to_be_bytes());
    payload.extend(filter(instructions));
    message(4, &payload)
}

pub(super) fn start(flags: u16, port: u16, instructions: &[[u8; 8]]) -> Vec<u8> {
    start_with_snaplen(65_535, flags, port, instructions)
}

/// Cuts what went out into messages; fails if it is not whole messages of legal size.
pub(super) fn replies(mut out: &[u8]) -> Vec<Reply> {
    let mut seen = Vec::new();
    while !out.is_empty() {
        if let [0x15, _, _, 0, 2, 2, 40] = out {
            // The alert to a TLS client, after which nothing comes.
            seen.push((0x15, 0));
            break;
        }
        let len = u32::from_be_bytes([out[4], out[5], out[6], out[7]]);
        let len = usize::try_from(len).unwrap();
        let (kind, code) = (out[1], u16::from_be_bytes([out[2], out[3]]));
        if kind == 1 {
            assert!((1..=256).contains(&len), "an ERROR has a text, and not too much of it");
            assert!(str::from_utf8(&out[8..8 + len]).is_ok());
        }
        seen.push((kind, if kind == 0x82 { 0 } else { code }));
        out = &out[8 + len..];
    }
    seen
}

/// Text of the first message, an ERROR.
pub(super) fn error_text(out: &[u8]) -> &str {
    let len = usize::from(u16::from_be_bytes([out[6], out[7]]));
    str::from_utf8(&out[8..8 + len]).unwrap()
}
