//! Random packets: what a host changes on the way leaves the key, everything else changes it.

use proptest::prelude::*;

use super::super::fingerprint::Fingerprinter;
use super::super::key::{Key, Marks, Translated};
use crate::wire::Headers;

/// A frame, and which of its bytes are what.
#[derive(Clone, Debug, Default)]
struct Built {
    data: Vec<u8>,
    /// Bits that a host may change: place, mask.
    free: Vec<(usize, u8)>,
    /// Bytes of the source and of the destination: address, port or id.
    source: Vec<usize>,
    destination: Vec<usize>,
    /// Lengths that are checked against what was captured, not hashed; and the first two bytes of
    /// the link's type, which make it another frame altogether.
    lengths: Vec<usize>,
}

impl Built {
    fn put(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.data.len();
        self.data.extend(bytes);
        start..self.data.len()
    }

    fn free(&mut self, bytes: &[u8]) {
        let range = self.put(bytes);
        self.free.extend(range.map(|at| (at, 0xff)));
    }

    fn source(&mut self, bytes: &[u8]) {
        let range = self.put(bytes);
        self.source.extend(range);
    }

    fn destination(&mut self, bytes: &[u8]) {
        let range = self.put(bytes);
        self.destination.extend(range);
    }

    fn length(&mut self, len: usize) {
        let range = self.put(&u16::try_from(len).unwrap().to_be_bytes());
        self.lengths.extend(range);
    }

    /// The bits of a byte that a host leaves alone and the key must hold.
    fn constant(&self, at: usize) -> u8 {
        let is = |places: &[usize]| places.contains(&at);
        if is(&self.source) || is(&self.destination) || is(&self.lengths) {
            return 0;
        }
        self.free.iter().filter(|(free, _)| *free == at).fold(0xff, |mask, (_, free)| mask & !free)
    }
}

/// What kind of packet, and the bytes that it is made of.
#[derive(Clone, Debug)]
struct Recipe {
    is_v6: bool,
    transport: usize,
    inner: usize,
    options: usize,
    bytes: Vec<u8>,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let bytes = proptest::collection::vec(any::<u8>(), 150..250);
    (any::<bool>(), 0..7usize, 0..5usize, 0..6usize, bytes).prop_map(
        |(is_v6, transport, inner, options, bytes)| Recipe {
            is_v6,
            transport,
            inner,
            options,
            bytes,
        },
    )
}

const TCP: usize = 0;
const UDP: usize = 1;
const SCTP: usize = 2;
const ECHO: usize = 3;
const GRE: usize = 4;
const ANSWER: usize = 5;
// 6: an ICMP error.

fn number(is_v6: bool, transport: usize) -> u8 {
    match transport {
        TCP => 6,
        UDP => 17,
        SCTP => 132,
        GRE => 47,
        _ if is_v6 => 58,
        _ => 1,
    }
}

