//! Which fields of a packet make it the same packet, found out by changing them one at a time.
//!
//! ```text
//! packet --one bit of a field turned over--> Headers::parse --Fingerprinter::key--> same key? ignored : counts
//! ```
//!
//! So that what is said here is what the data path does, whatever it is.

use serde::Serialize;

use crate::dedup::{Fingerprinter, Key};
use crate::wire::{Headers, Network, protocol};

/// Names of fields by what they do to the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct KeyFields {
    /// A change makes it another packet.
    pub(super) counts: Vec<&'static str>,
    /// Compared too, but translation may change them: see rule 4.
    pub(super) ends: Vec<&'static str>,
    /// Hosts change them on the way: they do not count.
    pub(super) ignored: Vec<&'static str>,
}

/// A field: its name, first byte, and the bits in each of its bytes.
type Field = (&'static str, usize, &'static [u8]);

const BYTE: &[u8] = &[0xff];
const WORD: &[u8] = &[0xff; 2];
const LONG: &[u8] = &[0xff; 4];

const V4: &[Field] = &[
    ("DSCP", 1, &[0xfc]),
    ("ECN", 1, &[0x03]),
    ("IP length", 2, WORD),
    ("IP ID", 4, WORD),
    ("DF", 6, &[0x40]),
    ("fragment fields", 6, &[0x3f, 0xff]),
    ("TTL", 8, BYTE),
    ("protocol", 9, BYTE),
    ("IP checksum", 10, WORD),
    ("source address", 12, LONG),
    ("destination address", 16, LONG),
];
const V6: &[Field] = &[
    ("DSCP", 0, &[0x0f, 0xc0]),
    ("ECN", 1, &[0x30]),
    ("flow label", 1, &[0x0f, 0xff, 0xff]),
    ("IP length", 4, WORD),
    ("protocol", 6, BYTE),
    ("hop limit", 7, BYTE),
    ("source address", 8, &[0xff; 16]),
    ("destination address", 24, &[0xff; 16]),
];
const TCP: &[Field] = &[
    ("source port", 0, WORD),
    ("destination port", 2, WORD),
    ("seq", 4, LONG),
    ("ack", 8, LONG),
    ("flags", 13, BYTE),
    ("window", 14, WORD),
    ("TCP checksum", 16, WORD),
    ("urgent pointer", 18, WORD),
];
const UDP: &[Field] = &[
    ("source port", 0, WORD),
    ("destination port", 2, WORD),
    ("UDP length", 4, WORD),
    ("UDP checksum", 6, WORD),
];
const ECHO: &[Field] = &[
    ("type and code", 0, WORD),
    ("ICMP checksum", 2, WORD),
    ("echo id", 4, WORD),
    ("sequence", 6, WORD),
];
const ICMP: &[Field] =
    &[("type and code", 0, WORD), ("ICMP checksum", 2, WORD), ("ICMP header", 4, LONG)];

/// Fields in which a packet's ends are.
const ENDS: [&str; 5] =
    ["source address", "destination address", "source port", "destination port", "echo id"];

/// Ends are short in the key: with two seeds, two that differ are hardly equal twice.
fn keys(data: &[u8]) -> [Key; 2] {
    let headers = Headers::parse(data);
    [1, 2].map(|seed| Fingerprinter::new(seed).key(&headers, data))
}

/// What counts in this packet.
pub(super) fn fields(data: &[u8]) -> KeyFields {
    let headers = Headers::parse(data);
    let original = keys(data);
    let mut found = KeyFields::default();
    let mut ask = |name: &'static str, at: usize, bits: &[u8]| {
        let mut changed = data.to_vec();
        if data.len() < at + bits.len() {
            return;
        }
        // One bit at a time: what turns a length over as a whole may leave it as long as the frame.
        let counts = bits.iter().zip(at..).any(|(bits, at)| {
            (0..8).map(|bit| 1 << bit).filter(|bit| bits & bit != 0).any(|bit| {
                changed[at] ^= bit;
                let differs = keys(&changed) != original;
                changed[at] ^= bit;
                differs
            })
        });
        let list = match (counts, ENDS.contains(&name)) {
            (false, _) => &mut found.ignored,
            (true, true) => &mut found.ends,
            (true, false) => &mut found.counts,
        };
        list.push(name);
    };
    let network = match headers.network {
        Network::V4 => V4,
        Network::V6 => V6,
        Network::Other => &[],
    };
    let transport = match headers.protocol {
        protocol::TCP if headers.has_transport() => TCP,
        protocol::UDP if headers.has_transport() => UDP,
        protocol::ICMP | protocol::ICMPV6 if headers.has_transport() => {
            // Flipped whole, an echo's type would be none.
            match data[headers.l4] {
                0 | 8 | 128 | 129 => ECHO,
                _ => ICMP,
            }
        }
        _ => &[],
    };
    ask("MAC addresses", 0, &[0xff; 12]);
    for (name, at, bits) in network {
        ask(name, headers.l3 + at, bits);
    }
    let options = headers.l3 + if headers.network == Network::V6 { 40 } else { 20 };
    if headers.network != Network::Other && headers.l4 > options {
        // The last byte: the first ones say what follows, and where.
        ask("IP options", headers.l4 - 1, BYTE);
    }
    for (name, at, bits) in transport {
        ask(name, headers.l4 + at, bits);
    }
    if headers.protocol == protocol::TCP && headers.payload > headers.l4 + 20 {
        ask("TCP options", headers.payload - 1, BYTE);
    }
    if headers.end > headers.payload {
        ask("payload", headers.payload, BYTE);
    }
    if data.len() > headers.end {
        ask("link padding", headers.end, BYTE);
    }
    found
}
