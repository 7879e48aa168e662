//! The kernel must accept exactly the programs that we accept.

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::{Loads, Random, all_codes, attach, insn, random_program};
use crate::bpf::op::{FROM_LINK_HEADER, FROM_NETWORK_HEADER, code};
use crate::bpf::{MAX_INSTRUCTIONS, Program};
use crate::rpcap::BpfInsn;

/// Changes one field of one instruction to something that may or may not be allowed there.
fn mutate(random: &mut Random, program: &mut Vec<BpfInsn>) {
    let at = random.below(u32::try_from(program.len()).unwrap()) as usize;
    let (any, small) = (random.next(), random.below(70));
    let edge = u32::try_from(program.len() - at).unwrap();
    match random.below(8) {
        0 => program[at].code = any.to_be_bytes()[0].into(),
        1 => program[at].code ^= 1 << random.below(9),
        2 => program[at].jt = (edge.saturating_sub(random.below(4))).to_be_bytes()[3],
        3 => program[at].jf = (edge.saturating_sub(random.below(4))).to_be_bytes()[3],
        4 => program[at].k = random.pick(&[0, 15, 16, 31, 32, any, u32::MAX]),
        5 => program[at].k = edge.saturating_sub(random.below(4)),
        6 => program[at].k = 0xffff_f000 - 4 + small,
        _ => drop(program.remove(at)),
    }
    if program.is_empty() {
        program.push(insn(code::RET, any));
    }
}

fn kernel_accepts(socket: &Socket, program: &[BpfInsn]) -> bool {
    match attach(socket, program) {
        Ok(()) => true,
        // Sound, but more than `net.core.optmem_max` grants a socket.
        Err(error) if error.raw_os_error() == Some(Errno::ENOMEM as i32) => true,
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => false,
        Err(error) => panic!("SO_ATTACH_FILTER: {error}"),
    }
}

fn assert_same_verdict(socket: &Socket, program: &[BpfInsn]) -> bool {
    let ours = Program::new(program);
    let kernel = kernel_accepts(socket, program);
    assert_eq!(ours.is_ok(), kernel, "{ours:?} of {program:x?}");
    kernel
}

fn any_socket() -> Socket {
    Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap()
}

#[test]
fn random_programs_are_refused_exactly_when_the_kernel_refuses_them() {
    let (socket, codes) = (any_socket(), all_codes());
    let mut random = Random(1);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut program = random_program(&mut random, &codes, Loads::All);
        for _ in 0..random.below(4) {
            mutate(&mut random, &mut program);
        }
        if assert_same_verdict(&socket, &program) {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    assert!(accepted > 3000 && refused > 3000, "{accepted} accepted, {refused} refused");
}

#[test]
fn the_rules_that_clients_meet_are_the_kernels() {
    let socket = any_socket();
    let ret = insn(code::RET, 1);
    let (store, load) = (insn(code::ST, 3), insn(code::LD | code::MEM, 3));
    let jump = |jt, jf| BpfInsn { code: 0x15, jt, jf, k: 0 };
    let table: [(&str, &[BpfInsn], bool); 19] = [
        ("nothing", &[], false),
        ("no return at the end", &[ret, insn(code::LD | code::LEN, 0)], false),
        ("ret x", &[insn(code::RET | code::X, 0)], false),
        ("ret a", &[insn(code::RET | code::RET_A, 0)], true),
        ("shift by 31", &[insn(0x64, 31), ret], true),
        ("shift by 32", &[insn(0x64, 32), ret], false),
        ("shift by X", &[insn(0x6c, 99), ret], true),
        ("division by 0", &[insn(0x34, 0), ret], false),
        ("remainder by 0", &[insn(0x94, 0), ret], false),
        ("division by X", &[insn(0x3c, 0), ret], true),
        ("header length at X", &[insn(0xb1 ^ 0xe0, 0), ret], false),
        ("M[15]", &[insn(code::ST, 15), ret], true),
        ("M[16]", &[insn(code::ST, 16), ret], false),
        ("a word that was never written", &[load, ret], false),
        ("written on one path", &[jump(1, 0), store, load, ret], false),
        ("written on both", &[jump(1, 0), store, store, load, ret], true),
        ("written before", &[store, jump(1, 0), ret, load, ret], true),
        ("a jump to the end", &[jump(0, 1), ret], false),
        ("protochain's jump back", &[insn(code::JMP | code::JA, u32::MAX), ret], false),
    ];
    for (what, program, expected) in table {
        assert_eq!(assert_same_verdict(&socket, program), expected, "{what}");
    }
}

#[test]
fn every_opcode_is_known_exactly_when_the_kernel_knows_it() {
    let socket = any_socket();
    for code in (0..0x300).chain([0x1015, 0x8006, 0xff06, 0xffff]) {
        for k in [0, 1, 2, 15, 16, 31, 32, u32::MAX] {
            // Scratch word 0 is written, and whatever jumps by 0 has somewhere to go.
            let ret = insn(code::RET, 1);
            assert_same_verdict(&socket, &[insn(code::ST, 0), insn(code, k), ret, ret]);
            assert_same_verdict(&socket, &[insn(code, k)]);
        }
    }
}

#[test]
fn every_offset_is_known_exactly_when_the_kernel_knows_it() {
    let socket = any_socket();
    let edges = [FROM_LINK_HEADER, FROM_NETWORK_HEADER, 0x8000_0000];
    let around = edges.iter().flat_map(|edge| edge - 2..edge + 2);
    for k in (0xffff_ef00..=0xffff_f100).chain(u32::MAX - 80..=u32::MAX).chain(around) {
        for code in [0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0xb1] {
            assert_same_verdict(&socket, &[insn(code, k), insn(code::RET, 1)]);
        }
    }
}

#[test]
fn lengths_are_limited_as_in_the_kernel() {
    let socket = any_socket();
    for len in [0, 1, 2, MAX_INSTRUCTIONS - 1, MAX_INSTRUCTIONS, MAX_INSTRUCTIONS + 1, 65535] {
        let sound = assert_same_verdict(&socket, &vec![insn(code::RET, 1); len]);
        assert_eq!(sound, (1..=MAX_INSTRUCTIONS).contains(&len));
    }
}

#[test]
fn a_sound_program_may_be_too_big_to_attach() {
    // Each `ldxb` becomes some 17 instructions of the kernel's own, and a jump there has 16 bits.
    let mut program = vec![insn(code::JMP | code::JA, 2000)];
    program.resize(2001, insn(0xb1, 0));
    program.push(insn(code::RET, 1));
    assert!(Program::new(&program).is_ok());
    assert!(attach(&any_socket(), &program).is_err());
}
