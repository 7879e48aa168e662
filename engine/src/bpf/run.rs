//! The interpreter: a program's verdict on a frame, as on a packet socket of the kernel.
//!
//! ```text
//! Frame.data, from the link header, tag moved out --loads-----> A, X, M[] --> accepted bytes
//! Frame.wire_len, .point, .vlan -------ancillary loads-----^
//! ```
//!
//! A load outside the captured bytes and a division by zero reject the frame. Jumps only go
//! forward, so a run ends after at most as many steps as the program has instructions; it neither
//! allocates nor recurses.

use super::Program;
use super::ancillary;
use super::op::{Alu, Condition, FROM_LINK_HEADER, FROM_NETWORK_HEADER, Op, SCRATCH_WORDS, Size};
use crate::frame::Frame;

/// What rejects a frame.
const REJECT: u32 = 0;

impl Program {
    /// Runs the program on a frame: how many of its bytes are accepted, 0 to reject it. The number
    /// is what the program returned and may exceed the frame's length.
    #[must_use]
    pub fn run(&self, frame: &Frame<'_>) -> u32 {
        run(&self.0.ops, frame).unwrap_or(REJECT)
    }
}

fn run(ops: &[Op], frame: &Frame<'_>) -> Option<u32> {
    let data = frame.data;
    let (mut a, mut x) = (0u32, 0u32);
    let mut scratch = [0u32; SCRATCH_WORDS as usize];
    let mut pc = 0;
    loop {
        // Verified: no jump leaves the program, and it ends in a return.
        let op = *ops.get(pc)?;
        pc += 1;
        match op {
            Op::LoadAbsolute(size, k) => a = load(data, size, k)?,
            Op::LoadNegative(size, k) => a = load(data, size, resolve(k)?)?,
            Op::LoadIndirect(size, k) => a = load(data, size, resolve(x.wrapping_add(k))?)?,
            Op::LoadAncillary(fact) => a = ancillary::load(fact, frame, a, x),
            Op::LoadLen => a = frame.wire_len,
            Op::LoadImmediate(k) => a = k,
            Op::LoadScratch(slot) => a = scratch[index(slot)],
            Op::LoadXHeaderLen(k) => x = (load(data, Size::Byte, resolve(k)?)? & 0xf) * 4,
            Op::LoadXLen => x = frame.wire_len,
            Op::LoadXImmediate(k) => x = k,
            Op::LoadXScratch(slot) => x = scratch[index(slot)],
            Op::Store(slot) => scratch[index(slot)] = a,
            Op::StoreX(slot) => scratch[index(slot)] = x,
            Op::AluK(alu, k) => a = compute(alu, a, k)?,
            Op::AluX(alu) => a = compute(alu, a, x)?,
            Op::Neg => a = a.wrapping_neg(),
            Op::Jump(k) => pc += k as usize,
            Op::BranchK(condition, jt, jf, k) => {
                pc += usize::from(if holds(condition, a, k) { jt } else { jf });
            }
            Op::BranchX(condition, jt, jf) => {
                pc += usize::from(if holds(condition, a, x) { jt } else { jf });
            }
            Op::Return(k) => return Some(k),
            Op::ReturnA => return Some(a),
            Op::Tax => x = a,
            Op::Txa => a = x,
        }
    }
}

/// Verified to be in range; the mask tells the compiler so.
fn index(slot: u32) -> usize {
    (slot % SCRATCH_WORDS) as usize
}

#[inline]
fn load(data: &[u8], size: Size, at: u32) -> Option<u32> {
    let from = data.get(at as usize..)?;
    Some(match size {
        Size::Word => u32::from_be_bytes(*from.first_chunk()?),
        Size::Half => u32::from(u16::from_be_bytes(*from.first_chunk()?)),
        Size::Byte => u32::from(*from.first()?),
    })
}

/// The offset from the link header that a computed or negative offset means.
fn resolve(offset: u32) -> Option<u32> {
    match offset {
        FROM_NETWORK_HEADER.. => Some(offset - FROM_NETWORK_HEADER + ancillary::ETHERNET_HEADER),
        FROM_LINK_HEADER.. => Some(offset - FROM_LINK_HEADER),
        0x8000_0000.. => None,
        _ => Some(offset),
    }
}

#[inline]
fn holds(condition: Condition, a: u32, operand: u32) -> bool {
    match condition {
        Condition::Equal => a == operand,
        Condition::Greater => a > operand,
        Condition::AtLeast => a >= operand,
        Condition::AnyBit => a & operand != 0,
    }
}

