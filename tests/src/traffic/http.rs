//! HTTP/1.1 requests over a bounded number of kept-alive connections.
//!
//! ```text
//! POST /SIZE HTTP/1.1 + body  -->   200 OK + body of SIZE bytes
//! ```
//!
//! Request and response sizes follow from the seed; contents too, so that no two packets with
//! payload are alike.

use super::{
    Sent,
    random::Random,
    server::{Shared, read},
    socket::{self, wrong},
};
use crate::lab::{Host, LabError};
use std::{
    io::{self, BufRead, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

/// The largest head that either side accepts.
const MAX_HEAD: usize = 4096;
/// The largest body that either side accepts.
const MAX_BODY: usize = 1 << 20;

/// A client's work.
#[derive(Clone, Debug)]
pub struct Http {
    /// Server or service.
    pub to: SocketAddr,
    /// Requests in all, spread over the connections in turn.
    pub requests: u32,
    /// Connections, all open at the same time.
    pub connections: u32,
    /// Bodies have 0 to this many bytes, at most 1 MiB.
    pub max_body: usize,
    /// Decides sizes and contents.
    pub seed: u64,
    /// Port of the first connection; the others use those after it. `None`: the kernel's choice.
    pub client_port: Option<u16>,
}

impl Http {
    /// `requests` over `connections` with bodies up to 2000 bytes.
    #[must_use]
    pub fn new(to: SocketAddr, requests: u32, connections: u32) -> Self {
        Self { to, requests, connections, max_body: 2000, seed: 1, client_port: None }
    }

    /// Runs on a host of the lab.
    ///
    /// # Errors
    ///
    /// When any request is not answered rightly.
    pub fn run_on(&self, host: &Host) -> Result<Sent, LabError> {
        host.enter(|| self.run())?
            .map_err(|error| LabError::call(format!("HTTP {} -> {}", host.name(), self.to), error))
    }

    /// Runs in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When any request is not answered rightly.
    pub fn run(&self) -> io::Result<Sent> {
        let mut random = Random::new(self.seed);
        let max_body = self.max_body.min(MAX_BODY);
        let mut streams = Vec::new();
        for index in 0..self.connections {
            let port = socket::client_port(self.client_port, index)?;
            streams.push(BufReader::new(socket::connect(self.to, port)?));
        }
        let mut sent = Sent { what: "http", connections: self.connections, ..Sent::default() };
        if streams.is_empty() {
            return Ok(sent);
        }
        for index in 0..usize::try_from(self.requests).unwrap_or(usize::MAX) {
            let turn = index % streams.len();
            let stream = &mut streams[turn];
            let wanted = random.within(0..=max_body);
            let mut body = vec![0; random.within(0..=max_body)];
            random.fill(&mut body);
            let mut request = format!(
                "POST /{wanted} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
                self.to,
                body.len()
            )
            .into_bytes();
            request.extend_from_slice(&body);
            stream.get_mut().write_all(&request)?;
            sent.requests += 1;
            sent.bytes_sent += length(request.len());

            let (head, body) = response(stream)?;
            if body != wanted {
                return Err(wrong(format!("asked for {wanted} bytes, got {body}")));
            }
            sent.responses += 1;
            sent.bytes_received += length(head + body);
        }
        Ok(sent)
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Reads one response; lengths of its head and body.
fn response(stream: &mut BufReader<TcpStream>) -> io::Result<(usize, usize)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut head)? == 0 || head.len() > MAX_HEAD {
            return Err(wrong("the response's head does not end"));
        }
    }
    let text = String::from_utf8_lossy(&head);
    if !text.starts_with("HTTP/1.1 200 ") {
        return Err(wrong(format!("response {:?}", text.lines().next())));
    }
    let body = content_length(&text)?;
    let mut buffer = vec![0; body];
    stream.read_exact(&mut buffer)?;
    Ok((head.len(), body))
}

fn content_length(head: &str) -> io::Result<usize> {
    head.lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .and_then(|value| value.parse().ok())
        .filter(|length| *length <= MAX_BODY)
        .ok_or_else(|| wrong(format!("no usable Content-Length in {head:?}")))
}

/// One connection of the server.
pub(crate) fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut random = Random::new(stream.peer_addr()?.port().into());
    let mut received = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        while let Some((wanted, used)) = request(&received)? {
            received.drain(..used);
            let mut reply =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {wanted}\r\n\r\n").into_bytes();
            let head = reply.len();
            reply.resize(head + wanted, 0);
            random.fill(&mut reply[head..]);
            shared.count_request();
            stream.write_all(&reply)?;
        }
        match read(&mut stream, &mut buffer, shared)? {
            0 => return Ok(()),
            length => received.extend_from_slice(&buffer[..length]),
        }
    }
}

/// The response size that a complete request asks for, and the bytes that the request has.
fn request(received: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if received.len() > MAX_HEAD { Err(wrong("endless head")) } else { Ok(None) };
    };
    let head = end + 4;
    let text = String::from_utf8_lossy(&received[..head]);
    let body = content_length(&text)?;
    let wanted = text
        .strip_prefix("POST /")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .filter(|wanted| *wanted <= MAX_BODY)
        .ok_or_else(|| wrong(format!("request {:?}", text.lines().next())))?;
    Ok((received.len() >= head + body).then_some((wanted, head + body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_when_its_body_is_complete() {
        let whole = b"POST /7 HTTP/1.1\r\nContent-Length: 2\r\n\r\nabPOST";
        assert_eq!(request(&whole[..whole.len() - 5]).unwrap(), None);
        assert_eq!(request(whole).unwrap(), Some((7, whole.len() - 4)));
    }

    #[test]
    fn sizes_beyond_the_limit_are_refused() {
        assert!(request(b"POST /99999999 HTTP/1.1\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(request(b"POST /1 HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n").is_err());
        assert!(request(&[b'x'; MAX_HEAD + 1]).is_err());
    }
}
