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
