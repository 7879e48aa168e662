//! Workloads: frames made here, the same for every run.
//!
//! ```text
//! Workload::frames(n) -> OwnedFrame ... -> MemorySource -> what is measured
//! ```

use std::net::Ipv4Addr;

use engine::frame::{Direction, Offload, Point};
use engine::source::memory::OwnedFrame;

/// Sizes of frames, bytes, in the proportions of a mix that is common in tests (64:7, 594:4, 1518:1).
pub const MIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 594, 64, 64, 594, 64, 1518];
/// Payload bytes of a super-frame's segments.
const SEGMENT: u16 = 1448;
/// Packets that a super-frame stands for.
const SEGMENTS: u32 = 40;

/// What frames look like, all TCP; sizes are in bytes, link header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// IPv4, of this size.
    V4(usize),
    /// IPv6, of this size.
    V6(usize),
    /// IPv4, of the sizes of [`MIX`].
    Mix,
    /// Super-frames of IPv4, each 40 packets of 1448 bytes of payload.
    Super,
}

/// Packets, and how often each is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Name on the command line and in reports.
    pub name: &'static str,
    /// See there.
    pub shape: Shape,
    /// How many points see each packet, one after the other.
    pub copies: u32,
}

const fn new(name: &'static str, shape: Shape) -> Workload {
    Workload { name, shape, copies: 1 }
}

/// All of them. An IPv6 packet has the payload of the 64 B one.
pub const WORKLOADS: [Workload; 6] = [
    new("new-64", Shape::V4(64)),
    new("new-1500", Shape::V4(1500)),
    Workload { name: "copies-64", shape: Shape::V4(64), copies: 4 },
    new("mix", Shape::Mix),
    new("new-ipv6", Shape::V6(84)),
    new("super", Shape::Super),
];

impl Workload {
    /// The workload of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        WORKLOADS.into_iter().find(|workload| workload.name == name)
    }

    /// `packets` TCP packets of 64 flows, each seen at `copies` points in turn.
    #[must_use]
    pub fn frames(&self, packets: u32) -> Vec<OwnedFrame> {
        let mut frames = Vec::new();
        let step = if self.shape == Shape::Super { SEGMENTS } else { 1 };
        for number in (0..packets).step_by(step as usize) {
            let mut offload = Offload::default();
            let data = match self.shape {
                Shape::V4(size) => v4(number, number, size),
                Shape::V6(size) => v6(number, size),
                Shape::Mix => v4(number, number, MIX[number as usize % MIX.len()]),
                Shape::Super => {
                    let segments = SEGMENTS.min(packets - number) as usize;
                    let sequence = number * u32::from(SEGMENT);
                    // `VIRTIO_NET_HDR_GSO_TCPV4`.
                    offload = Offload {
                        partial_checksum: Some((34, 16)),
                        gso_size: SEGMENT,
                        gso_type: 1,
                    };
                    v4(number, sequence, 14 + 20 + 20 + segments * usize::from(SEGMENT))
                }
            };
            for ifindex in 1..=self.copies {
                frames.push(OwnedFrame {
                    wire_len: u32::try_from(data.len()).unwrap_or(u32::MAX),
                    data: data.clone(),
                    timestamp_ns: 1_700_000_000_000_000_000 + u64::from(number) * 1000,
                    point: Point { ifindex, direction: Direction::In },
                    vlan: None,
                    offload,
                });
            }
        }
        frames
    }
}

/// Addresses of the ends of a packet's flow.
fn ends(number: u32) -> [u32; 2] {
    [0x0a00_0165 + number % 8, 0x0a00_0265 + number / 8 % 8]
}

fn v4(number: u32, sequence: u32, frame_bytes: usize) -> Vec<u8> {
    let mut data = vec![2; 12];
    let total = u16::try_from(frame_bytes - 14).unwrap_or(u16::MAX).to_be_bytes();
    let [_, _, id_high, id_low] = number.to_be_bytes();
    data.extend([8, 0, 0x45, 0, total[0], total[1], id_high, id_low, 0x40, 0, 64, 6, 0, 0]);
    for end in ends(number) {
        data.extend(Ipv4Addr::from(end).octets());
    }
    tcp(data, sequence, frame_bytes)
}

fn v6(number: u32, frame_bytes: usize) -> Vec<u8> {
    let mut data = vec![2; 12];
    let len = u16::try_from(frame_bytes - 14 - 40).unwrap_or(u16::MAX).to_be_bytes();
    data.extend([0x86, 0xdd, 0x60, 0, 0, 0, len[0], len[1], 6, 64]);
    for end in ends(number) {
        data.extend((0xfd << 120 | u128::from(end)).to_be_bytes());
    }
    tcp(data, number, frame_bytes)
}

/// The rest of a frame.
fn tcp(mut data: Vec<u8>, sequence: u32, frame_bytes: usize) -> Vec<u8> {
    data.extend([0x9c, 0x40, 0x1f, 0x90]);
    data.extend(sequence.to_be_bytes());
    data.extend([0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    data.resize(frame_bytes, 7);
    data
}

#[cfg(test)]
mod tests {
    use engine::wire::{Headers, Network, protocol};

    use super::*;

    #[test]
    fn frames_are_what_is_said() {
        for workload in WORKLOADS {
            let frames = workload.frames(120);
            let packets: usize = if workload.shape == Shape::Super { 3 } else { 120 };
            assert_eq!(frames.len(), packets * usize::try_from(workload.copies).unwrap());
            for frame in &frames {
                let headers = Headers::parse(&frame.data);
                assert_eq!((headers.protocol, headers.end), (protocol::TCP, frame.data.len()));
                assert!(headers.ports.is_some(), "{}", workload.name);
                let is_v6 = matches!(workload.shape, Shape::V6(_));
                assert_eq!(headers.network == Network::V6, is_v6, "{}", workload.name);
            }
        }
    }

    #[test]
    fn the_mix_has_its_proportions() {
        let frames = Workload::named("mix").unwrap().frames(1200);
        let of = |size| frames.iter().filter(|frame| frame.data.len() == size).count();
        assert_eq!([of(64), of(594), of(1518)], [700, 400, 100]);
    }

    #[test]
    fn only_known_names_are_workloads() {
        assert_eq!(Workload::named("new-64"), Some(WORKLOADS[0]));
        assert_eq!(Workload::named("new"), None);
    }
}
