//! A frame as the packets that it stands for on a wire: super-frames cut, checksums completed.

use crate::compare::{packet::Packet as Seen, segments};

use super::identity::Identity;
use super::packet::low16;
use super::rule::Sighting;
use crate::compare::checksum;

/// The wire's frames, with their tag out of them.
#[must_use]
pub fn packets(sighting: &Sighting) -> Vec<Vec<u8>> {
    let data = &sighting.data;
    let layout = Identity::layout(data).filter(|_| sighting.gso_size != 0);
    let Some(layout) = layout else { return vec![data.clone()] };
    let size = usize::from(sighting.gso_size);
    let link = &data[..layout.l3];
    let ethertype = if data[layout.l3] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let whole = Seen::parse(ethertype, data[layout.l3..layout.end].to_vec(), false);
    if layout.protocol == 6 {
        return segments::cut(whole, layout.payload - layout.l3 + size)
            .iter()
            .map(|packet| [link, packet.data()].concat())
            .collect();
    }
    let head = &data[layout.l3..layout.payload];
    data[layout.payload..layout.end]
        .chunks(size)
        .enumerate()
        .map(|(at, chunk)| {
            let mut ip = [head, chunk].concat();
            let l4 = layout.l4 - layout.l3;
            let end = ip.len();
            if ethertype == 0x0800 {
                ip[2..4].copy_from_slice(&low16(end).to_be_bytes());
                let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(low16(at));
                ip[4..6].copy_from_slice(&id.to_be_bytes());
                checksum::set_ipv4(&mut ip, l4);
            } else {
                ip[4..6].copy_from_slice(&low16(end - 40).to_be_bytes());
            }
            ip[l4 + 4..l4 + 6].copy_from_slice(&low16(end - l4).to_be_bytes());
            ip[l4 + 6..l4 + 8].fill(0);
            let addresses = if ethertype == 0x0800 { 12..20 } else { 8..40 };
            let sum = checksum::l4(&ip[addresses], 17, &ip[l4..]);
            ip[l4 + 6..l4 + 8].copy_from_slice(&sum);
            [link, &ip].concat()
        })
        .collect()
}
