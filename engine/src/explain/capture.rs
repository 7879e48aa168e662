//! One frame of a capture file: what it parses to, what of it counts, what would become of it.
//!
//! ```text
//! file --pick--> bytes --Headers--> packet, addresses --path--> its copies, the frame among them --judge--> Answer
//! ```

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::frame::Direction;
use crate::source::file::pick;
use crate::wire::{Address, Headers, Network};

use super::ExplainError;
use super::answer::{Body, named};
use super::craft::{End, Ends, Protocol};
use super::judge::{self, Copy, Way, direction_name};
use super::key::{self, KeyFields};
use super::known::{AddressFacts, Known};
use super::path::{self, Step};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct FrameFacts {
    pub(super) file: PathBuf,
    pub(super) frame: u64,
    pub(super) bytes: u32,
    pub(super) captured: u64,
    /// VLAN ids, outermost first.
    pub(super) vlans: Vec<u16>,
    pub(super) packet: Option<PacketFacts>,
    pub(super) facts: Vec<AddressFacts>,
    pub(super) key: KeyFields,
    /// The copy in `copies` that is this frame, if it was said where it was seen.
    pub(super) copy: Option<usize>,
    pub(super) copies: Vec<Copy>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PacketFacts {
    pub(super) protocol: Protocol,
    pub(super) source: End,
    pub(super) destination: End,
    pub(super) fragment: Option<FragmentFacts>,
    /// Bytes behind the transport header.
    pub(super) payload: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct FragmentFacts {
    pub(super) offset: u16,
    pub(super) more: bool,
    pub(super) id: u32,
}

/// What is known of one frame of a file, and what would be decided about it.
pub(super) fn frame(
    known: &Known,
    file: &Path,
    number: u64,
    point: Option<(String, Direction)>,
    backend: Option<End>,
) -> Result<(Body, Vec<String>), ExplainError> {
    let picked = pick(file, number)?;
    let data = picked.data.unwrap_or_default();
    let headers = Headers::parse(&data);
    let packet = packet(&headers);
    let mut notes = Vec::new();
    let mut steps = Vec::new();
    let mut facts = Vec::new();
    let mut way = Way::Request;
    let mut protocol = Protocol(headers.protocol);
    let mut ends = Ends {
        source: End { address: headers.source.to_ip(), port: None },
        destination: End { address: headers.destination.to_ip(), port: None },
    };
    if let Some(packet) = &packet {
        ends = Ends { source: packet.source, destination: packet.destination };
        protocol = packet.protocol;
        facts.extend([ends.source, ends.destination].map(|end| known.facts(end.address)));
        let is_answer = known.is_service(ends.source, protocol);
        if is_answer {
            let path = path::find(known, ends.reversed(), protocol, backend);
            let request = judge::copies(known, &path.request, protocol, Way::Request);
            way = Way::Answer { is_proven: judge::is_proven(&request) };
            (steps, notes) = (path.answer, path.notes);
        } else {
            let path = path::find(known, ends, protocol, backend);
            (steps, notes) = (path.request, path.notes);
        }
    } else {
        notes.push("not IP: each frame on a wire is reported once, by its bytes".to_owned());
    }
    for step in steps.iter_mut().filter(|step| step.ends == ends && !step.is_outer) {
        step.bytes = Some(data.clone());
    }
    let direction = |asked: &(String, Direction)| picked.direction.filter(|own| *own != asked.1);
    if let Some(own) = point.as_ref().and_then(direction) {
        notes.push(format!("the file says that it was seen going {}", direction_name(own)));
    }
    let mut at = None;
    if let Some((name, direction)) = point {
        let ifindex = named(known, &name)?.ifindex;
        let is_it = |step: &&mut Step| {
            step.direction == direction
                && step.ends == ends
                && !step.is_outer
                && step.interfaces.contains(&ifindex)
        };
        match steps.iter_mut().find(is_it) {
            Some(step) => step.interfaces = vec![ifindex],
            None => {
                if packet.is_some() {
                    notes.push(format!(
                        "{name}:{} is not on the way of its flow, as routes are now",
                        direction_name(direction)
                    ));
                }
                let bytes = Some(data.clone());
                steps.insert(0, Step { bytes, ..Step::new(vec![ifindex], direction, ends) });
            }
        }
        at = Some((name, direction_name(direction)));
    } else if packet.is_none() {
        notes.push("where was it seen? --point IFACE:in|out".to_owned());
    }
    if data.len() < usize::try_from(picked.wire_len).unwrap_or(usize::MAX) {
        notes.push(
            "it was not captured whole: the missing bytes do not count in its key".to_owned(),
        );
    }
    let limit = known.view.main.and_then(|main| known.link(main)).map_or(1500, |link| link.mtu);
    if picked.wire_len > limit + 18 {
        notes.push(format!("longer than the MTU of {limit}: a super-frame, cut into wire segments before it is compared (rule 5); files do not say how large these are"));
    }
    let copies = judge::copies(known, &steps, protocol, way);
    let ours = |copy: &&Copy| {
        let here = |(name, direction): &(String, &str)| {
            copy.interface == *name && copy.direction == *direction
        };
        at.as_ref().is_some_and(here) && copy.source == ends.source.to_string()
    };
    let facts = FrameFacts {
        file: file.to_owned(),
        frame: number,
        bytes: picked.wire_len,
        captured: data.len() as u64,
        vlans: vlans(&data, headers.l3),
        packet,
        facts,
        key: key::fields(&data),
        copy: copies.iter().find(ours).map(|copy| copy.copy),
        copies,
    };
    Ok((Body::Frame(Box::new(facts)), notes))
}

fn packet(headers: &Headers) -> Option<PacketFacts> {
    if headers.network == Network::Other {
        return None;
    }
    let end = |address: Address, port| End { address: address.to_ip(), port };
    let (source, destination) = headers.ports.unzip();
    Some(PacketFacts {
        protocol: Protocol(headers.protocol),
        source: end(headers.source, source),
        destination: end(headers.destination, destination),
        fragment: headers.fragment.map(|fragment| FragmentFacts {
            offset: fragment.offset,
            more: fragment.more,
            id: fragment.id,
        }),
        payload: headers.end - headers.payload,
    })
}

/// The ids of the tags between the MAC addresses and what they enclose.
fn vlans(data: &[u8], l3: usize) -> Vec<u16> {
    let tags = data.get(14..l3.min(data.len())).unwrap_or_default().chunks_exact(4);
    tags.map(|tag| u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff).collect()
}
