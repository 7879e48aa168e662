//! Writes a first corpus: `seeds DIRECTORY` makes DIRECTORY/TARGET/NAME.
//!
//! ```text
//! messages, datagrams, files, frames as they should be --> seeds; libFuzzer makes the others
//! ```

use std::{fs, io, path::Path};

fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&[0, kind, 0, 0][..], &len, payload].concat()
}

const RET_ALL: [u8; 8] = [0, 6, 0, 0, 0, 4, 0, 0];
const AUTH_REPLY: [u8; 8] = [0, 0, 0, 0, 0xd4, 0xc3, 0xb2, 0xa1];

fn filter(instructions: &[[u8; 8]]) -> Vec<u8> {
    let count = u32::try_from(instructions.len()).unwrap_or(0).to_be_bytes();
    [&[0, 1, 0, 0][..], &count, &instructions.concat()].concat()
}

fn startcap() -> Vec<u8> {
    message(
        4,
        &[&[0, 0, 0xff, 0xff, 0, 0, 0, 250, 0, 2, 15, 160][..], &filter(&[RET_ALL])].concat(),
    )
}

/// A packet header and its frame.
fn packet(number: u8, frame: &[u8]) -> Vec<u8> {
    let len = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
    [&[0, 0, 0, 1, 0, 0, 0, 2][..], &len, &len, &[0, 0, 0, number], frame].concat()
}

fn ethernet(kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
    [&[2; 6][..], &[4; 6], &kind, rest].concat()
}

/// IPv4 or IPv6 with this protocol and payload.
fn ip(version: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = |more: usize| u16::try_from(payload.len() + more).unwrap_or(0).to_be_bytes();
    if version == 4 {
        let [a, b] = len(20);
        let head = [0x45, 0, a, b, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ethernet([8, 0], &[&head[..], payload].concat())
    } else {
        let [a, b] = len(0);
        let head = [&[0x60, 0, 0, 0, a, b, protocol, 64][..], &[0xfd; 16], &[0xfe; 16]].concat();
        ethernet([0x86, 0xdd], &[&head[..], payload].concat())
    }
}

fn tcp(payload: usize) -> Vec<u8> {
    let mut bytes =
        vec![0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0];
    bytes.resize(20 + payload, 7);
    bytes
}

fn udp(payload: usize) -> Vec<u8> {
    let [a, b] = u16::try_from(8 + payload).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![0x9c, 0x40, 0x1f, 0x90, a, b, 0, 0];
    bytes.resize(8 + payload, 7);
    bytes
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let tagged = ethernet([0x81, 0], &[&[0, 9][..], &ip(4, 17, &udp(10))[12..]].concat());
    let mut fragment = ip(4, 17, &udp(30));
    fragment[20] = 0x20;
    let mut routed = vec![6, 0, 1, 4, 0, 0, 0, 0];
    routed.extend(tcp(5));
    let mut vxlan = udp(8);
    vxlan[2..4].copy_from_slice(&4789_u16.to_be_bytes());
    vxlan.extend(ip(4, 6, &tcp(3)));
    vec![
        ("runt", vec![1; 10]),
        ("arp", ethernet([8, 6], &[0; 28])),
        ("tcp4", ip(4, 6, &tcp(40))),
        ("tcp6", ip(6, 6, &tcp(40))),
        ("udp4", ip(4, 17, &udp(20))),
        ("udp6", ip(6, 17, &udp(20))),
        ("icmp4", ip(4, 1, &[8, 0, 0, 0, 0, 1, 0, 1])),
        ("ipip", ip(4, 4, &ip(4, 17, &udp(4))[14..])),
        ("v6_extension", ip(6, 0, &routed)),
        ("v6_fragment", ip(6, 44, &[&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp(8)].concat())),
        ("fragment", fragment),
        ("vlan", tagged),
        ("vxlan", ip(4, 17, &vxlan)),
    ]
}

fn conversation() -> Vec<u8> {
    [
        message(8, &[0; 8]),
        message(2, &[]),
        message(3, b"any-eth"),
        message(11, &[1, 0, 0, 0, 0, 0, 0, 5]),
        startcap(),
        message(9, &[]),
        message(5, &filter(&[RET_ALL])),
        message(10, &[]),
        message(6, &[]),
    ]
    .concat()
}

fn daemon() -> Vec<u8> {
    let interface =
        [&[0, 4, 0, 12, 0, 0, 0, 0x16, 0, 0, 0, 0][..], b"eth0", b";preselected"].concat();
    let mut list = message(0x82, &interface);
    list[3] = 1;
    [
        message(0x88, &AUTH_REPLY),
        list,
        message(0x83, &[0, 0, 0, 1, 0, 0, 0, 0]),
        message(0x84, &[1, 0, 0, 0, 0, 0, 0, 0]),
        message(0x89, &[0; 16]),
        message(0x8a, &[]),
    ]
    .concat()
}

fn stream() -> Vec<u8> {
    let mut bytes = vec![0xff, 0xff];
    let all = [packet(1, &[1; 60]), packet(2, &[2; 90]), packet(3, &[3; 14])].concat();
    let cuts = [(0, 70, 8_u16), (70, 190, 18), (190, all.len(), 8)];
    for (sequence, (from, to, first)) in (0_u8..).zip(cuts) {
        bytes.push(u8::try_from(8 + to - from).unwrap_or(0));
        bytes.extend([0, 110]);
        bytes.extend(first.to_be_bytes());
        bytes.extend([0, 0, 0, sequence]);
        bytes.extend(&all[from..to]);
    }
    bytes.push(0);
    bytes
}

fn pcap(magic: [u8; 4], link: u8) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend([0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, link]);
    for (_, frame) in frames() {
        let len = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        bytes.extend([&[0, 0, 0, 1, 0, 0, 0, 2][..], &len, &len, &frame].concat());
    }
    bytes
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    let len = u32::try_from(12 + body.len()).unwrap_or(0).to_be_bytes();
    [&kind.to_be_bytes()[..], &len, &body, &len].concat()
}

