//! What can go wrong in a conversation, in words that go on from the daemon's name.
//!
//! ```text
//! ERROR message --Complaint--> a Failure (it is over), or an event (it goes on)
//! ```

use std::fmt;

use crate::rpcap::ErrorCode;

/// What a daemon says in an ERROR message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sensor) struct Complaint {
    pub(in crate::sensor) code: u16,
    pub(in crate::sensor) text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, text } = self;
        match ErrorCode::from_number(*code) {
            Some(known) => write!(f, "error {code} ({}), {text:?}", known.meaning()),
            None => write!(f, "error {code}, {text:?}"),
        }
    }
}

/// Why the conversation is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::sensor) enum Failure {
    #[error("is no RPCAP daemon: its first message has type {0}")]
    NotRpcap(u8),
    #[error("speaks RPCAP version {0}, not 0")]
    Version(u8),
    #[error("did not reply to {0} in time")]
    Timeout(&'static str),
    #[error("refused {request}: {complaint}")]
    Refused { request: &'static str, complaint: Complaint },
    #[error("ended its capture: {0}")]
    CaptureFailed(Complaint),
    #[error("sent an interface list of {0} bytes; the most that is read is 16 MiB")]
    TooLong(u32),
    #[error("sent a {0}")]
    Malformed(#[from] crate::rpcap::Malformed),
    #[error("offers no interface")]
    NoInterface,
}

impl Failure {
    /// One word for each kind, by which a failure is said only once per peer.
    pub(in crate::sensor) fn label(&self) -> &'static str {
        match self {
            Self::NotRpcap(_) => "not_rpcap",
            Self::Version(_) => "version",
            Self::Timeout(_) => "timeout",
            Self::Refused { .. } => "refused",
            Self::CaptureFailed(_) => "capture_failed",
            Self::TooLong(_) => "too_long",
            Self::Malformed(_) => "malformed",
            Self::NoInterface => "no_interface",
        }
    }
}
