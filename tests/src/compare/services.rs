//! Which backend a connection to a service went to, so that what the client sent can be compared
//! with what must be reported: the same packet to the backend.
//!
//! ```text
//! sent:  client -> service     backend -> client   (the backend's own capture: its answer)
//!           \_____ the same client end _____/      => this connection went to this backend
//! ```

use super::packet::Packet;
use crate::lab::Service;
use std::{
    collections::{HashMap, hash_map},
    net::SocketAddr,
};

/// A connection to a service: client, service, protocol number.
type Connection = (SocketAddr, SocketAddr, u8);

#[derive(Debug)]
pub(crate) struct Translation {
    backends: HashMap<Connection, SocketAddr>,
}

impl Translation {
    /// Learns from the answers that the backends sent. Where there is no answer and a choice of
    /// backends, the sensor's own word is taken for which it was; how often is still compared.
    pub(crate) fn learn(services: &[Service], sent: &[Packet], sensor: &[Packet]) -> Self {
        let mut wanted: HashMap<Connection, &Service> = HashMap::new();
        if !services.is_empty() {
            for packet in sent {
                if let (Some(client), Some(to), Some(protocol)) =
                    (packet.source_socket(), packet.destination_socket(), packet.protocol())
                    && let Some(service) = services.iter().find(|service| {
                        service.address == to && service.protocol.number() == protocol
                    })
                {
                    wanted.insert((client, to, protocol), service);
                }
            }
        }
        let mut answers: HashMap<(SocketAddr, u8), Vec<SocketAddr>> = HashMap::new();
        let mut note = |client, backend, protocol| {
            let backends: &mut Vec<SocketAddr> = answers.entry((client, protocol)).or_default();
            if !backends.contains(&backend) {
                backends.push(backend);
            }
        };
        if !wanted.is_empty() {
            // Those that were sent come first: they are believed before the sensor.
            for packet in sent {
                if let (Some(from), Some(to), Some(protocol)) = ends(packet) {
                    note(to, from, protocol);
                }
            }
            for packet in sensor {
                if let (Some(from), Some(to), Some(protocol)) = ends(packet) {
                    note(from, to, protocol);
                }
            }
        }
        let mut backends = HashMap::new();
        for (connection, service) in wanted {
            let (client, _service, protocol) = connection;
            let candidates = answers.get(&(client, protocol));
            let answered = candidates
                .and_then(|seen| seen.iter().find(|backend| service.backends.contains(backend)))
                .or(service.backends.first());
            if let (Some(backend), hash_map::Entry::Vacant(entry)) =
                (answered, backends.entry(connection))
            {
                entry.insert(*backend);
            }
        }
        Self { backends }
    }

    /// The packet as it must be reported.
    pub(crate) fn apply(&self, packet: &Packet) -> Packet {
        let (Some(from), Some(to), Some(protocol)) = ends(packet) else { return packet.clone() };
        match self.backends.get(&(from, to, protocol)) {
            Some(backend) => packet.readdressed(*backend),
            None => packet.clone(),
        }
    }
}

fn ends(packet: &Packet) -> (Option<SocketAddr>, Option<SocketAddr>, Option<u8>) {
    (packet.source_socket(), packet.destination_socket(), packet.protocol())
}
