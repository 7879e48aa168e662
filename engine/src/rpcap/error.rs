//! The codes in an ERROR message's `value` field.

/// Why a request was refused. The numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// The network failed.
    Network = 1,
    /// Nothing came in time.
    InitTimeout = 2,
    /// Authentication could not be carried out.
    Auth = 3,
    /// The interfaces cannot be listed.
    FindAllIf = 4,
    /// There is no interface.
    NoInterfaces = 5,
    /// The interface cannot be opened.
    Open = 6,
    /// The filter cannot be replaced.
    UpdateFilter = 7,
    /// There are no statistics.
    GetStats = 8,
    /// The capture failed while it ran.
    Read = 9,
    /// The host may not connect.
    HostNotAuthorised = 10,
    /// The client refuses the daemon (client to daemon).
    RemoteAccept = 11,
    /// The capture cannot start.
    StartCapture = 12,
    /// There is no capture to end.
    EndCapture = 13,
    /// Nothing came for too long.
    RuntimeTimeout = 14,
    /// Sampling cannot be set.
    SetSampling = 15,
    /// The message is not legal now, or not known.
    WrongMessage = 16,
    /// The message's version is not spoken.
    WrongVersion = 17,
    /// The credentials are wrong.
    AuthFailed = 18,
    /// The connection must use TLS.
    TlsRequired = 19,
    /// The kind of authentication is not supported.
    AuthType = 20,
}

impl ErrorCode {
    /// Every code, in the order of their numbers.
    pub const ALL: [Self; 20] = [
        Self::Network,
        Self::InitTimeout,
        Self::Auth,
        Self::FindAllIf,
        Self::NoInterfaces,
        Self::Open,
        Self::UpdateFilter,
        Self::GetStats,
        Self::Read,
        Self::HostNotAuthorised,
        Self::RemoteAccept,
        Self::StartCapture,
        Self::EndCapture,
        Self::RuntimeTimeout,
        Self::SetSampling,
        Self::WrongMessage,
        Self::WrongVersion,
        Self::AuthFailed,
        Self::TlsRequired,
        Self::AuthType,
    ];

    /// The code with this number, if the protocol has one.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u16 == number)
    }

    /// What it means, for people.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::InitTimeout => "initial timeout",
            Self::Auth => "authentication",
            Self::FindAllIf => "interfaces cannot be listed",
            Self::NoInterfaces => "no interfaces",
            Self::Open => "interface cannot be opened",
            Self::UpdateFilter => "filter cannot be replaced",
            Self::GetStats => "no statistics",
            Self::Read => "capture failed",
            Self::HostNotAuthorised => "host not authorised",
            Self::RemoteAccept => "client refuses",
            Self::StartCapture => "capture cannot start",
            Self::EndCapture => "capture cannot end",
            Self::RuntimeTimeout => "runtime timeout",
            Self::SetSampling => "sampling cannot be set",
            Self::WrongMessage => "wrong message",
            Self::WrongVersion => "wrong version",
            Self::AuthFailed => "authentication failed",
            Self::TlsRequired => "TLS required",
            Self::AuthType => "authentication type not supported",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_number_and_a_meaning_of_its_own() {
        let numbers: Vec<u16> = ErrorCode::ALL.iter().map(|code| *code as u16).collect();
        assert_eq!(numbers, (1..=20).collect::<Vec<u16>>());
        let meanings: std::collections::HashSet<_> =
            ErrorCode::ALL.iter().map(|code| code.meaning()).collect();
        assert_eq!(meanings.len(), 20);
        for number in [0, 21, u16::MAX] {
            assert_eq!(ErrorCode::from_number(number), None);
        }
        assert_eq!(ErrorCode::from_number(18), Some(ErrorCode::AuthFailed));
    }
}