impl Recipe {
    fn take<'a>(&'a self, at: &mut usize, len: usize) -> &'a [u8] {
        *at += len;
        &self.bytes[*at - len..*at]
    }

    fn build(&self) -> Built {
        let (mut built, mut at) = (Built::default(), 0);
        built.free(self.take(&mut at, 12));
        built.put(if self.is_v6 { &[0x86, 0xdd] } else { &[8, 0] });
        let mut l4 = Built::default();
        self.transport(&mut l4, self.transport, &mut at, true);
        self.network(&mut built, number(self.is_v6, self.transport), &mut at, l4.data.len(), false);
        let start = built.data.len();
        let moved = |places: &[usize]| places.iter().map(|at| at + start).collect::<Vec<_>>();
        built.source.extend(moved(&l4.source));
        built.destination.extend(moved(&l4.destination));
        built.free.extend(l4.free.iter().map(|(at, mask)| (at + start, *mask)));
        built.data.extend(l4.data);
        built
    }

    /// `is_quoted`: in an ICMP error, where the ends are what a host changes, and the rest is not.
    fn network(&self, to: &mut Built, number: u8, at: &mut usize, l4: usize, is_quoted: bool) {
        let changed = |to: &mut Built, bytes: &[u8], is_source: bool| match (is_quoted, is_source) {
            (true, _) => to.free(bytes),
            (false, true) => to.source(bytes),
            (false, false) => to.destination(bytes),
        };
        let len = |to: &mut Built, len: usize| match is_quoted {
            true => drop(to.put(&u16::try_from(len).unwrap().to_be_bytes())),
            false => to.length(len),
        };
        let ecn = |to: &mut Built, at: usize, mask: u8| {
            if !is_quoted {
                to.free.push((at, mask));
            }
        };
        if self.is_v6 {
            let (first, extensions) = self.extensions(number, is_quoted);
            let class = to.put(&[0x60, self.take(at, 1)[0], 3, 4]).start;
            ecn(to, class + 1, 0x30);
            len(to, l4 + extensions.data.len());
            to.put(&[first]);
            to.free(self.take(at, 1));
            changed(to, self.take(at, 16), true);
            changed(to, self.take(at, 16), false);
            let start = to.data.len();
            to.free.extend(extensions.free.iter().map(|(at, mask)| (at + start, *mask)));
            to.data.extend(extensions.data);
            return;
        }
        // No end of options, a gap, and a route that routers write down.
        let options: &[u8] = match self.options % 3 {
            0 => &[],
            1 => &[1, 1, 148, 4, 0, 0, 1, 1],
            _ => &[7, 7, 4, 9, 9, 9, 9, 1],
        };
        let words = u8::try_from(5 + options.len() / 4).unwrap();
        let class = to.put(&[0x40 | words, self.take(at, 1)[0]]).start;
        ecn(to, class + 1, 0x03);
        len(to, usize::from(words) * 4 + l4);
        to.put(self.take(at, 2));
        to.put(&[0x40, 0]);
        to.free(self.take(at, 1));
        to.put(&[number]);
        to.free(self.take(at, 2));
        changed(to, self.take(at, 4), true);
        changed(to, self.take(at, 4), false);
        let start = to.put(options).start;
        if self.options % 3 == 2 && !is_quoted {
            to.free.extend((start + 2..start + 7).map(|at| (at, 0xff)));
        }
    }

    /// The kind of the first header, and the headers.
    fn extensions(&self, number: u8, is_quoted: bool) -> (u8, Built) {
        let mut built = Built::default();
        let first = match self.options {
            // Hop by hop: an option that may change, one that may not.
            1 => {
                let start =
                    built.put(&[number, 1, 0x31, 4, 1, 2, 3, 4, 0x05, 2, 5, 6, 1, 2, 0, 0]).start;
                built.free.extend((start + 4..start + 8).map(|at| (at, 0xff)));
                0
            }
            // Destination options that may not change.
            2 => drop_range(built.put(&[number, 0, 0x1e, 4, 1, 2, 3, 4]), 60),
            3 => {
                let start = built.put(&[number, 2, 4, 1, 0, 0, 0, 0]).start;
                built.put(&[7; 16]);
                built.free.push((start + 3, 0xff));
                43
            }
            // The first fragment of several.
            4 => drop_range(built.put(&[number, 0, 0, 1, 1, 2, 3, 4]), 44),
            5 => drop_range(built.put(&[number, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 7, 1, 2, 3, 4]), 51),
            _ => number,
        };
        if is_quoted {
            built.free.clear();
        } else if first == 44 {
            // Reserved bits: nobody's.
            built.free.push((1, 0xff));
            built.free.push((3, 0x06));
            // The identification, where fragments are put together and sent on.
            built.free.extend((4..8).map(|at| (at, 0xff)));
        }
        (first, built)
    }

    /// With ports at the ends; `is_outer` unless it is in an ICMP error.
    fn transport(&self, to: &mut Built, transport: usize, at: &mut usize, is_outer: bool) {
        let ends = |to: &mut Built, bytes: &[u8]| match is_outer {
            true => {
                to.source(&bytes[..2]);
                to.destination(&bytes[2..4]);
            }
            false => to.free(&bytes[..4]),
        };
        match transport {
            TCP => {
                ends(to, self.take(at, 4));
                to.put(self.take(at, 8));
                to.put(&[0x70, 0x18, 1, 2]);
                to.free(self.take(at, 2));
                to.put(&[0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
            }
            UDP => {
                ends(to, self.take(at, 4));
                to.put(&[0, 20]);
                to.free(self.take(at, 2));
            }
            SCTP => {
                ends(to, self.take(at, 4));
                to.put(self.take(at, 4));
                to.free(self.take(at, 4));
            }
            GRE => drop(to.put(&[0, 0, 8, 0])),
            ECHO | ANSWER => {
                let kinds = if self.is_v6 { [128, 129] } else { [8, 0] };
                to.put(&[kinds[usize::from(transport == ANSWER)], 0]);
                to.free(self.take(at, 2));
                match (is_outer, transport) {
                    (false, _) => to.free(self.take(at, 2)),
                    (true, ECHO) => to.source(self.take(at, 2)),
                    (true, _) => to.destination(self.take(at, 2)),
                }
                to.put(self.take(at, 2));
            }
            _ => {
                to.put(&[if self.is_v6 { 1 } else { 3 }, 1]);
                to.free(self.take(at, 2));
                to.put(self.take(at, 4));
                let inner = number(self.is_v6, self.inner);
                self.network(to, inner, at, 30, true);
                self.transport(to, self.inner, at, false);
            }
        }
        to.put(self.take(at, 7));
    }
}

fn drop_range(_: std::ops::Range<usize>, kind: u8) -> u8 {
    kind
}

fn key_by(fingerprinter: Fingerprinter, data: &[u8]) -> Key {
    let headers = Headers::parse(data);
    fingerprinter.key(&headers, data)
}

fn key(data: &[u8]) -> Key {
    key_by(Fingerprinter::new(99), data)
}

const SOURCE: Translated = Translated { source: true, destination: false };
const DESTINATION: Translated = Translated { source: false, destination: true };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn what_a_host_changes_leaves_the_key(recipe in recipe(), noise in any::<[u8; 32]>(), tag in 0..3usize) {
        let built = recipe.build();
        let original = key(&built.data);
        let mut changed = built.data.clone();
        for (index, (at, mask)) in built.free.iter().enumerate() {
            changed[*at] ^= noise[index % 32] & mask;
        }
        let mut framed = changed.clone();
        for _ in 0..tag {
            framed.splice(12..12, [0x81, 0, 0, noise[0]]);
        }
        // Padding of short frames; a jumbogram's length would not tell it from payload.
        framed.extend([noise[1]; 5]);
        prop_assert_eq!(key(&framed), original);

        for (places, ignored) in [(&built.source, SOURCE), (&built.destination, DESTINATION)] {
            let mut translated = changed.clone();
            for (index, at) in places.iter().enumerate() {
                translated[*at] = translated[*at].wrapping_add(noise[index % 32] | 1);
            }
            let Translated { source, destination } = ignored;
            let plain = key(&translated);
            let translated = plain.marked(Marks { source, destination });
            prop_assert_eq!(translated.hash(), original.hash());
            prop_assert_ne!(translated, original);
            prop_assert!(original.id(0).twin_ends(translated, ignored).is_some());
            // Nine bits may agree by chance, or twenty, but not both.
            prop_assert!(plain.id(0) != original.id(0) || plain.exact() != original.exact());
        }
    }

    #[test]
    fn any_other_byte_gives_another_hash(recipe in recipe(), bit in 0..8u32) {
        let built = recipe.build();
        let original = key(&built.data);
        for at in 14..built.data.len() {
            let flips = built.constant(at) & (1 << ((bit + u32::try_from(at).unwrap()) % 8));
            if flips == 0 {
                continue;
            }
            let mut changed = built.data.clone();
            changed[at] ^= flips;
            prop_assert_ne!(key(&changed).hash(), original.hash(), "byte {} of {:x?}", at, &built.data);
        }
    }

    #[test]
    fn the_dscp_counts_unless_it_is_ignored(recipe in recipe(), dscp in 1..64u8) {
        let built = recipe.build();
        let mut changed = built.data.clone();
        if recipe.is_v6 {
            changed[14] ^= dscp >> 2;
            changed[15] ^= dscp << 6;
        } else {
            changed[15] ^= dscp << 2;
        }
        prop_assert_ne!(key(&changed).hash(), key(&built.data).hash());
        let ignoring = Fingerprinter::new(99).ignoring_dscp(true);
        prop_assert_eq!(key_by(ignoring, &changed), key_by(ignoring, &built.data));
    }
}

