//! Others' answers to the questions that this module answers: the kernel's and libpcap's.
//!
//! ```text
//! random program --> Program::new  ==  SO_ATTACH_FILTER                    (verdicts)
//!                --> Program::run  ==  bytes that a filtered socket got    (runs)
//! tcpdump -ddd   --> Program::run  ==  what the expression means           (libpcap)
//! ```
//!
//! The random programs come from a fixed seed, so a failure comes again.

mod libpcap;
mod runs;
mod verdicts;

use std::io;

use socket2::{SockFilter, Socket};

use super::Program;
use super::op::{Ancillary, FROM_LINK_HEADER, FROM_NETWORK_HEADER, Op, code};
use crate::rpcap::BpfInsn;

/// xorshift64*: random enough, and the same on every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let [a, b, c, d, ..] = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.next() % end
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(u32::try_from(from.len()).unwrap()) as usize]
    }
}

/// What a program may load, so that the kernel's answer does not depend on what a frame lacks.
#[derive(Clone, Copy, PartialEq)]
enum Loads {
    /// Bytes at constant offsets.
    Plain,
    /// These, computed offsets, headers, and the facts that both sides know.
    Network,
    /// Anything.
    All,
}

const NETWORK_FACTS: [Ancillary; 10] = [
    Ancillary::Protocol,
    Ancillary::PktType,
    Ancillary::IfIndex,
    Ancillary::Mark,
    Ancillary::HaType,
    Ancillary::AluXorX,
    Ancillary::VlanTag,
    Ancillary::VlanTagPresent,
    Ancillary::VlanTpid,
    Ancillary::PayOffset,
];

/// A sound program over what a frame on a network has, from `random`.
pub(crate) fn network_program(random: &mut Random) -> Program {
    let codes = all_codes();
    loop {
        if let Ok(program) = Program::new(&random_program(random, &codes, Loads::Network)) {
            return program;
        }
    }
}

fn all_codes() -> Vec<u16> {
    let known = |code: &u16| Op::decode(insn(*code, 0)).is_some();
    (0..=0xff).filter(known).collect()
}

fn insn(code: u16, k: u32) -> BpfInsn {
    BpfInsn { code, jt: 0, jf: 0, k }
}

/// A program that is probably sound.
fn random_program(random: &mut Random, codes: &[u16], loads: Loads) -> Vec<BpfInsn> {
    let len = 2 + random.below(40);
    let mut program = Vec::new();
    // Some words of scratch memory that may be read anywhere.
    let slots = random.below(4);
    program.extend((0..slots).map(|slot| insn(code::ST, slot)));
    for at in 0..len {
        let behind = len - at;
        program.push(random_instruction(random, codes, loads, slots, behind));
    }
    program.push(match random.below(4) {
        0 => insn(code::RET, random.next()),
        1 => insn(code::RET, random.below(100)),
        _ => insn(code::RET | code::RET_A, 0),
    });
    program
}

fn random_instruction(
    random: &mut Random,
    codes: &[u16],
    loads: Loads,
    slots: u32,
    behind: u32,
) -> BpfInsn {
    let code = random.pick(codes);
    let small = random.below(80);
    let any = random.next();
    let constant = random.pick(&[0, 1, 2, 4, 0xff, 0x800, 0x8000_0000, u32::MAX, small, any]);
    let fact = match loads {
        Loads::All => random.pick(Ancillary::ALL),
        Loads::Plain | Loads::Network => random.pick(&NETWORK_FACTS),
    };
    let (class, mode) = (code & 0x07, code & 0xe0);
    // A return in the middle ends most runs too early; one in eight stays.
    if class == code::RET && !random.one_in(8) {
        return insn(code::ALU | code::NEG, 0);
    }
    if mode == code::IND && class == code::LD && loads == Loads::Plain {
        return insn(code::LD | code::LEN, 0);
    }
    let k = match class {
        code::LD if mode == code::ABS && loads != Loads::Plain => random.pick(&[
            small,
            small,
            fact.offset(),
            fact.offset(),
            FROM_NETWORK_HEADER + small,
            FROM_LINK_HEADER + small,
        ]),
        code::LD if mode == code::ABS || mode == code::IND => small,
        code::LDX if mode == code::MSH && loads != Loads::Plain => {
            random.pick(&[small, FROM_NETWORK_HEADER + small, FROM_LINK_HEADER + small])
        }
        code::LDX if mode == code::MSH => small,
        code::LD | code::LDX if mode == code::MEM => random.below(slots.max(1)),
        code::ST | code::STX => random.below(16),
        code::ALU if matches!(code & 0xf8, 0x30 | 0x90) => constant.max(1),
        code::ALU if matches!(code & 0xf8, 0x60 | 0x70) => random.below(32),
        code::JMP if code & 0xf0 == code::JA => random.below(behind),
        _ => constant,
    };
    let mut skip = || u8::try_from(random.below(behind.min(4))).unwrap();
    BpfInsn { code, jt: skip(), jf: skip(), k }
}

fn attach(socket: &Socket, program: &[BpfInsn]) -> io::Result<()> {
    let raw: Vec<_> = program.iter().map(|i| SockFilter::new(i.code, i.jt, i.jf, i.k)).collect();
    socket.attach_filter(&raw)
}
