//! DNS queries over UDP and their replies: A records, in the real format, so that any dissector
//! reads them.

use super::{
    Sent,
    socket::{self, wrong},
};
use crate::lab::{Host, LabError};
use std::{io, net::SocketAddr};

const HEADER_BYTES: usize = 12;
const TYPE_A: [u8; 2] = [0, 1];
const CLASS_IN: [u8; 2] = [0, 1];

/// A client's work.
#[derive(Clone, Debug)]
pub struct Dns {
    /// Server or service.
    pub to: SocketAddr,
    /// Queries in all, spread over the sockets in turn; each waits for its reply.
    pub queries: u32,
    /// Sockets, each with a port of its own.
    pub sockets: u32,
    /// Part of every name.
    pub seed: u64,
    /// Port of the first socket; the others use those after it. `None`: the kernel's choice.
    pub client_port: Option<u16>,
}

impl Dns {
    /// `queries` from `sockets` ports.
    #[must_use]
    pub fn new(to: SocketAddr, queries: u32, sockets: u32) -> Self {
        Self { to, queries, sockets, seed: 1, client_port: None }
    }

    /// Runs on a host of the lab.
    ///
    /// # Errors
    ///
    /// When any query is not answered rightly.
    pub fn run_on(&self, host: &Host) -> Result<Sent, LabError> {
        host.enter(|| self.run())?
            .map_err(|error| LabError::call(format!("DNS {} -> {}", host.name(), self.to), error))
    }

    /// Runs in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When any query is not answered rightly.
    pub fn run(&self) -> io::Result<Sent> {
        let mut sockets = Vec::new();
        for index in 0..self.sockets {
            let socket = socket::udp(self.to, socket::client_port(self.client_port, index)?)?;
            // Connected, as resolvers do: strangers' datagrams stay out.
            socket.connect(self.to)?;
            sockets.push(socket);
        }
        let mut sent = Sent { what: "dns", connections: self.sockets, ..Sent::default() };
        if sockets.is_empty() {
            return Ok(sent);
        }
        let mut buffer = [0; 512];
        for (number, turn) in (0..self.queries).zip((0..sockets.len()).cycle()) {
            let query = query(number, self.seed);
            sockets[turn].send(&query)?;
            sent.requests += 1;
            sent.bytes_sent += u64::try_from(query.len()).unwrap_or(0);
            let length = sockets[turn].recv(&mut buffer)?;
            if buffer[..length] != answer(&query)?[..] {
                return Err(wrong(format!("reply to query {number} is not its answer")));
            }
            sent.responses += 1;
            sent.bytes_received += u64::try_from(length).unwrap_or(0);
        }
        Ok(sent)
    }
}

/// A query for the A record of `qNUMBER.sSEED.lab.example`.
fn query(number: u32, seed: u64) -> Vec<u8> {
    let [_, _, high, low] = number.to_be_bytes();
    // Id; recursion desired; one question.
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [&format!("q{number}"), &format!("s{seed}"), "lab", "example"] {
        // Labels are at most 21 bytes long: two numbers and two words.
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&TYPE_A);
    message.extend_from_slice(&CLASS_IN);
    message
}

/// The reply to a query: the same question, and an address that follows from the id.
pub(crate) fn answer(query: &[u8]) -> io::Result<Vec<u8>> {
    let &[high, low, ..] = query else { return Err(wrong("a query without an id")) };
    if query.len() <= HEADER_BYTES {
        return Err(wrong("a query without a question"));
    }
    let mut message = query.to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]); // a response, recursion available
    message[6..8].copy_from_slice(&[0, 1]); // one answer
    message.extend_from_slice(&[0xc0, 12]); // its name is the question's
    message.extend_from_slice(&TYPE_A);
    message.extend_from_slice(&CLASS_IN);
    message.extend_from_slice(&30_u32.to_be_bytes()); // seconds to live
    message.extend_from_slice(&[0, 4, 192, 0, high, low]);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_the_question() {
        let query = query(0x1234, 5);
        let reply = answer(&query).unwrap();
        assert_eq!(reply[..2], [0x12, 0x34]);
        assert_eq!(reply[HEADER_BYTES..query.len()], query[HEADER_BYTES..]);
        assert_eq!(reply[reply.len() - 4..], [192, 0, 0x12, 0x34]);
        assert!(answer(&[1]).is_err());
        assert!(answer(&query[..HEADER_BYTES]).is_err());
    }
}
