//! UDP datagrams that nobody answers: of any size (beyond the MTU they become fragments), and
//! repeated when asked.

use super::{Sent, random::Random, socket};
use crate::lab::{Host, LabError};
use std::{io, net::SocketAddr};

/// A sender's work.
#[derive(Clone, Debug)]
pub struct Datagrams {
    /// Where a [`super::Serve::Discard`] server listens.
    pub to: SocketAddr,
    /// Different datagrams.
    pub count: u32,
    /// Each is sent this many times in a row. Over IPv6 the repeats are the same bytes on the
    /// wire; over IPv4 Linux gives each an IP ID of its own.
    pub times: u32,
    /// Payload of each, bytes.
    pub payload: usize,
    /// Decides the contents.
    pub seed: u64,
    /// `None`: the kernel's choice.
    pub client_port: Option<u16>,
}

impl Datagrams {
    /// `count` different datagrams with `payload` bytes, each once.
    #[must_use]
    pub fn new(to: SocketAddr, count: u32, payload: usize) -> Self {
        Self { to, count, times: 1, payload, seed: 1, client_port: None }
    }

    /// Runs on a host of the lab.
    ///
    /// # Errors
    ///
    /// When the kernel does not take one.
    pub fn run_on(&self, host: &Host) -> Result<Sent, LabError> {
        host.enter(|| self.run())?
            .map_err(|error| LabError::call(format!("UDP {} -> {}", host.name(), self.to), error))
    }

    /// Runs in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel does not take one.
    pub fn run(&self) -> io::Result<Sent> {
        let mut random = Random::new(self.seed);
        let socket = socket::udp(self.to, self.client_port)?;
        let mut sent = Sent { what: "datagrams", connections: 1, ..Sent::default() };
        let mut payload = vec![0; self.payload];
        for _ in 0..self.count {
            random.fill(&mut payload);
            for _ in 0..self.times {
                socket.send_to(&payload, self.to)?;
                sent.requests += 1;
                sent.bytes_sent += u64::try_from(payload.len()).unwrap_or(0);
            }
        }
        Ok(sent)
    }
}
