//! Filters as users write them: what libpcap compiles must match the frames that it should.
//!
//! Needs `tcpdump` to compile; says so and skips without it.

use std::process::Command;

use crate::bpf::Program;
use crate::frame::{Direction, Frame, Offload, Point, VlanTag};
use crate::rpcap::BpfInsn;

/// What `tcpdump` prints for an Ethernet filter; `None` where there is no `tcpdump`.
fn tcpdump(format: &str, expression: &str) -> Option<String> {
    let output = match Command::new("tcpdump").args(["-y", "EN10MB", format, expression]).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: no tcpdump to compile filters with: {error}");
            return None;
        }
    };
    assert!(output.status.success(), "{expression}: {output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

fn compile(expression: &str) -> Option<Program> {
    let text = tcpdump("-ddd", expression)?;
    let mut lines = text.lines().map(|line| {
        line.split(' ').map(|number| number.parse::<u32>().unwrap()).collect::<Vec<_>>()
    });
    let count = lines.next().unwrap()[0];
    let program: Vec<_> = lines
        .map(|fields| BpfInsn {
            code: fields[0].try_into().unwrap(),
            jt: fields[1].try_into().unwrap(),
            jf: fields[2].try_into().unwrap(),
            k: fields[3],
        })
        .collect();
    assert_eq!(program.len(), count as usize);
    Some(Program::new(&program).unwrap())
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let addresses = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    [&addresses, &ethertype.to_be_bytes()[..], payload].concat()
}

/// From 10.1.2.3 to 10.9.8.7, with four bytes of options.
fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header =
        [0x46, 0, 0, 80, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 1, 2, 3, 10, 9, 8, 7, 1, 1, 1, 1];
    ethernet(0x0800, &[&header, payload].concat())
}

/// From fd00::1 to fd00::2.
fn ipv6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 40];
    header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 20, protocol, 64]);
    (header[8], header[23], header[24], header[39]) = (0xfd, 1, 0xfd, 2);
    ethernet(0x86dd, &[&header, payload].concat())
}

/// From port 40000 to port 443.
fn tcp(flags: u8) -> Vec<u8> {
    vec![0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]
}

/// From port 40000 to port 53.
fn udp() -> Vec<u8> {
    vec![0x9c, 0x40, 0x00, 0x35, 0, 12, 0, 0, 1, 2, 3, 4]
}

const NAMES: [&str; 7] = ["syn", "ack", "dns", "dns6", "arp", "tagged", "out"];

fn matching(program: &Program) -> Vec<&'static str> {
    let mut tagged = ipv4(6, &tcp(0x10));
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    let frames = [
        ipv4(6, &tcp(0x02)),
        ipv4(6, &tcp(0x10)),
        ipv4(17, &udp()),
        ipv6(17, &udp()),
        ethernet(0x0806, &[0; 28]),
        tagged,
        ipv4(6, &tcp(0x10)),
    ];
    let matches = |(name, data): &(&str, Vec<u8>)| {
        let direction = if *name == "out" { Direction::Out } else { Direction::In };
        let frame = Frame {
            data,
            wire_len: u32::try_from(data.len()).unwrap(),
            timestamp_ns: 0,
            point: Point { ifindex: 1, direction },
            vlan: None,
            offload: Offload::default(),
        };
        let accepted = program.run(&frame);
        assert!([0, 0x4_0000].contains(&accepted));
        accepted > 0
    };
    NAMES.into_iter().zip(frames).filter(matches).map(|(name, _)| name).collect()
}

