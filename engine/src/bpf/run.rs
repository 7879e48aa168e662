//! The interpreter: a program's verdict on a frame.
//!
//! ```text
//! Frame.data, tag put back in place -------loads-----> A, X, M[] --> accepted bytes
//! Frame.wire_len, .point, .vlan --ancillary loads----^
//! ```
//!
//! A client compiles its filter for the link type that OPEN announced, so a program reads a frame
//! as it is delivered: a tag that the kernel moved out is in the bytes again, and `ip` does not
//! match a tagged frame, as with a capture file. Only a program that asks the kernel's facts for
//! the tag ([`Ancillary::VlanTag`] and its kind: compiled for a live device) expects the bytes
//! without it, and reads them so.
//!
//! A load outside the captured bytes and a division by zero reject the frame. Jumps only go
//! forward, so a run ends after at most as many steps as the program has instructions; it neither
//! allocates nor recurses.

use super::Program;
use super::ancillary::{self, ETHERNET_HEADER};
use super::op::{
    Alu, Ancillary, Condition, FROM_LINK_HEADER, FROM_NETWORK_HEADER, Op, SCRATCH_WORDS, Size,
};
use crate::frame::Frame;

/// What rejects a frame.
const REJECT: u32 = 0;
/// Bytes of the two MAC addresses, after which a tag stands.
const MACS: usize = 12;
/// Bytes of a tag.
const TAG: u32 = 4;

impl Program {
    /// Runs the program on a frame as it is delivered: how many of its bytes are accepted, 0 to
    /// reject it. The number is what the program returned and may exceed the frame's length.
    #[must_use]
    #[inline]
    pub fn run(&self, frame: &Frame<'_>) -> u32 {
        match frame.vlan {
            Some(tag) if !self.0.wants_tag_beside && frame.data.len() >= MACS => {
                let ([t0, t1], [c0, c1]) = (tag.tpid.to_be_bytes(), tag.tci.to_be_bytes());
                let bytes = Tagged { data: frame.data, tag: [t0, t1, c0, c1] };
                run(&self.0.ops, frame, bytes).unwrap_or(REJECT)
            }
            _ => self.run_in_kernel(frame),
        }
    }

    /// Runs the program on a frame as the kernel would run it on a packet socket: a tag that was
    /// moved out of the frame is not in its bytes.
    #[must_use]
    pub fn run_in_kernel(&self, frame: &Frame<'_>) -> u32 {
        run(&self.0.ops, frame, Plain(frame.data)).unwrap_or(REJECT)
    }
}

/// The bytes that loads see.
trait Bytes: Copy {
    /// Bytes that stand in them and not in [`Frame::data`], all before the network header.
    const ADDED: u32;

    fn load(self, size: Size, at: u32) -> Option<u32>;
}

/// As captured.
#[derive(Clone, Copy)]
struct Plain<'a>(&'a [u8]);

impl Bytes for Plain<'_> {
    const ADDED: u32 = 0;

    #[inline]
    fn load(self, size: Size, at: u32) -> Option<u32> {
        let from = self.0.get(at as usize..)?;
        Some(match size {
            Size::Word => u32::from_be_bytes(*from.first_chunk()?),
            Size::Half => u32::from(u16::from_be_bytes(*from.first_chunk()?)),
            Size::Byte => u32::from(*from.first()?),
        })
    }
}

/// With the tag where it was on the wire.
#[derive(Clone, Copy)]
struct Tagged<'a> {
    data: &'a [u8],
    tag: [u8; TAG as usize],
}

impl Tagged<'_> {
    fn byte(self, at: usize) -> Option<u8> {
        match at.checked_sub(MACS) {
            None => self.data.get(at),
            Some(in_tag) => self.tag.get(in_tag).or_else(|| self.data.get(at - self.tag.len())),
        }
        .copied()
    }
}

impl Bytes for Tagged<'_> {
    const ADDED: u32 = TAG;

    fn load(self, size: Size, at: u32) -> Option<u32> {
        let at = at as usize;
        (at..at + size.bytes())
            .try_fold(0, |value, at| Some(value << 8 | u32::from(self.byte(at)?)))
    }
}