fn pcapng(link: u8) -> Vec<u8> {
    let mut section = 0x1a2b_3c4d_u32.to_be_bytes().to_vec();
    section.extend([0, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    // if_tsresol: nanoseconds.
    let interface = [0, link, 0, 0, 0, 0, 255, 255, 0, 9, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0];
    let mut bytes = [block(0x0a0d_0d0a, &section), block(1, &interface)].concat();
    for (_, frame) in frames() {
        let len = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        let head = [&[0; 12][..], &len, &len].concat();
        bytes.extend(block(6, &[&head[..], &frame].concat()));
        bytes.extend(block(3, &[&len[..], &frame].concat()));
    }
    bytes
}

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args().nth(1) else {
        return Err(io::Error::other("usage: seeds DIRECTORY"));
    };
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let directory = Path::new(&directory).join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), bytes)
    };
    for how in [0_u8, 6, 0x7f, 0x83, 0x46] {
        let with = |bytes: &[u8]| [&[how], bytes].concat();
        write("control", &format!("conversation-{how}"), &with(&conversation()))?;
        write("sensor_control", &format!("daemon-{how}"), &with(&daemon()))?;
        let messages =
            [message(7, &packet(1, &[5; 60])), message(7, &packet(2, &[6; 99]))].concat();
        write("sensor_tcp", &format!("two-{how}"), &[&[how, 0xff, 0xff][..], &messages].concat())?;
    }
    // A STARTCAP that forgets its instruction, a password, TLS.
    let mut malformed = startcap();
    malformed[7] = 20;
    let odd = [message(8, &[0; 8]), message(3, b"eth0"), malformed, message(9, &[])].concat();
    write("control", "malformed-startcap", &[&[3], &odd[..]].concat())?;
    write("control", "password", &[&[0], &message(8, b"\0\x01\0\0\0\x01\0\x01up")[..]].concat())?;
    write("control", "tls", &[0, 0x16, 3, 1, 2, 0])?;
    let plain = [&[0xff, 0xff][..], &message(7, &packet(1, &[5; 60]))].concat();
    write("sensor_datagram", "one", &plain)?;
    write("sensor_stream", "three", &stream())?;
    for (name, magic) in [("us", [0xa1, 0xb2, 0xc3, 0xd4]), ("ns", [0xa1, 0xb2, 0x3c, 0x4d])] {
        for link in [0, 1, 12, 101, 113] {
            write("capture_file", &format!("pcap-{name}-{link}"), &pcap(magic, link))?;
        }
    }
    for link in [1, 101, 113] {
        write("capture_file", &format!("pcapng-{link}"), &pcapng(link))?;
    }
    // ldh [12]; jeq #0x800; ret; ret, and each ancillary load.
    let arp = [
        [0, 0x28, 0, 0, 0, 0, 0, 12],
        [0, 0x15, 0, 1, 0, 0, 8, 0],
        RET_ALL,
        [0, 6, 0, 0, 0, 0, 0, 0],
    ];
    for (name, frame) in frames() {
        write("bpf", name, &[&[4][..], &arp.concat(), &frame].concat())?;
        for gso_type in [0_u8, 1, 4, 5] {
            let how = [gso_type, 0, if gso_type == 0 { 0 } else { 9 }, 34, 6, gso_type & 1, 1, 0];
            write("frame", &format!("{name}-{gso_type}"), &[&how[..], &frame].concat())?;
            let how = [gso_type, 0, 9, 0, how[3], 16, 0, 7];
            write("segment", &format!("{name}-{gso_type}"), &[&how[..], &frame].concat())?;
        }
    }
    let ini = b"# tap\nActiveClient = 10.0.0.9,2003,ifname=eth1\r\nActiveClient=fd00::1 , DEFAULT\n\
        PassiveClient = 10.0.0.0/8;host\nNullAuthPermit = YES\nElse = 1";
    write("rpcapd_ini", "each-key", ini)?;
    for offset in (0..64_u8).step_by(4) {
        let load = [0, 0x20, 0, 0, 0xff, 0xff, 0xf0, offset];
        let program = [load, [0, 0x16, 0, 0, 0, 0, 0, 0]].concat();
        write("bpf", &format!("ancillary-{offset}"), &[&[2][..], &program, &[9; 60]].concat())?;
    }
    Ok(())
}