const EXPRESSIONS: [(&str, &[&str]); 24] = [
    ("", &["syn", "ack", "dns", "dns6", "arp", "tagged", "out"]),
    ("ip", &["syn", "ack", "dns", "out"]),
    ("ip6", &["dns6"]),
    ("arp", &["arp"]),
    ("tcp", &["syn", "ack", "out"]),
    ("udp", &["dns", "dns6"]),
    ("not udp", &["syn", "ack", "arp", "tagged", "out"]),
    ("host 10.1.2.3", &["syn", "ack", "dns", "out"]),
    ("src host 10.9.8.7", &[]),
    ("dst host fd00::2", &["dns6"]),
    ("net 10.9.0.0/16", &["syn", "ack", "dns", "out"]),
    ("src net 10.0.0.0/15 and not dst net 10.0.0.0/13", &["syn", "ack", "dns", "out"]),
    ("net fd00::/8", &["dns6"]),
    ("port 53", &["dns", "dns6"]),
    ("src port 53", &[]),
    ("tcp portrange 400-500", &["syn", "ack", "out"]),
    ("ip and dst port 443", &["syn", "ack", "out"]),
    ("tcp[tcpflags] & tcp-syn != 0", &["syn"]),
    ("tcp[tcpflags] = tcp-ack", &["ack", "out"]),
    ("ip[0] & 0xf = 6 and udp[8:4] = 0x01020304", &["dns"]),
    ("vlan 5 and tcp", &["tagged"]),
    ("inbound", &["syn", "ack", "dns", "dns6", "arp", "tagged"]),
    ("outbound and tcp", &["out"]),
    ("less 52", &["dns", "arp"]),
];

#[test]
fn libpcaps_programs_match_what_their_expressions_say() {
    for (expression, expected) in EXPRESSIONS {
        let Some(program) = compile(expression) else { return };
        assert_eq!(matching(&program), expected, "{expression}:\n{program}");
    }
}

#[test]
fn a_program_reads_as_tcpdump_prints_it() {
    let arithmetic = "ip[2:2] * 2 + tcp[4:4] / 3 - udp[0] > (len | 3) << 2 ^ 5";
    let expressions = EXPRESSIONS.iter().map(|(expression, _)| *expression);
    for expression in expressions.chain([arithmetic]) {
        // Facts beside the frame have no agreed names: libpcap writes `ldh [type]`.
        if expression.contains("bound") {
            continue;
        }
        let Some(theirs) = tcpdump("-d", expression) else { return };
        let theirs: Vec<_> = theirs.lines().map(str::trim_end).collect();
        let ours = compile(expression).unwrap().to_string();
        assert_eq!(ours.lines().collect::<Vec<_>>(), theirs, "{expression}");
    }
}

/// `data`, its tag moved out of it by the kernel.
fn beside(data: &[u8], tci: u16) -> Frame<'_> {
    Frame {
        data,
        wire_len: u32::try_from(data.len()).unwrap(),
        timestamp_ns: 0,
        point: Point { ifindex: 1, direction: Direction::In },
        vlan: Some(VlanTag { tpid: 0x8100, tci }),
        offload: Offload::default(),
    }
}

#[test]
fn a_tag_that_was_moved_out_of_the_frame_is_where_it_was_on_the_wire() {
    let data = ipv4(6, &tcp(0x10));
    let frame = beside(&data, 5);
    let wire = frame.wire(usize::MAX).to_vec();
    let delivered = Frame { data: &wire, wire_len: frame.wire_len + 4, vlan: None, ..frame };
    for (expression, expected) in [
        ("vlan 5 and ip", true),
        ("vlan 5 and tcp port 443", true),
        ("vlan and src host 10.1.2.3", true),
        ("vlan 6 and ip", false),
        ("ip", false),
        ("tcp port 443", false),
        ("not ip", true),
        ("ether src 02:00:00:00:00:02", true),
        ("greater 62", true),
        ("greater 63", false),
    ] {
        let Some(program) = compile(expression) else { return };
        assert_eq!(program.run(&frame) != 0, expected, "{expression}");
        assert_eq!(program.run(&delivered), program.run(&frame), "{expression}, as delivered");
    }
    let Some(vlan) = compile("vlan 5") else { return };
    assert_eq!(vlan.run_in_kernel(&frame), 0, "the kernel does not see the tag in the bytes");
}

#[test]
fn of_two_tags_the_outer_one_comes_first() {
    // The kernel moves one tag out: the inner one stays in the bytes.
    let inner = ethernet(0x8100, &[&[0, 7], &ipv4(6, &tcp(0x10))[12..]].concat());
    let mut frame = beside(&inner, 100);
    frame.vlan = Some(VlanTag { tpid: 0x88a8, tci: 100 });
    for (expression, expected) in [
        ("vlan 100 and vlan 7 and tcp port 443", true),
        ("vlan 100 and vlan 8", false),
        ("vlan 7", false),
        ("vlan 100", true),
        ("vlan 100 and ip", false),
    ] {
        let Some(program) = compile(expression) else { return };
        assert_eq!(program.run(&frame) != 0, expected, "{expression}");
    }
}