/// Source addresses and ports that are like each other, as pods' are.
fn ends() -> impl Iterator<Item = (Vec<u8>, u16)> {
    let v4 = (0..4000u16).map(|n| {
        let [high, low] = n.to_be_bytes();
        (vec![10, 0, high, low], 40_000 + n % 7)
    });
    let v6 = (0..4000u16).map(|n| {
        let mut address = vec![0xfd, 0, 0, 0, 0, 0];
        address.extend((n / 64).to_be_bytes());
        address.extend([0; 6]);
        address.extend((n % 64).to_be_bytes());
        (address, 40_000 + n % 7)
    });
    v4.chain(v6)
}

/// Pods that send the same to one server are told apart: in 9 bits each, and in 20 more.
#[test]
fn ends_that_are_alike_have_different_fingerprints() {
    for len in [4, 16] {
        let mut keys: Vec<Key> = Vec::new();
        for (address, port) in ends().filter(|(address, _)| address.len() == len) {
            let mut data = vec![0; 12];
            if len == 4 {
                data.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0]);
                data.extend(&address);
                data.extend([10, 9, 9, 9]);
            } else {
                data.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64]);
                data.extend(&address);
                data.extend([0xfe; 16]);
            }
            data.extend(port.to_be_bytes());
            data.extend([0, 53, 0, 8, 0, 0]);
            keys.push(key(&data));
        }
        let pairs = keys.len() * (keys.len() - 1) / 2;
        assert!(keys.iter().all(|key| key.hash() == keys[0].hash()));
        let equal = |bits: &dyn Fn(Key) -> u64| {
            let mut bits: Vec<u64> = keys.iter().map(|key| bits(*key)).collect();
            bits.sort_unstable();
            let groups = bits.chunk_by(|a, b| a == b).map(<[u64]>::len);
            groups.map(|len| len * (len - 1) / 2).sum::<usize>()
        };
        let (source, both) = (equal(&|key| key.id(0).0), equal(&|key| key.exact()));
        let together = equal(&|key| key.exact() << 40 | key.id(0).0 & 0xf_ffff);
        eprintln!(
            "{len}: of {pairs} pairs {source} agree in 9 bits, {both} in 20, {together} in 29"
        );
        assert!(source < pairs / 512 * 5 / 4, "{source} of {pairs}");
        assert!(both < 40, "{both} of {pairs}: 8 are to be expected");
        assert!(together <= 1, "{together} of {pairs}");
    }
}
