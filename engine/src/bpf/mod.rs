//! Classic BPF: checked as the kernel checks it, run in user space, written by our own assembler.
//!
//! ```text
//! sensor's filter --BpfInsn--> verify --> Program --> the kernel (raw instructions)
//! our own rules --> assemble --BpfInsn--^     |-----> run (decoded): accepted bytes of a Frame
//!                                             |-----> text: for logs and people
//!                                             '-----> push: what the kernel may drop for it
//! ```
//!
//! Attaching a program to a socket is `sys`' work; what a filter should say is the caller's.

mod ancillary;
mod assemble;
mod layout;
mod op;
#[cfg(test)]
pub(crate) mod oracle;
pub mod push;
mod run;
mod text;
mod verify;

use std::sync::Arc;

pub use assemble::{AssembleError, Assembler, Label, Target};
use op::Op;
pub use op::{Alu, Ancillary, Condition, Operand, Size};
pub use verify::Invalid;

use crate::rpcap::BpfInsn;

/// The most instructions that Linux takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// More than any frame has: what a program returns to accept all of it.
pub const WHOLE_FRAME: u32 = 0x4_0000;

/// A verified program. Cheap to clone.
#[derive(Clone)]
pub struct Program(Arc<Verified>);

struct Verified {
    /// As the kernel takes them.
    raw: Box<[BpfInsn]>,
    /// As we run them, one for one.
    ops: Box<[Op]>,
    /// It asks whether a tag was moved out of the frame: see [`run`].
    wants_tag_beside: bool,
}

impl Program {
    /// Checks length, opcodes, jumps, scratch memory, division, and that it ends in a return:
    /// what `bpf_check_classic` of the kernel checks.
    ///
    /// # Errors
    ///
    /// The first flaw that is found.
    pub fn new(instructions: &[BpfInsn]) -> Result<Self, Invalid> {
        let ops = verify::verify(instructions)?;
        let wants_tag_beside = ops.iter().any(|op| {
            use Ancillary::{VlanTag, VlanTagPresent, VlanTpid};
            matches!(op, Op::LoadAncillary(VlanTag | VlanTagPresent | VlanTpid))
        });
        Ok(Self(Arc::new(Verified { raw: instructions.into(), ops, wants_tag_beside })))
    }

    /// A program that accepts every frame, whole.
    #[must_use]
    pub fn accept_all() -> Self {
        Self::returning(WHOLE_FRAME)
    }

    /// A program that rejects every frame.
    #[must_use]
    pub fn reject_all() -> Self {
        Self::returning(0)
    }

    fn returning(k: u32) -> Self {
        let raw = BpfInsn { code: op::code::RET, jt: 0, jf: 0, k };
        Self(Arc::new(Verified {
            raw: [raw].into(),
            ops: [Op::Return(k)].into(),
            wants_tag_beside: false,
        }))
    }

    /// True if it asks which way a frame goes (`inbound`, `outbound` of pcap-filter).
    #[must_use]
    pub fn asks_direction(&self) -> bool {
        self.0.ops.iter().any(|op| matches!(op, Op::LoadAncillary(Ancillary::PktType)))
    }

    /// The instructions, as the kernel takes them.
    #[must_use]
    pub fn instructions(&self) -> &[BpfInsn] {
        &self.0.raw
    }
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.raw == other.0.raw
    }
}

impl Eq for Program {}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&*self.0.ops).finish()
    }
}
