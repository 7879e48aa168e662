//! Which programs are sound: the rules of the kernel's `bpf_check_classic`.
//!
//! ```text
//! BpfInsn --decode--> opcodes --> operands, jumps --> last is a return --> scratch memory --> Op
//! ```
//!
//! Neither laxer nor stricter than the kernel: a sensor's filter that one of the two refuses would
//! otherwise be in force on one data path and not on the other. After these checks a program ends:
//! every jump goes forward, and none leaves the program.
//!
//! A sound program may still be too big to attach once the kernel has translated it, by about ten
//! for one: `ENOMEM` beyond `net.core.optmem_max`, `EINVAL` for a `ja` over more than 32,767.

use super::MAX_INSTRUCTIONS;
use super::op::{Alu, Op, SCRATCH_WORDS};
use crate::rpcap::BpfInsn;

/// Why a program was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid filter at instruction {at}: {reason}")]
pub struct Invalid {
    /// Index of the instruction.
    pub at: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Decodes a program and checks it.
pub(super) fn verify(instructions: &[BpfInsn]) -> Result<Box<[Op]>, Invalid> {
    if instructions.is_empty() {
        return Err(Invalid { at: 0, reason: "the program is empty" });
    }
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(Invalid { at: MAX_INSTRUCTIONS, reason: "more than 4096 instructions" });
    }
    let mut ops = Vec::with_capacity(instructions.len());
    for (at, insn) in instructions.iter().enumerate() {
        let refused = |reason| Invalid { at, reason };
        let op = Op::decode(*insn).ok_or(refused("unknown opcode or ancillary offset"))?;
        check_operands(op, instructions.len() - at - 1).map_err(refused)?;
        ops.push(op);
    }
    if !matches!(ops.last(), Some(Op::Return(_) | Op::ReturnA)) {
        let at = instructions.len() - 1;
        return Err(Invalid { at, reason: "the last instruction is not a return" });
    }
    check_scratch(&ops)?;
    Ok(ops.into_boxed_slice())
}

/// Checks one instruction that `behind` others follow.
fn check_operands(op: Op, behind: usize) -> Result<(), &'static str> {
    let flaw = match op {
        Op::AluK(Alu::Div | Alu::Mod, 0) => "division by zero",
        Op::AluK(Alu::Lsh | Alu::Rsh, 32..) => "shift by more than 31 bits",
        Op::LoadScratch(SCRATCH_WORDS..)
        | Op::LoadXScratch(SCRATCH_WORDS..)
        | Op::Store(SCRATCH_WORDS..)
        | Op::StoreX(SCRATCH_WORDS..) => "no such word of scratch memory",
        Op::Jump(k) if k as usize >= behind => "jump out of the program",
        Op::BranchK(_, jt, jf, _) | Op::BranchX(_, jt, jf) if usize::from(jt.max(jf)) >= behind => {
            "jump out of the program"
        }
        _ => return Ok(()),
    };
    Err(flaw)
}

/// Checks that no word of scratch memory is read before it is written, on any path.
///
/// Jumps only go forward, so when an instruction's turn comes all that lead to it were seen.
fn check_scratch(ops: &[Op]) -> Result<(), Invalid> {
    const ALL_WRITTEN: u16 = u16::MAX;
    // Words that are written on every path found so far that jumps to the instruction.
    let mut arriving = vec![ALL_WRITTEN; ops.len()];
    // The same for the path that falls through from the one before.
    let mut written = 0;
    for (at, op) in ops.iter().enumerate() {
        written &= arriving[at];
        match *op {
            Op::Store(slot) | Op::StoreX(slot) => written |= 1 << slot,
            Op::LoadScratch(slot) | Op::LoadXScratch(slot) if written & (1 << slot) == 0 => {
                let reason = "scratch memory is read before it is written";
                return Err(Invalid { at, reason });
            }
            Op::Jump(k) => {
                arriving[at + 1 + k as usize] &= written;
                written = ALL_WRITTEN;
            }
            Op::BranchK(_, jt, jf, _) | Op::BranchX(_, jt, jf) => {
                arriving[at + 1 + usize::from(jt)] &= written;
                arriving[at + 1 + usize::from(jf)] &= written;
                written = ALL_WRITTEN;
            }
            // The kernel lets the words of a path that has returned count against what follows.
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::Program;

    fn refused(program: &[(u16, u8, u8, u32)]) -> Invalid {
        let insn = |&(code, jt, jf, k): &_| BpfInsn { code, jt, jf, k };
        Program::new(&program.iter().map(insn).collect::<Vec<_>>()).unwrap_err()
    }

    const RET: (u16, u8, u8, u32) = (0x06, 0, 0, 1);

    #[test]
    fn a_refusal_says_where_and_why() {
        let table: [(&[_], usize, &str); 12] = [
            (&[], 0, "the program is empty"),
            (&[RET; 4097], 4096, "more than 4096 instructions"),
            (&[RET, (0xff, 0, 0, 0), RET], 1, "unknown opcode or ancillary offset"),
            (&[(0x20, 0, 0, 0xffff_f001), RET], 0, "unknown opcode or ancillary offset"),
            (&[(0x34, 0, 0, 0), RET], 0, "division by zero"),
            (&[(0x64, 0, 0, 32), RET], 0, "shift by more than 31 bits"),
            (&[(0x02, 0, 0, 16), RET], 0, "no such word of scratch memory"),
            (&[RET, (0x05, 0, 0, 1), RET], 1, "jump out of the program"),
            (&[(0x05, 0, 0, u32::MAX), RET], 0, "jump out of the program"),
            (&[(0x15, 0, 1, 0), RET], 0, "jump out of the program"),
            (&[RET, (0x07, 0, 0, 0)], 1, "the last instruction is not a return"),
            (&[(0x60, 0, 0, 3), RET], 0, "scratch memory is read before it is written"),
        ];
        for (program, at, reason) in table {
            assert_eq!(refused(program), Invalid { at, reason });
        }
    }

    #[test]
    fn scratch_memory_must_be_written_on_every_path() {
        // jeq over the store: one of two paths comes without it.
        let one_path = [(0x15, 1, 0, 0), (0x02, 0, 0, 5), (0x60, 0, 0, 5), RET];
        let reason = "scratch memory is read before it is written";
        assert_eq!(refused(&one_path), Invalid { at: 2, reason });
        // Stored on both.
        let store = (0x02, 0, 0, 5);
        let both = [(0x15, 2, 0, 0), store, (0x05, 0, 0, 1), store, (0x60, 0, 0, 5), RET];
        let insn = |&(code, jt, jf, k): &_| BpfInsn { code, jt, jf, k };
        assert!(Program::new(&both.iter().map(insn).collect::<Vec<_>>()).is_ok());
    }
}
