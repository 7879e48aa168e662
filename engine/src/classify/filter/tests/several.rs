//! Several sensors' filters in one program: none may cost another its frames.

use super::*;
use crate::bpf::Alu;
use crate::bpf::{Assembler, Condition, Operand, Size, Target};

fn arrived(data: Vec<u8>) -> OwnedFrame {
    let wire_len = u32::try_from(data.len()).unwrap();
    let point = Point { ifindex: POD, direction: Direction::In };
    OwnedFrame { data, wire_len, timestamp_ns: 0, point, vlan: None, offload: Offload::default() }
}

fn one_load(size: Size, at: u32, k: u32) -> Program {
    let mut asm = Assembler::new();
    let accept = asm.label();
    asm.load(size, at);
    asm.branch(Condition::Equal, k, accept, Target::Next);
    asm.ret(0);
    asm.bind(accept);
    asm.ret(96);
    asm.finish().unwrap()
}

#[test]
fn a_load_past_the_end_costs_the_other_sensor_nothing() {
    let mut data = vec![2u8; 60];
    data[12..14].copy_from_slice(&[0x88, 0xcc]);
    let lldp = one_load(Size::Half, 12, 0x88cc);
    let far = one_load(Size::Byte, 100, 1);
    check(&node(false, Election::Source), &[far, lldp], &[arrived(data)]);
}

#[test]
fn a_frame_shorter_than_its_ipv6_header_says_costs_the_other_sensor_nothing() {
    let mut data = vec![2u8; 60];
    data[12..14].copy_from_slice(&[0x86, 0xdd]);
    data[14..24].copy_from_slice(&[0x60, 0, 0, 0, 0, 40, 6, 64, 0x20, 1]);
    let (Some(ip6), Some(far)) = (
        compiled("ip6 dst net 0202::/16", true),
        compiled("ip6 and tcp and ip6[53] & 2 != 0", true),
    ) else {
        return;
    };
    check(&node(false, Election::Source), &[far, ip6], &[arrived(data)]);
}

#[test]
fn a_division_by_zero_costs_the_other_sensor_nothing() {
    let mut data = vec![0u8; 60];
    data[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    data[17] = 46;
    data[23] = 17;
    data[26..34].copy_from_slice(&[10, 0, 1, 101, 8, 8, 8, 8]);
    let mut asm = Assembler::new();
    asm.load(Size::Byte, 20);
    asm.tax();
    asm.load_immediate(1);
    asm.alu(Alu::Div, Operand::X);
    asm.ret_a();
    let divide = asm.finish().unwrap();
    let Some(udp) = compiled("udp", true) else { return };
    check(&node(false, Election::Source), &[divide, udp], &[arrived(data)]);
}

#[test]
fn a_tag_of_old_switches_reaches_who_wants_it() {
    let mut data = vec![0u8; 80];
    data[12..18].copy_from_slice(&[0x91, 0, 0, 7, 8, 0]);
    let Some(vlan) = compiled("vlan", true) else { return };
    check(&node(false, Election::Source), &[vlan], &[arrived(data)]);
}

#[test]
fn whatever_two_clients_send_each_gets_the_same() {
    let mut random = Random(55);
    let nodes = [node(false, Election::Source), node(true, Election::Source)];
    let streams = [Stream::random(70, 500, false), Stream::random(71, 500, true)];
    let mut pushed = 0;
    for _ in 0..150 {
        let (a, b) = (network_program(&mut random), network_program(&mut random));
        let which = usize::from(random.one_in(3));
        pushed += usize::from(check(&nodes[which], &[a, b], &streams[which]) > 0);
    }
    assert!(pushed > 0, "nothing was the kernel's to apply");
}
