//! One TCP connection with a given number of bytes one way; the receiver says how many came.

use super::{
    Sent,
    random::Random,
    server::{Shared, read},
    socket::{self, wrong},
};
use crate::lab::{Host, LabError};
use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// A sender's work.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// Where a [`super::Serve::Bulk`] server listens, or a service that leads there.
    pub to: SocketAddr,
    /// How many bytes.
    pub bytes: u64,
    /// Decides the contents.
    pub seed: u64,
    /// `None`: the kernel's choice.
    pub client_port: Option<u16>,
    /// Payload bits a second, at most. `None`: as fast as it goes, which on a veth is faster than
    /// any tap that shares the sender's cores can read.
    pub bits_per_second: Option<u64>,
}

impl Bulk {
    /// `bytes` to a server.
    #[must_use]
    pub fn new(to: SocketAddr, bytes: u64) -> Self {
        Self { to, bytes, seed: 1, client_port: None, bits_per_second: None }
    }

    /// Runs on a host of the lab.
    ///
    /// # Errors
    ///
    /// When not all bytes arrive.
    pub fn run_on(&self, host: &Host) -> Result<Sent, LabError> {
        host.enter(|| self.run())?
            .map_err(|error| LabError::call(format!("bulk {} -> {}", host.name(), self.to), error))
    }

    /// Runs in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When not all bytes arrive.
    pub fn run(&self) -> io::Result<Sent> {
        let mut random = Random::new(self.seed);
        let mut stream = socket::connect(self.to, self.client_port)?;
        let mut buffer = vec![0; 65536];
        let started = Instant::now();
        let mut left = self.bytes;
        while left > 0 {
            let chunk = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            random.fill(&mut buffer[..chunk]);
            if let Some(rate) = self.bits_per_second {
                let due = u128::from(self.bytes - left) * 8_000_000_000 / u128::from(rate.max(1));
                let due = Duration::from_nanos(u64::try_from(due).unwrap_or(u64::MAX));
                thread::sleep(due.saturating_sub(started.elapsed()));
            }
            stream.write_all(&buffer[..chunk])?;
            left -= u64::try_from(chunk).unwrap_or(left);
        }
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.take(64).read_to_string(&mut answer)?;
        if answer != format!("{}\n", self.bytes) {
            return Err(wrong(format!("sent {} bytes, the server got {answer:?}", self.bytes)));
        }
        Ok(Sent {
            what: "bulk",
            connections: 1,
            requests: 1,
            responses: 1,
            bytes_sent: self.bytes,
            bytes_received: u64::try_from(answer.len()).unwrap_or(0),
        })
    }
}

/// One connection of the server.
pub(crate) fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    let mut total = 0_u64;
    loop {
        let length = read(&mut stream, &mut buffer, shared)?;
        if length == 0 {
            break;
        }
        total += u64::try_from(length).unwrap_or(0);
    }
    shared.count_request();
    stream.write_all(format!("{total}\n").as_bytes())
}
