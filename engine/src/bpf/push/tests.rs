//! What is left open, and what is not. That it changes no report is `classify`'s test.

use std::net::Ipv4Addr;

use super::*;
use crate::bpf::{Alu, Ancillary, Condition, Size, Target};
use crate::frame::{Direction, Frame, Offload, Point};

/// A program that accepts if what `write` loads into A compares so with `k`.
fn asking(write: impl FnOnce(&mut Assembler), condition: Condition, k: u32) -> Program {
    let mut asm = Assembler::new();
    let accept = asm.label();
    write(&mut asm);
    asm.branch(condition, k, accept, Target::Next);
    asm.ret(0);
    asm.bind(accept);
    asm.ret(96);
    asm.finish().unwrap()
}

fn equal(write: impl FnOnce(&mut Assembler), k: u32) -> Program {
    asking(write, Condition::Equal, k)
}

/// The need as a program that accepts what has it.
fn program(need: &Need) -> Program {
    let mut asm = Assembler::new();
    let accept = asm.label();
    need.write(&mut asm, accept);
    asm.ret(0);
    asm.bind(accept);
    asm.ret(1);
    asm.finish().unwrap()
}

fn has(need: &Need, data: &[u8]) -> bool {
    let frame = Frame {
        data,
        wire_len: u32::try_from(data.len()).unwrap(),
        timestamp_ns: 0,
        point: Point { ifindex: 1, direction: Direction::In },
        vlan: None,
        offload: Offload::default(),
    };
    program(need).run_in_kernel(&frame) != 0
}

fn seen(program: &Program) -> Need {
    Need::of(program, Family::V4, Ends::Seen)
}

#[test]
fn what_may_differ_between_copies_and_segments_is_not_tested() {
    let open: [fn(&mut Assembler); 12] = [
        |asm| asm.load(Size::Half, 0),
        |asm| asm.load(Size::Byte, 15),
        |asm| asm.load(Size::Half, 16),
        |asm| asm.load(Size::Half, 18),
        |asm| asm.load(Size::Byte, 22),
        |asm| asm.load(Size::Half, 24),
        |asm| asm.load(Size::Word, 38),
        |asm| asm.load(Size::Byte, 60),
        Assembler::load_len,
        |asm| asm.load_ancillary(Ancillary::IfIndex),
        |asm| asm.load_ancillary(Ancillary::PktType),
        |asm| {
            asm.load(Size::Half, 16);
            asm.store(3);
            asm.load(Size::Byte, 23);
            asm.tax();
            asm.load_scratch(3);
            asm.alu(Alu::Sub, crate::bpf::Operand::X);
        },
    ];
    for (at, write) in open.into_iter().enumerate() {
        assert_eq!(seen(&equal(write, 7)), Need::Everything, "number {at}");
    }
    // A test that comes out the same whatever it loads is none.
    let wide = asking(|asm| asm.load(Size::Half, 16), Condition::Greater, 0xffff);
    assert_eq!(seen(&wide), Need::Everything, "not worth a proof");
}

#[test]
fn what_is_equal_everywhere_is_tested() {
    let mut data = vec![0u8; 60];
    data[12..15].copy_from_slice(&[8, 0, 0x45]);
    for (size, at) in [(Size::Byte, 23), (Size::Half, 20), (Size::Word, 26), (Size::Word, 30)] {
        let need = seen(&equal(|asm| asm.load(size, at), 7));
        assert!(!has(&need, &data), "at {at}");
        data[at as usize + size.bytes() - 1] = 7;
        assert!(has(&need, &data), "at {at}");
    }
}

