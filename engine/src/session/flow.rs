//! Which flow a packet belongs to: one number for both directions, the same on every node.
//!
//! ```text
//! frame, headers ---> protocol, {(address, port), (address, port)} in order --xxh3--> u64
//! ICMP error -------> the same, of the packet that it carries
//! first fragment -> memory: (source, destination, protocol, id) -> u64 <- its later fragments
//! ```
//!
//! No seed and no byte order of the machine: the two directions of a flow are reported by two
//! nodes, which have to name it alike. What has no ports is named by its addresses, what is not IP
//! by its MAC addresses.

use xxhash_rust::xxh3::xxh3_64;

use crate::wire::{Address, Headers, Network, protocol};

/// Sets of the memory of fragmented packets, two entries each: 64 KiB. On a node with more than
/// this many fragmented packets on their way at a time, some are named by their addresses alone.
const SETS: usize = 2048;

/// A fragmented packet: what its later fragments are known by, and its flow.
#[derive(Clone, Copy, Debug, Default)]
struct Fragmented {
    name: u64,
    flow: u64,
}

/// Names flows. One per worker: fanout by hash gives all fragments of a packet to one.
#[derive(Debug)]
pub struct Flows {
    fragmented: Box<[[Fragmented; 2]]>,
    /// Later fragments whose first one was not seen, since this was last taken.
    pub strays: u64,
}

impl Default for Flows {
    fn default() -> Self {
        Self { fragmented: vec![[Fragmented::default(); 2]; SETS].into(), strays: 0 }
    }
}

impl Flows {
    /// Remembers the flow of a first fragment, reported or not: its later ones may be reported.
    #[inline]
    pub fn note(&mut self, headers: &Headers) {
        if headers.ports.is_some() && headers.fragment.is_some() {
            self.remember(headers);
        }
    }

    fn remember(&mut self, headers: &Headers) {
        let name = fragment_name(headers);
        let set = &mut self.fragmented[place(name)];
        // The older of the two goes.
        if set[0].name != name {
            set[1] = set[0];
        }
        set[0] = Fragmented { name, flow: flow_of(headers) };
    }

    /// The flow of a frame with these headers.
    pub fn of(&mut self, data: &[u8], headers: &Headers) -> u64 {
        if headers.network == Network::Other {
            return link_flow(data);
        }
        // Other protocols have no ports to lose.
        let has_ports = protocol::has_ports(headers.protocol);
        if has_ports && headers.fragment.is_some_and(|fragment| fragment.offset != 0) {
            let name = fragment_name(headers);
            let known = self.fragmented[place(name)].iter().find(|entry| entry.name == name);
            if let Some(known) = known {
                return known.flow;
            }
            self.strays += 1;
        }
        match headers.embedded(data) {
            Some(embedded) => flow_of(&embedded),
            None => flow_of(headers),
        }
    }
}

fn place(name: u64) -> usize {
    usize::try_from(name % (SETS as u64)).expect("less than SETS")
}

fn fragment_name(headers: &Headers) -> u64 {
    let id = headers.fragment.map_or(0, |fragment| fragment.id);
    let mut bytes = [0; 37];
    bytes[..16].copy_from_slice(&headers.source.0.to_be_bytes());
    bytes[16..32].copy_from_slice(&headers.destination.0.to_be_bytes());
    bytes[32] = headers.protocol;
    bytes[33..].copy_from_slice(&id.to_be_bytes());
    xxh3_64(&bytes)
}

fn flow_of(headers: &Headers) -> u64 {
    let (source_port, destination_port) = headers.ports.unwrap_or_default();
    let ends = [(headers.source, source_port), (headers.destination, destination_port)];
    let [low, high]: [(Address, u16); 2] =
        if ends[0] <= ends[1] { ends } else { [ends[1], ends[0]] };
    let mut bytes = [0; 37];
    bytes[0] = headers.protocol;
    bytes[1..17].copy_from_slice(&low.0.0.to_be_bytes());
    bytes[17..19].copy_from_slice(&low.1.to_be_bytes());
    bytes[19..35].copy_from_slice(&high.0.0.to_be_bytes());
    bytes[35..].copy_from_slice(&high.1.to_be_bytes());
    xxh3_64(&bytes)
}

/// By the two MAC addresses; a runt by what it has.
fn link_flow(data: &[u8]) -> u64 {
    let Some((destination, rest)) = data.split_at_checked(6) else { return xxh3_64(data) };
    let Some((source, _)) = rest.split_at_checked(6) else { return xxh3_64(data) };
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(source.min(destination));
    bytes[6..].copy_from_slice(source.max(destination));
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests;