fn run<B: Bytes>(ops: &[Op], frame: &Frame<'_>, bytes: B) -> Option<u32> {
    let wire_len = frame.wire_len.wrapping_add(B::ADDED);
    let resolve = |offset| resolve(offset, ETHERNET_HEADER + B::ADDED);
    let (mut a, mut x) = (0u32, 0u32);
    let mut scratch = [0u32; SCRATCH_WORDS as usize];
    let mut pc = 0;
    loop {
        // Verified: no jump leaves the program, and it ends in a return.
        let op = *ops.get(pc)?;
        pc += 1;
        match op {
            Op::LoadAbsolute(size, k) => a = bytes.load(size, k)?,
            Op::LoadNegative(size, k) => a = bytes.load(size, resolve(k)?)?,
            Op::LoadIndirect(size, k) => a = bytes.load(size, resolve(x.wrapping_add(k))?)?,
            Op::LoadAncillary(fact) => {
                a = ancillary::load(fact, frame, a, x);
                if fact == Ancillary::PayOffset && a != 0 {
                    a += B::ADDED;
                }
            }
            Op::LoadLen => a = wire_len,
            Op::LoadImmediate(k) => a = k,
            Op::LoadScratch(slot) => a = scratch[index(slot)],
            Op::LoadXHeaderLen(k) => x = (bytes.load(Size::Byte, resolve(k)?)? & 0xf) * 4,
            Op::LoadXLen => x = wire_len,
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

/// The offset from the link header that a computed or negative offset means.
pub(super) fn resolve(offset: u32, network_header: u32) -> Option<u32> {
    match offset {
        FROM_NETWORK_HEADER.. => Some(offset - FROM_NETWORK_HEADER + network_header),
        FROM_LINK_HEADER.. => Some(offset - FROM_LINK_HEADER),
        0x8000_0000.. => None,
        _ => Some(offset),
    }
}

#[inline]
pub(super) fn holds(condition: Condition, a: u32, operand: u32) -> bool {
    match condition {
        Condition::Equal => a == operand,
        Condition::Greater => a > operand,
        Condition::AtLeast => a >= operand,
        Condition::AnyBit => a & operand != 0,
    }
}

#[inline]
pub(super) fn compute(alu: Alu, a: u32, operand: u32) -> Option<u32> {
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
    use crate::bpf::{Assembler, Operand, Target};
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
        // Four bytes of tag are put back.
        for (size, last) in [(Size::Byte, 23), (Size::Half, 22), (Size::Word, 20)] {
            assert_ne!(result(|asm| asm.load(size, last), &data), 0);
            assert_eq!(result(|asm| asm.load(size, last + 1), &data), 0);
            assert_eq!(result(|asm| asm.load(size, 0x7fff_ffff), &data), 0);
        }
    }

    #[test]
    fn len_is_the_length_on_the_wire() {
        assert_eq!(result(Assembler::load_len, &[0; 8]), 1500);
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
    fn a_tag_is_in_the_bytes_unless_the_program_asks_for_it_beside_them() {
        let data: Vec<u8> = (0..60).collect();
        let loads = |at| result(|asm| asm.load(Size::Word, at), &data);
        assert_eq!(loads(8), 0x0809_0a0b);
        assert_eq!(loads(12), 0x88a8_2005);
        assert_eq!(loads(10), 0x0a0b_88a8, "across its edge");
        assert_eq!(loads(14), 0x2005_0c0d);
        assert_eq!((loads(60), loads(61)), (0x3839_3a3b, 0));
        assert_eq!(result(Assembler::load_len, &data), 1504);
        let network = result(|asm| asm.load(Size::Byte, FROM_NETWORK_HEADER), &data);
        assert_eq!(network, 14, "the network header has moved with the bytes");
        let beside = |asm: &mut Assembler| {
            asm.load_ancillary(Ancillary::VlanTagPresent);
            asm.load(Size::Half, 12);
        };
        assert_eq!(result(beside, &data), 0x0c0d);
        assert_eq!(result(|asm| asm.load(Size::Half, 10), &data[..11]), 0, "a runt has no tag");
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