#[test]
fn flags_that_only_one_segment_has_are_left_out_of_a_test() {
    let flag = |bits| {
        let mut asm = Assembler::new();
        let (tcp, reject) = (asm.label(), asm.label());
        asm.load(Size::Byte, 23);
        asm.branch(Condition::Equal, 6, tcp, reject);
        asm.bind(tcp);
        asm.load(Size::Byte, 47);
        asm.branch(Condition::AnyBit, bits, Target::Next, reject);
        asm.ret(1);
        asm.bind(reject);
        asm.ret(0);
        seen(&asm.finish().unwrap())
    };
    let mut data = vec![0u8; 60];
    data[23] = 6;
    assert!(!has(&flag(0x02), &data), "SYN");
    assert!(has(&flag(0x01), &data), "FIN: of the last segment of some super-frame");
    assert!(has(&flag(0x12 | 0x08), &data), "one of several");
    data[47] = 2;
    assert!(has(&flag(0x02), &data));
}

#[test]
fn a_known_source_decides_its_tests() {
    let from = |address: [u8; 4]| {
        let need = equal(|asm| asm.load(Size::Word, 26), 0x0a00_0001);
        Need::of(&need, Family::V4, Ends::From(Ipv4Addr::from(address).into()))
    };
    assert_eq!(from([10, 0, 0, 1]), Need::Everything);
    assert_eq!(from([10, 0, 0, 2]), Need::nothing());
}

#[test]
fn a_need_that_is_there_already_is_not_written_again() {
    let need = |k| seen(&equal(|asm| asm.load(Size::Byte, 23), k));
    let mut both = need(6);
    both.join(need(6));
    assert_eq!(both, need(6));
    both.join(need(17));
    assert_eq!(both.beyond(&need(6)), need(17));
    assert_eq!(Need::Everything.beyond(&both), Need::Everything);
    assert_eq!(both.beyond(&Need::Everything), Need::nothing());
    both.join(Need::Everything);
    assert_eq!(both, Need::Everything);
}

#[test]
fn a_division_by_what_differs_ends_nothing() {
    let divide = |write: fn(&mut Assembler)| {
        let load = |asm: &mut Assembler| {
            write(asm);
            asm.tax();
            asm.load_immediate(1);
            asm.alu(Alu::Div, crate::bpf::Operand::X);
            asm.load(Size::Byte, 23);
        };
        seen(&equal(load, 6))
    };
    let mut data = vec![0u8; 60];
    data[23] = 6;
    assert!(has(&divide(|asm| asm.load(Size::Byte, 22)), &data), "another copy's TTL is not 0");
}

#[test]
fn too_much_is_not_analysed() {
    let mut asm = Assembler::new();
    let accept = asm.label();
    for k in 0..20 {
        asm.load(Size::Byte, 22);
        asm.branch(Condition::Equal, k, accept, Target::Next);
        asm.load(Size::Byte, 23);
        asm.branch(Condition::Equal, 200 + k, accept, Target::Next);
        asm.load(Size::Half, 20);
        asm.branch(Condition::Equal, k, accept, Target::Next);
    }
    asm.ret(0);
    asm.bind(accept);
    asm.load(Size::Byte, 23);
    asm.ret_a();
    assert_eq!(seen(&asm.finish().unwrap()), Need::Everything);
    let mut long = Assembler::new();
    for _ in 0..600 {
        long.load(Size::Byte, 23);
    }
    long.ret_a();
    assert_eq!(seen(&long.finish().unwrap()), Need::Everything);
}

#[test]
fn only_a_filter_that_wants_no_tag_is_safe_where_tags_change() {
    let ethertype = |k| equal(|asm| asm.load(Size::Half, 12), k);
    assert!(!may_accept_tagged(&ethertype(0x0800)));
    assert!(!may_accept_tagged(&asking(|asm| asm.load(Size::Half, 12), Condition::Equal, 0x0806)));
    assert!(may_accept_tagged(&ethertype(0x8100)));
    assert!(may_accept_tagged(&equal(|asm| asm.load(Size::Byte, 23), 6)));
    assert!(may_accept_tagged(&asking(|asm| asm.load(Size::Half, 12), Condition::Greater, 1500)));
    assert!(may_accept_tagged(&equal(|asm| asm.load_ancillary(Ancillary::VlanTagPresent), 1)));
}
