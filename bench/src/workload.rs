//! Workloads: frames made here, the same for every run.
//!
//! ```text
//! Workload::frames(n) -> OwnedFrame ... -> MemorySource -> what is measured
//! ```

use std::net::Ipv4Addr;

use engine::frame::{Direction, Offload, Point};
use engine::source::memory::OwnedFrame;

/// What the frames look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Name on the command line and in reports.
    pub name: &'static str,
    /// Bytes of a frame, link header included.
    pub frame_bytes: usize,
    /// How many points see each packet, one after the other.
    pub copies: u32,
}

/// All of them.
pub const WORKLOADS: [Workload; 3] = [
    Workload { name: "new-64", frame_bytes: 64, copies: 1 },
    Workload { name: "new-1500", frame_bytes: 1500, copies: 1 },
    Workload { name: "copies-64", frame_bytes: 64, copies: 4 },
];

impl Workload {
    /// `packets` TCP packets of 64 flows, each seen at `copies` points in turn.
    #[must_use]
    pub fn frames(&self, packets: u32) -> Vec<OwnedFrame> {
        let mut frames = Vec::new();
        for number in 0..packets {
            let data = tcp(number, self.frame_bytes);
            for ifindex in 1..=self.copies {
                frames.push(OwnedFrame {
                    wire_len: u32::try_from(data.len()).unwrap_or(u32::MAX),
                    data: data.clone(),
                    timestamp_ns: 1_700_000_000_000_000_000 + u64::from(number) * 1000,
                    point: Point { ifindex, direction: Direction::In },
                    vlan: None,
                    offload: Offload::default(),
                });
            }
        }
        frames
    }
}

fn tcp(number: u32, frame_bytes: usize) -> Vec<u8> {
    let mut data = vec![2; 12];
    let total = u16::try_from(frame_bytes - 14).unwrap_or(u16::MAX).to_be_bytes();
    let [_, _, id_high, id_low] = number.to_be_bytes();
    data.extend([8, 0, 0x45, 0, total[0], total[1], id_high, id_low, 0x40, 0, 64, 6, 0, 0]);
    data.extend(Ipv4Addr::from(0x0a00_0165 + number % 8).octets());
    data.extend(Ipv4Addr::from(0x0a00_0265 + number / 8 % 8).octets());
    data.extend([0x9c, 0x40, 0x1f, 0x90]);
    data.extend(number.to_be_bytes());
    data.extend([0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    data.resize(frame_bytes, 7);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_large_and_as_many_as_said() {
        for workload in WORKLOADS {
            let frames = workload.frames(10);
            assert_eq!(frames.len(), 10 * usize::try_from(workload.copies).unwrap());
            assert!(frames.iter().all(|frame| frame.data.len() == workload.frame_bytes));
        }
    }
}
