//! What a conversation writes: replies to the requests that were answered, and ERRORs.
//!
//! ```text
//! Pending, Answer --> reply of the request's type    code, text --> ERROR     --> output
//! ```

use crate::rpcap::{Auth, ErrorCode, Header, Interface, MessageType, OpenReply};

use super::{Answer, Conversation, NO_SAMPLING, Opened, Pending};

/// Longest text of an ERROR, bytes.
const MAX_ERROR_TEXT: usize = 256;

impl Conversation {
    pub(super) fn write_reply(&mut self, pending: Pending, answer: Answer) {
        match (pending, answer) {
            (Pending::Authenticate, Answer::Authenticated(true)) => {
                self.is_authenticated = true;
                self.write(MessageType::AuthReply, 0, &Auth::reply());
            }
            (Pending::Authenticate, Answer::Authenticated(false)) => {
                // One text for every reason, so that nobody can ask for account names.
                self.write_error(ErrorCode::AuthFailed, "Authentication failed");
                self.wrong = self.wrong.saturating_add(1);
            }
            (Pending::List, Answer::Interfaces(interfaces)) => self.write_interfaces(&interfaces),
            (Pending::Open(name), Answer::Opened(linktype)) => {
                self.opened = Opened::Name(name);
                self.write(MessageType::OpenReply, 0, &OpenReply { linktype }.to_bytes());
            }
            (Pending::Start, Answer::Started(reply)) => {
                self.is_capturing = true;
                // Spent: a client that wants no sampling for its next capture says nothing.
                self.sampling = NO_SAMPLING;
                self.write(MessageType::StartCaptureReply, 0, &reply.to_bytes());
            }
            (Pending::UpdateFilter, Answer::FilterReplaced) => {
                self.write(MessageType::UpdateFilterReply, 0, &[]);
            }
            (Pending::Stats, Answer::Counted(stats)) => {
                self.write(MessageType::StatsReply, 0, &stats.to_bytes());
            }
            (Pending::End, Answer::Ended) => {
                self.is_capturing = false;
                self.write(MessageType::EndCaptureReply, 0, &[]);
            }
            (pending, answer) => {
                tracing::error!(?answer, "an answer to another request");
                self.write_error(pending.error_code(), "Internal error");
            }
        }
    }

    fn write_interfaces(&mut self, interfaces: &[Interface]) {
        let Some(first) = interfaces.first() else {
            return self.write_error(ErrorCode::NoInterfaces, "There is no interface");
        };
        let count = u16::try_from(interfaces.len()).unwrap_or(u16::MAX);
        let mut payload = Vec::with_capacity(interfaces.len() * first.encoded_len());
        for interface in &interfaces[..count.into()] {
            interface.write(&mut payload);
        }
        self.write(MessageType::FindAllIfReply, count, &payload);
    }

    pub(super) fn write_error(&mut self, code: ErrorCode, text: &str) {
        let text = &text[..text.floor_char_boundary(MAX_ERROR_TEXT)];
        self.write(MessageType::Error, code as u16, text.as_bytes());
    }

    pub(super) fn write(&mut self, kind: MessageType, value: u16, payload: &[u8]) {
        // A node cannot have the eight million addresses that would not fit.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.output.extend(Header::new(kind, value, len).to_bytes());
        self.output.extend_from_slice(payload);
    }
}