#[inline]
fn compute(alu: Alu, a: u32, operand: u32) -> Option<u32> {
    Some(match alu {
        Alu::Add => a.wrapping_add(operand),
        Alu::Sub => a.wrapping_sub(operand),
        Alu::Mul => a.wrapping_mul(operand),
        Alu::Div => a.checked_div(operand)?,
        Alu::Or => a | operand,
        Alu::And => a & operand,
        // Both take the shift modulo 32, as the kernel does.
        Alu::Lsh => a.wrapping_shl(operand),
        Alu::Rsh => a.wrapping_shr(operand),
        Alu::Mod => a.checked_rem(operand)?,
        Alu::Xor => a ^ operand,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bpf::{Ancillary, Assembler, Operand, Target};
    use crate::frame::{Direction, Offload, Point, VlanTag};
    use crate::rpcap::BpfInsn;

    fn frame(data: &[u8]) -> Frame<'_> {
        Frame {
            data,
            wire_len: 1500,
            timestamp_ns: 0,
            point: Point { ifindex: 7, direction: Direction::Out },
            vlan: Some(VlanTag { tpid: 0x88a8, tci: 0x2005 }),
            offload: Offload::default(),
        }
    }

    /// What a program made of these instructions and `ret a` returns.
    fn result(write: impl FnOnce(&mut Assembler), data: &[u8]) -> u32 {
        let mut asm = Assembler::new();
        write(&mut asm);
        asm.ret_a();
        asm.finish().unwrap().run(&frame(data))
    }

    fn fact(fact: Ancillary, data: &[u8]) -> u32 {
        result(|asm| asm.load_ancillary(fact), data)
    }

    #[test]
    fn the_constant_programs_do_what_they_say() {
        assert_eq!(Program::accept_all().run(&frame(&[])), crate::bpf::WHOLE_FRAME);
        assert_eq!(Program::reject_all().run(&frame(&[0; 60])), 0);
        for program in [Program::accept_all(), Program::reject_all()] {
            assert_eq!(Program::new(program.instructions()), Ok(program));
        }
    }

    #[test]
    fn a_load_outside_the_captured_bytes_rejects() {
        let data = [0xff; 20];
        for (size, last) in [(Size::Byte, 19), (Size::Half, 18), (Size::Word, 16)] {
            assert_ne!(result(|asm| asm.load(size, last), &data), 0);
            assert_eq!(result(|asm| asm.load(size, last + 1), &data), 0);
            assert_eq!(result(|asm| asm.load(size, 0x7fff_ffff), &data), 0);
        }
    }

    #[test]
    fn len_is_the_length_on_the_wire() {
        assert_eq!(result(Assembler::load_len, &[0; 60]), 1500);
    }

    #[test]
    fn facts_come_from_beside_the_bytes() {
        let mut data = [0; 60];
        data[12..14].copy_from_slice(&[0x86, 0xdd]);
        let table = [
            (Ancillary::Protocol, 0x86dd),
            (Ancillary::PktType, 4),
            (Ancillary::IfIndex, 7),
            (Ancillary::HaType, 1),
            (Ancillary::VlanTag, 0x2005),
            (Ancillary::VlanTagPresent, 1),
            (Ancillary::VlanTpid, 0x88a8),
            (Ancillary::NlAttr, 0),
            (Ancillary::Mark, 0),
        ];
        for (name, expected) in table {
            assert_eq!(fact(name, &data), expected, "{name:?}");
        }
        assert_eq!(fact(Ancillary::Protocol, &data[..13]), 0);
    }

    #[test]
    fn random_samples_about_as_many_as_it_should() {
        let mut asm = Assembler::new();
        let (take, data) = (asm.label(), [0; 60]);
        asm.load_ancillary(Ancillary::Random);
        asm.alu(Alu::Mod, 10);
        asm.branch(Condition::Equal, 0, take, Target::Next);
        asm.ret(0);
        asm.bind(take);
        asm.ret(1);
        let program = asm.finish().unwrap();
        let taken: u32 = (0..100_000).map(|_| program.run(&frame(&data))).sum();
        // 10,000 expected, with a standard deviation of 95.
        assert!((9000..11_000).contains(&taken), "{taken}");
    }

    #[test]
    fn division_by_an_x_of_zero_rejects() {
        for alu in [Alu::Div, Alu::Mod] {
            let divide = |asm: &mut Assembler| {
                asm.load_immediate(7);
                asm.alu(alu, Operand::X);
                asm.load_immediate(1);
            };
            assert_eq!(result(divide, &[]), 0);
        }
    }

    fn instruction() -> impl Strategy<Value = BpfInsn> {
        let k = prop_oneof![0..40u32, any::<u32>(), 0xffff_f000..0xffff_f040u32];
        let skip = || prop_oneof![9 => 0..3u8, 1 => any::<u8>()];
        (0..0x100u16, skip(), skip(), k).prop_map(|(code, jt, jf, k)| BpfInsn { code, jt, jf, k })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_passes_the_check_runs_to_an_end(
            instructions in prop::collection::vec(instruction(), 0..60),
            data in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            // Of random instructions few are sound: keep those that can stand alone.
            let ret = BpfInsn { code: 0x16, jt: 0, jf: 0, k: 0 };
            let tail = [ret; 4];
            let alone = |insn: &BpfInsn| Program::new(&[&[*insn], &tail[..]].concat()).is_ok();
            let mut program: Vec<_> = instructions.into_iter().filter(alone).collect();
            program.extend(tail);
            let _verdict = Program::new(&program).unwrap().run(&frame(&data));
        }
    }
}
