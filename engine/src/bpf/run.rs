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
