//! Which programs are sound: the rules of the kernel's `bpf_check_classic`.
//!
//! ```text
//! BpfInsn --decode--> opcodes --> operands, jumps --> last is a return --> scratch memory --> Op
//! ```
//!
//! Neither laxer nor stricter than the kernel: a sensor's filter that one of the two refuses would
//! otherwise be in force on one data path and not on the other. After these checks a program ends:
//! every jump goes forward, and none leaves the program.

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
