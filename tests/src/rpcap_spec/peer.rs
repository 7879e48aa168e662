//! The other end of a control connection, played from a script.
//!
//! ```text
//! our lines --> sent          the other's lines --> read, byte for byte the same, or a panic
//! ```

use super::script::{self, Byte, Speaker, What};
use super::{LIMIT, kind};
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpStream},
    time::Instant,
};

/// See the module.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    speaker: Speaker,
    port: u16,
    /// The longest piece that a message is sent in.
    piece: usize,
}

impl Peer {
    /// Plays the client (the sensor).
    #[must_use]
    pub fn client(stream: TcpStream) -> Self {
        Self::new(stream, Speaker::Client)
    }

    /// Plays the daemon (the tap).
    #[must_use]
    pub fn daemon(stream: TcpStream) -> Self {
        Self::new(stream, Speaker::Daemon)
    }

    fn new(stream: TcpStream, speaker: Speaker) -> Self {
        let limits =
            stream.set_read_timeout(Some(LIMIT)).and(stream.set_write_timeout(Some(LIMIT)));
        limits.and(stream.set_nodelay(true)).expect("options of a TCP socket");
        Self { stream, speaker, port: 0, piece: usize::MAX }
    }

    /// `PORT` in what is sent.
    pub fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// `PORT` in what was received last.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends every message in pieces of at most so many bytes, each a segment of its own.
    pub fn cut_into(&mut self, piece: usize) {
        self.piece = piece;
    }

    /// Address of the other end.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.stream.peer_addr().expect("it is connected").ip()
    }

    /// Plays a script to its end; our lines that follow each other go out in one segment.
    ///
    /// # Panics
    ///
    /// When the other side says anything else than the script, or nothing in time.
    pub fn plays(&mut self, script: &str) {
        let mut outgoing = Vec::new();
        for step in script::read(script) {
            let is_ours = step.speaker == self.speaker;
            match step.what {
                What::Bytes(bytes) if is_ours => outgoing.extend(self.filled(&bytes)),
                What::Error(code) if is_ours => {
                    outgoing.extend(super::message(kind::ERROR, code, b"said by a test"));
                }
                What::End if is_ours => {
                    self.send(&std::mem::take(&mut outgoing));
                    self.stream.shutdown(Shutdown::Write).expect("it is connected");
                }
                what => {
                    self.send(&std::mem::take(&mut outgoing));
                    self.expect(step.line, &what);
                }
            }
        }
        self.send(&outgoing);
    }

    fn filled(&self, bytes: &[Byte]) -> Vec<u8> {
        let [high, low] = self.port.to_be_bytes();
        let fill = |byte: &Byte| match byte {
            Byte::Is(byte) => *byte,
            Byte::PortHigh => high,
            Byte::PortLow => low,
            Byte::Any => panic!("?? cannot be sent"),
        };
        bytes.iter().map(fill).collect()
    }

    /// Sends bytes as they are.
    ///
    /// # Panics
    ///
    /// When they cannot be sent in time.
    pub fn send(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.piece) {
            // Without Nagle's algorithm: a segment each.
            self.stream.write_all(piece).expect("the other side reads");
        }
    }

    fn expect(&mut self, line: &str, what: &What) {
        match what {
            What::Bytes(expected) => {
                let got = self.read(expected.len(), line);
                let mut port = self.port.to_be_bytes();
                let fits = |(expected, got): (&Byte, &u8)| match expected {
                    Byte::Is(byte) => byte == got,
                    Byte::Any => true,
                    Byte::PortHigh => {
                        port[0] = *got;
                        true
                    }
                    Byte::PortLow => {
                        port[1] = *got;
                        true
                    }
                };
                // Not `all`: the port may stand behind a difference.
                let different = expected.iter().zip(&got).map(fits).filter(|fits| !fits).count();
                self.port = u16::from_be_bytes(port);
                assert!(
                    different == 0,
                    "{different} bytes differ\nexpected {line}\ngot      {got:02x?}"
                );
            }
            What::Error(code) => {
                let (got, text) = self.expect_error(line);
                assert_eq!(got, *code, "{line}: {text:?}");
            }
            What::End => self.expect_end(line),
        }
    }

    /// Reads an ERROR as it must be: version 0, some text, not too long, no NUL, UTF-8.
    fn expect_error(&mut self, line: &str) -> (u16, String) {
        let (version, kind, code, payload) = self.message(line);
        assert_eq!((version, kind), (0, kind::ERROR), "{line}: got {payload:02x?}");
        assert!(!payload.is_empty() && payload.len() <= 256, "{line}: {} bytes", payload.len());
        let text = String::from_utf8(payload).expect("UTF-8");
        assert!(!text.contains('\0'), "{text:?}");
        (code, text)
    }

    /// Reads a message, whatever it is: version, type, value, payload.
    ///
    /// # Panics
    ///
    /// When none comes in time.
    pub fn message(&mut self, why: &str) -> (u8, u8, u16, Vec<u8>) {
        let head = self.read(8, why);
        let plen = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let payload = self.read(usize::try_from(plen).expect("32 bits"), why);
        (head[0], head[1], u16::from_be_bytes([head[2], head[3]]), payload)
    }

    fn read(&mut self, len: usize, line: &str) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut read = 0;
        let started = Instant::now();
        while read < len {
            match self.stream.read(&mut bytes[read..]) {
                Ok(0) => panic!("closed after {:02x?}\nexpected {line}", &bytes[..read]),
                Ok(more) => read += more,
                Err(error) => panic!("{error} after {:02x?}\nexpected {line}", &bytes[..read]),
            }
            assert!(started.elapsed() < LIMIT, "too slow\nexpected {line}");
        }
        bytes
    }

    /// The other side closes in order, and says nothing before.
    fn expect_end(&mut self, line: &str) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "{line}: it said {rest:02x?} more"),
            Err(error) => panic!("{error}\nexpected {line}"),
        }
    }
}
